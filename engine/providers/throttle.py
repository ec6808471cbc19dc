"""One door for requests that an account may make only so often: after a refusal all wait, then one at a time tries.

Those who wait in line burn no attempt and write nothing down; but each holds a worker, so the line is short, and
whoever finds it full, or the wait too long, is told when to come again.
"""

from __future__ import annotations

import math

import trio
from attrs import define, field

LINE = 32
LONGEST = 60.0
"""Seconds that somebody waits at the door, at most."""


@define(eq=False)
class Throttle:
    """Seconds of trio's clock. Open until the first `refused`."""

    line: int = LINE
    longest: float = LONGEST
    _until: float = -math.inf
    _pause: float = 0.0
    _waiting: int = 0
    _turn: trio.Lock = field(factory=trio.Lock)

    async def enter(self) -> float | None:
        """Waits until a request may go. Not None: it may not; the seconds after which to come again."""
        if not self._closed and not self._waiting:
            return None
        if self._waiting >= self.line or self._left > self.longest:
            return self._left + self._pause * self._waiting
        self._waiting += 1
        try:
            with trio.move_on_after(self.longest) as patience:
                async with self._turn:
                    while True:  # whoever was before may have been refused, and closed it again
                        await trio.sleep_until(self._until)
                        if not self._closed:
                            break
            return self._left + self._pause * self._waiting if patience.cancelled_caught else None
        finally:
            self._waiting -= 1

    def refused(self, seconds: float) -> None:
        """A request was refused; none may go for so long."""
        self._pause = seconds
        self._until = max(self._until, trio.current_time() + seconds)

    @property
    def _left(self) -> float:
        return max(0.0, self._until - trio.current_time())

    @property
    def _closed(self) -> bool:
        return self._left > 0
