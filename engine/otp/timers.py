"""One clock for a whole node: a heap of deadlines and one task that sleeps until the nearest.

Knows nothing of processes. A timer of trio's own costs a cancel scope (6 µs); one of these costs a heap entry.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

import trio
from attrs import define, field

Action = Callable[[], object]


@define(order=False, eq=False)
class Timer:
    """A deadline on trio's clock. `cancel` is idempotent and tells whether the timer had still to fire."""

    when: float
    serial: int
    action: Action | None
    _timers: Timers = field(repr=False)

    def __lt__(self, other: Timer) -> bool:
        return (self.when, self.serial) < (other.when, other.serial)

    def cancel(self) -> bool:
        if self.action is None:
            return False
        self.action = None
        self._timers.forget_one()
        return True


class Timers:
    """Deadlines of a node. Actions run on the loop, in order of deadline, and must not raise or wait."""

    def __init__(self) -> None:
        self._heap: list[Timer] = []
        self._cancelled = 0
        self._serials = itertools.count()
        self._sleep: trio.CancelScope | None = None

    def after(self, seconds: float, action: Action) -> Timer:
        timer = Timer(trio.current_time() + seconds, next(self._serials), action, self)
        heapq.heappush(self._heap, timer)
        if self._sleep is not None and timer.when < self._sleep.deadline:
            self._sleep.deadline = timer.when
        return timer

    def forget_one(self) -> None:
        """Counts a cancelled timer; sweeps them out when they are the larger half, so that they cannot pile up."""
        self._cancelled += 1
        if self._cancelled > 1000 + len(self._heap) // 2:
            self._heap = [timer for timer in self._heap if timer.action is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    async def run(self) -> None:
        while True:
            deadline = self._heap[0].when if self._heap else math.inf
            with trio.CancelScope(deadline=deadline) as self._sleep:
                await trio.sleep_forever()
            self._fire(trio.current_time())

    def _fire(self, now: float) -> None:
        while self._heap and self._heap[0].when <= now:
            timer = heapq.heappop(self._heap)
            action, timer.action = timer.action, None
            if action is None:
                self._cancelled -= 1
            else:
                action()
