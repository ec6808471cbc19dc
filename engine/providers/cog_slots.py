"""What is known of one Cog server over time: who of us runs on it, who waits for a slot, whether its word reaches us.

State of one event loop; no effects but waiting. May import `cog_wire`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import trio
from attrs import define, field

from engine.providers.cog_wire import Server


@define(eq=False)
class Slots:
    """`lossy`: the end of a prediction did not reach us by webhook, so the next ones are held by their connections,
    until one does. `crowded`: more than one prediction was seen at work at once; `single`: one filled the server."""

    server: Server
    lossy: bool = False
    crowded: bool = False
    single: bool = False
    running: dict[UUID, float] = field(factory=dict)
    """Since when, by trio's clock, in the order in which they were taken."""
    _line: trio.StrictFIFOLock = field(factory=trio.StrictFIFOLock)
    _freed: trio.Event = field(factory=trio.Event)

    @property
    def full(self) -> bool:
        """Whether ours fill it already, as far as we were told how many it takes."""
        return self.server.slots is not None and len(self.running) >= self.server.slots

    @property
    def at_once(self) -> int | None:
        """How many it takes at once: told, or seen; None: not known."""
        if self.server.slots is not None:
            return self.server.slots
        return 2 if self.crowded else 1 if self.single else None

    @property
    def waiting(self) -> int:
        """How many stand in line for a slot."""
        statistics = self._line.statistics()
        return statistics.tasks_waiting + int(statistics.locked)

    def took(self, attempt_id: UUID) -> None:
        """The server runs this one now."""
        self.running[attempt_id] = trio.current_time()

    def ended(self, attempt_id: UUID) -> None:
        if self.running.pop(attempt_id, None) is not None:
            self._freed.set()
            self._freed = trio.Event()

    def passed(self, attempt_id: UUID) -> bool:
        """Whether a server of one slot has taken another one since: then this one is over."""
        return self.at_once == 1 and attempt_id in self.running and next(reversed(self.running)) != attempt_id

    def told(self, attempt_id: UUID, terminal: bool) -> None:
        """Word of it has come: by webhook, or from the record of webhooks."""
        if terminal:
            self.lossy = False
        elif self.passed(attempt_id):
            self.crowded = True

    def seen(self, status: str) -> None:
        """What its health said just after it had taken the only one of ours that runs."""
        if len(self.running) == 1 and status == "BUSY":
            self.single = True

    @contextmanager
    def in_line(self) -> Iterator[None]:
        """The head of the line, which alone asks again and again. The caller has acquired it with `stand`."""
        try:
            yield
        finally:
            self._line.release()

    async def stand(self, limit: float) -> bool:
        """Waits for those who came before; False when it was in vain until `limit`, by trio's clock."""
        with trio.move_on_at(limit):
            await self._line.acquire()
            return True
        return False

    async def freed(self, within: float) -> None:
        """Waits until one of ours has ended, or for so many seconds: the slot may be somebody else's."""
        with trio.move_on_after(within):
            await self._freed.wait()
