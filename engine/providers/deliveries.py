"""Where webhooks meet the attempt that waits for them, inside this process.

A delivery for an attempt that nobody here waits for is not lost: it was stored before it came here, and whoever takes
the attempt up asks the provider. Only the newest news counts, so a slot holds one. Imports nothing of ours but `wire`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar
from uuid import UUID

import trio
from attrs import define, field

P = TypeVar("P")


@define(eq=False)
class Waiting(Generic[P]):
    """An attempt that waits; `take` gives the newest delivery, or None when none came in time."""

    _newer: Callable[[P, P], bool]
    _latest: P | None = None
    _arrived: trio.Event = field(factory=trio.Event)

    def put(self, prediction: P) -> None:
        if self._latest is None or self._newer(prediction, self._latest):
            self._latest = prediction
        self._arrived.set()

    async def take(self, within: float) -> P | None:
        with trio.move_on_after(within):
            await self._arrived.wait()
        latest, self._latest = self._latest, None
        self._arrived = trio.Event()
        return latest


class Deliveries(Generic[P]):
    """All attempts of one provider that wait for webhooks. `newer(a, b)`: whether `a` tells more than `b`."""

    def __init__(self, newer: Callable[[P, P], bool]) -> None:
        self._newer = newer
        self._waiting: dict[UUID, Waiting[P]] = {}

    @contextmanager
    def waiting(self, attempt_id: UUID) -> Iterator[Waiting[P]]:
        slot = self._waiting[attempt_id] = Waiting(self._newer)
        try:
            yield slot
        finally:
            if self._waiting.get(attempt_id) is slot:
                del self._waiting[attempt_id]

    def awaits(self, attempt_id: UUID) -> bool:
        """Whether somebody here waits for this attempt's deliveries."""
        return attempt_id in self._waiting

    def deliver(self, attempt_id: UUID, prediction: P) -> bool:
        """Hands a delivery over; False when nobody here waits for it."""
        slot = self._waiting.get(attempt_id)
        if slot is None:
            return False
        slot.put(prediction)
        return True
