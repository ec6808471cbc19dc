"""Between a provider that talks and a TaskServer that listens: what comes faster than it is wanted is joined.

The first text goes out at once; what follows is gathered for a moment. Order is kept; progress is replaced by newer
progress; nothing else is lost. Bounded: a provider that is far ahead waits.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from engine.providers.protocol import OutputReady, Progress, ProviderEvent, Sabotage, TextDelta

GATHER = 0.02
"""Seconds between two deliveries of text or progress, unless MANY code points or another event have come before."""
MANY = 256
FULL = 65_536
"""Code points that may wait before the provider has to."""

ALONE = (OutputReady, Sabotage)
"""Events that are delivered by themselves."""

Events = tuple[ProviderEvent, ...]


class Feed:
    """One attempt's events on their way. `put` by the provider's side, `take` by the TaskServer's."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._events: list[ProviderEvent | _Text] = []
        self._size = 0
        self._urgent = False
        self._not_before = -1.0
        self._something = trio.Event()
        self._enough = trio.Event()
        self._taken = trio.Event()

    async def put(self, event: ProviderEvent) -> None:
        """Adds an event; waits while the other side is far behind."""
        match event:
            case TextDelta(text):
                self._add_text(text)
            case Progress():
                self._add_progress(event)
            case _:
                self._events.append(event)
                self._urgent = True
        self._something.set()
        if self._urgent or self._size >= MANY:
            self._enough.set()
        while self._size >= FULL:
            self._taken = trio.Event()
            await self._taken.wait()

    async def take(self) -> Events:
        """The next events, in order, once there are any and their moment has come."""
        await self._something.wait()
        if not self._urgent and self._clock() < self._not_before:
            with trio.move_on_at(self._not_before):
                await self._enough.wait()
        taken = self._cut()
        self._not_before = self._clock() + GATHER
        self._size = 0
        self._taken.set()
        if not self._events:
            self._urgent = False
            self._something, self._enough = trio.Event(), trio.Event()
        return taken

    def _add_text(self, text: str) -> None:
        events = self._events
        self._size += len(text)
        if events and isinstance(events[-1], _Text):
            events[-1].append(text)
        elif len(events) > 1 and isinstance(events[-1], Progress) and isinstance(events[-2], _Text):
            events[-2].append(text)
        else:
            events.append(_Text([text]))

    def _add_progress(self, event: Progress) -> None:
        if self._events and isinstance(self._events[-1], Progress):
            self._events[-1] = event
        else:
            self._events.append(event)

    def _cut(self) -> Events:
        """Takes all events up to the first that goes alone, or that one."""
        events = self._events
        lone = next((index for index, event in enumerate(events) if isinstance(event, ALONE)), len(events))
        count = max(lone, 1)
        taken, self._events = events[:count], events[count:]
        return tuple(TextDelta("".join(event)) if isinstance(event, _Text) else event for event in taken)


class _Text(list[str]):
    """Pieces of text that are joined when they are taken."""
