"""All WebSockets at once: one task that reads from whoever has spoken, one that writes for whoever has something
to say, one that watches the clock. So a connected client costs no task here, and a turn of the loop one wake-up for
all of them. May import this package.

The sockets are in a selector of their own, whose one file descriptor the loop waits for.
"""

from __future__ import annotations

import selectors
from collections.abc import Callable, Iterable
from selectors import EVENT_READ, EVENT_WRITE
from typing import TypeVar

import trio

from web.endpoint.faults import FaultLog
from web.endpoint.limits import Budget
from web.endpoint.roster import Roster
from web.endpoint.settings import EndpointSettings
from web.endpoint.stream import StreamTransport
from web.sockets.transport import CloseCode

T = TypeVar("T")

SHORT_ROUND = 0.0003
"""A round of writing that takes less (in seconds) is followed by the next as soon as there is one."""
REST = 2.0
LONGEST_REST = 0.002
"""A longer one is followed by a rest of `REST` times its length, in seconds at most this: under load frames gather for
fewer and larger writes, which is what makes room for the load."""
SLICE = 0.002
"""Seconds that the hub may hold the loop before it lets others run."""


class Hub:
    """`run` is its life; everything else is called by transports, on the loop."""

    def __init__(self, settings: EndpointSettings, roster: Roster, faults: FaultLog) -> None:
        self.settings = settings
        self.roster = roster
        self.faults = faults
        self.budget = Budget(settings.max_buffered)
        self.now: Callable[[], float] = trio.current_time
        self._selector = selectors.DefaultSelector()
        self._members: set[StreamTransport] = set()
        self._dirty: list[StreamTransport] = []
        self._flusher = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Runs until cancelled; whoever is still connected then is dropped."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._poll_forever)
                nursery.start_soon(self._flush_forever)
                nursery.start_soon(self._sweep_forever)
        finally:
            for transport in tuple(self._members):
                transport.abort()
            self._selector.close()

    # --- asked by transports -------------------------------------------------------------------------

    def enter(self, transport: StreamTransport) -> None:
        self._members.add(transport)
        self.roster.add(transport)
        self.watch(transport)

    def leave(self, transport: StreamTransport) -> None:
        self.roster.remove(transport)
        if transport in self._members:
            self._members.remove(transport)
            if transport.interest:
                self._selector.unregister(transport)
                transport.interest = 0

    def watch(self, transport: StreamTransport) -> None:
        """Brings what the kernel is asked in line with what the transport wants now."""
        wanted = (EVENT_READ if transport.wants_read else 0) | (EVENT_WRITE if transport.wants_write else 0)
        if wanted == transport.interest or transport not in self._members:
            return
        if not transport.interest:
            self._selector.register(transport, wanted, transport)
        elif not wanted:
            self._selector.unregister(transport)
        else:
            self._selector.modify(transport, wanted, transport)
        transport.interest = wanted

    def soon(self, transport: StreamTransport) -> None:
        """Flushes it at the end of this turn of the loop, with whatever else it has by then."""
        self._dirty.append(transport)
        if len(self._dirty) == 1:
            self._flusher.unpark()

    # --- the three tasks -----------------------------------------------------------------------------

    async def _poll_forever(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._selector.fileno())
            await in_slices(self._poll_one, self._selector.select(0))

    @staticmethod
    def _poll_one(ready: tuple[selectors.SelectorKey, int]) -> None:
        key, events = ready
        transport: StreamTransport = key.data
        if events & transport.interest & EVENT_WRITE:
            transport.flush()
        if events & transport.interest & EVENT_READ:
            transport.read()

    async def _flush_forever(self) -> None:
        rested_at = 0.0
        while True:
            if not self._dirty:
                await self._flusher.park()
            elif self.now() < rested_at:
                await trio.sleep_until(rested_at)
            else:
                await trio.lowlevel.checkpoint()  # a turn for those who will add to what is dirty
            began = self.now()
            if began >= rested_at:
                dirty, self._dirty = self._dirty, []
                await in_slices(StreamTransport.flush, dirty)
                took = self.now() - began
                rested_at = began + took + (min(took * REST, LONGEST_REST) if took > SHORT_ROUND else 0.0)

    async def _sweep_forever(self) -> None:
        limits = self.settings
        timeouts = [timeout for timeout in (limits.idle_timeout, limits.close_timeout) if timeout]
        period = min([*timeouts, 4.0]) / 4
        while True:
            await trio.sleep(period)
            await in_slices(self._sweep_one, tuple(self._members))
            self.roster.expire()

    def _sweep_one(self, transport: StreamTransport) -> None:
        now = self.now()
        if transport.deadline is not None:
            if now >= transport.deadline:
                transport.abort()
        elif self.settings.idle_timeout and now - transport.heard_at >= self.settings.idle_timeout:
            transport.close(CloseCode.GOING_AWAY, "idle")


async def in_slices(act: Callable[[T], None], items: Iterable[T]) -> None:
    """Acts on each item, letting the loop run whenever that has taken a slice of time."""
    until = trio.current_time() + SLICE
    for item in items:
        act(item)
        if trio.current_time() >= until:
            await trio.lowlevel.checkpoint()
            until = trio.current_time() + SLICE
