"""One door for requests that an account may make only so often: after a refusal all wait, then one at a time tries.

Those who wait in line burn no attempt and write nothing down; but each holds a worker, so the line is short, and
whoever finds it full, or the wait too long, is told when to come again.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from attrs import define, field

LINE = 32
LONGEST = 60.0
"""Seconds that somebody waits at the door, at most; and for so long after a refusal one goes at a time."""


@define(eq=False)
class Throttle:
    """Seconds of trio's clock. Open to all until the first `refused`."""

    line: int = LINE
    longest: float = LONGEST
    _until: float = -math.inf
    _pause: float = 0.0
    _waiting: int = 0
    _turn: trio.Lock = field(factory=trio.Lock)

    @asynccontextmanager
    async def door(self) -> AsyncIterator[float | None]:
        """Waits until a request may go, which is made in the block. Not None: it may not; when to come again."""
        if trio.current_time() > self._until + self.longest:
            yield None
        elif self._waiting >= self.line or self._left > self.longest or not await self._in_turn():
            yield max(self._left + self._pause * self._waiting, 0.5)
        else:
            try:
                yield None
            finally:
                self._turn.release()

    def refused(self, seconds: float) -> None:
        """A request was refused; none may go for so long."""
        self._pause = seconds
        self._until = max(self._until, trio.current_time() + seconds)

    @property
    def _left(self) -> float:
        return max(0.0, self._until - trio.current_time())

    async def _in_turn(self) -> bool:
        """Takes the turn, once the door is open; False: it took too long."""
        self._waiting += 1
        try:
            with trio.move_on_after(self.longest):
                await self._turn.acquire()
                try:
                    await trio.sleep_until(self._until)
                except BaseException:
                    self._turn.release()
                    raise
                return True
            return False
        finally:
            self._waiting -= 1
