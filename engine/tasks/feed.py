"""Between a provider that talks and a TaskServer that listens: what comes faster than it is wanted is joined.

The first text goes out at once; what follows is gathered for a moment. Order is kept; progress and figures of usage are
replaced by newer ones; nothing else is lost. Bounded: a provider that is far ahead waits.
"""

from __future__ import annotations

from collections.abc import Callable

import trio
from trio.lowlevel import ParkingLot

from engine.providers.protocol import OutputReady, Progress, ProviderEvent, Sabotage, TextDelta, UsageReported

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
        self._taker = ParkingLot()
        self._putter = ParkingLot()

    async def put(self, event: ProviderEvent) -> None:
        """Adds an event; waits while the other side is far behind."""
        before = self._enough or not self._events
        match event:
            case TextDelta(text):
                self._add_text(text)
            case Progress() | UsageReported():
                self._add_newest(event)
            case _:
                self._events.append(event)
                self._urgent = True
        if before or self._enough:
            self._taker.unpark()
        while self._size >= FULL:
            await self._putter.park()

    async def take(self) -> Events:
        """The next events, in order, once there are any and their moment has come."""
        while not self._events:
            await self._taker.park()
        if not self._enough and self._clock() < self._not_before:
            with trio.move_on_at(self._not_before):
                while not self._enough:
                    await self._taker.park()
        taken = self._cut()
        self._not_before = self._clock() + GATHER
        self._size = 0
        self._putter.unpark_all()
        self._urgent = self._urgent and bool(self._events)
        return taken

    @property
    def _enough(self) -> bool:
        """Whether what is here need not wait for more."""
        return self._urgent or self._size >= MANY

    def _add_text(self, text: str) -> None:
        events = self._events
        self._size += len(text)
        if events and isinstance(events[-1], _Text):
            events[-1].append(text)
        elif len(events) > 1 and isinstance(events[-1], Progress) and isinstance(events[-2], _Text):
            events[-2].append(text)
        else:
            events.append(_Text([text]))

    def _add_newest(self, event: Progress | UsageReported) -> None:
        if self._events and type(self._events[-1]) is type(event):
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
