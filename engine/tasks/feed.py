"""Between a provider that talks and a TaskServer that listens: what comes faster than it is wanted is joined.

The first text goes out at once; what follows is gathered for a moment. Order is kept; lossy progress is replaced by
newer progress; nothing else is lost. Bounded: a provider that is far ahead waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio
from attrs import define, field, frozen

from engine.providers.protocol import Progress, ProviderEvent, TextDelta

GATHER = 0.02
"""Seconds between two deliveries, unless MANY code points have come before."""
MANY = 256
FULL = 65_536
"""Code points that may wait before the provider has to."""


@frozen
class Batch:
    """What is delivered in one step: an event, or joined text, and perhaps newer progress with it."""

    event: ProviderEvent
    progress: Progress | None = None


@define
class _Gathered:
    texts: list[str] = field(factory=list)
    progress: Progress | None = None

    def __bool__(self) -> bool:
        return bool(self.texts) or self.progress is not None

    def batch(self) -> Batch | None:
        if self.texts:
            return Batch(TextDelta("".join(self.texts)), self.progress)
        return Batch(self.progress) if self.progress is not None else None


class Feed:
    """One attempt's events on their way. `put` by the provider's side, `take` by the TaskServer's."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._ready: deque[Batch] = deque()
        self._gathered = _Gathered()
        self._size = 0
        self._not_before = -1.0
        self._something = trio.Event()
        self._enough = trio.Event()
        self._taken = trio.Event()

    async def put(self, event: ProviderEvent) -> None:
        """Adds an event; waits while the other side is far behind."""
        match event:
            case TextDelta(text):
                self._gathered.texts.append(text)
                self._size += len(text)
            case Progress():
                self._gathered.progress = event
            case _:
                self._flush()
                self._ready.append(Batch(event))
        self._something.set()
        if self._ready or self._size >= MANY:
            self._enough.set()
        while self._size >= FULL:
            self._taken = trio.Event()
            await self._taken.wait()

    async def take(self) -> Batch:
        """The next batch, once there is one and its moment has come."""
        if not self._ready:
            await self._something.wait()
            if self._clock() < self._not_before:
                with trio.move_on_at(self._not_before):
                    await self._enough.wait()
            if not self._ready:
                self._flush()
        batch = self._ready.popleft()
        self._not_before = self._clock() + GATHER
        self._forget_signals()
        return batch

    def _flush(self) -> None:
        batch = self._gathered.batch()
        if batch is not None:
            self._ready.append(batch)
        self._gathered, self._size = _Gathered(), 0

    def _forget_signals(self) -> None:
        self._taken.set()
        if not self._ready:
            self._enough = trio.Event()
            if not self._gathered:
                self._something = trio.Event()
