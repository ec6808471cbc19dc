"""How often streams of text are read: as often as an eye wants it, and as the machine can bear.

Each read costs about the same, whether it brings one token or ten. So a stream that has begun is left alone for a
moment after each read, and the kernel gathers what comes. A stream that is slower than the pace does not notice it,
and the first text never waits. Imports nothing of ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import trio

READS = 5000
"""Reads a second, of all streams together."""
SHORTEST = 0.02
LONGEST = 0.1
"""Seconds between two reads of a stream, at least and at most: text that comes ten times a second looks fluent."""
GRID = 0.005
"""Seconds. Streams that are due at nearly the same time are read in one turn of the loop."""


class Pace:
    """Shared by the streams of a node, whose `interval` it sets by their number."""

    def __init__(self) -> None:
        self.streams = 0
        self._due: dict[float, trio.lowlevel.ParkingLot] = {}

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Counts one more stream for the length of the block."""
        self.streams += 1
        try:
            yield
        finally:
            self.streams -= 1

    @property
    def interval(self) -> float:
        """Seconds between two reads of a stream."""
        return min(max(self.streams / READS, SHORTEST), LONGEST)

    async def rest(self, read_at: float) -> None:
        """Waits until a stream that was read at `read_at` (of trio's clock) may be read again."""
        due = math.ceil((read_at + self.interval) / GRID) * GRID
        while trio.current_time() < due:
            others = self._due.get(due)
            if others is None:
                await self._lead(due)
            else:
                await others.park()

    async def _lead(self, due: float) -> None:
        """Sleeps for all who are due then: a timer costs more than the rest of a wait. A leader that is cancelled
        wakes the others early, and one of them leads."""
        others = self._due[due] = trio.lowlevel.ParkingLot()
        try:
            await trio.sleep_until(due)
        finally:
            del self._due[due]
            others.unpark_all()


EVERYBODYS = Pace()
"""The pace of this OS process: its streams share one loop."""
