"""The line of entries that wait to be written: in order for each task, independent between tasks. No I/O.

A task has at most one entry in front (ready, or in a lane's hands); the others of that task wait behind it. So a
batch never holds two entries of one task, and taking one costs the same however long the line is. One that something of
its own keeps from being written is set aside, so that it keeps no other from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from uuid import UUID

import trio
from attrs import define, field

from persistence.journal.rows import Pending

BATCH_ENTRIES = 512
BATCH_BYTES = 4 * 1024 * 1024


@define(eq=False)
class Line:
    """`count` entries of together `bytes`, until they are `done`."""

    count: int = 0
    bytes: int = 0
    _ready: deque[Pending] = field(init=False, factory=deque)
    _behind: dict[UUID, deque[Pending]] = field(init=False, factory=dict)
    _taken: dict[int, list[Pending]] = field(init=False, factory=dict)
    _aside: deque[Pending] = field(init=False, factory=deque)
    _work: trio.Event = field(init=False, factory=trio.Event)
    _aside_work: trio.Event = field(init=False, factory=trio.Event)
    _empty: trio.Event = field(init=False, factory=trio.Event)

    def enter(self, pending: Pending) -> None:
        """Counts an entry that the journal has taken; it may join the line later."""
        self.count += 1
        self.bytes += pending.size

    def leave(self, pending: Pending) -> None:
        """Uncounts it."""
        self.count -= 1
        self.bytes -= pending.size
        if not self.count:
            self._empty.set()

    def join(self, pending: Pending) -> None:
        """The last of its task."""
        behind = self._behind.get(pending.task_id)
        if behind is not None:
            behind.append(pending)
            return
        self._behind[pending.task_id] = deque()
        self._ready.append(pending)
        self._work.set()

    def done(self, pending: Pending) -> None:
        """An entry that was in front is settled: the next one of its task moves up."""
        behind = self._behind[pending.task_id]
        if behind:
            self._ready.append(behind.popleft())
            self._work.set()
        else:
            del self._behind[pending.task_id]

    async def take(self, lane: int) -> list[Pending]:
        """The next batch, once there is one; it is the lane's until `put_back`."""
        while True:
            while not self._ready:
                if self._work.is_set():
                    self._work = trio.Event()
                await self._work.wait()
            if batch := self._batch():
                self._taken[lane] = batch
                return batch

    def _batch(self) -> list[Pending]:
        batch: list[Pending] = []
        size = 0
        while self._ready and len(batch) < BATCH_ENTRIES and (not batch or size < BATCH_BYTES):
            pending = self._ready.popleft()
            if not pending.settled:
                batch.append(pending)
                size += pending.size
        return batch

    def put_back(self, lane: int) -> None:
        """The lane is done with its batch; what it has not settled is in front again."""
        left = [pending for pending in self._taken.pop(lane) if not pending.settled]
        for pending in left:
            pending.unsure = False  # the next one who writes it looks whether it is there
        self._ready.extendleft(reversed(left))

    def set_aside(self, pending: Pending) -> None:
        """Out of its lane's hands; it is still in front of its task's others."""
        for batch in self._taken.values():
            if pending in batch:
                batch.remove(pending)
        pending.aside = True
        self._aside.append(pending)
        self._aside_work.set()

    async def next_aside(self) -> Pending:
        """The one that has been aside for longest, once there is one; it stays there until it is settled."""
        while True:
            while self._aside:
                if not self._aside[0].settled:
                    return self._aside[0]
                self._aside.popleft()
            self._aside_work = trio.Event()
            await self._aside_work.wait()

    def turn_aside(self) -> None:
        """The one in front could not be written yet: the others that are aside come first."""
        self._aside.rotate(-1)

    def aside(self) -> list[Pending]:
        return [pending for pending in self._aside if not pending.settled]

    def taken(self) -> Iterator[Pending]:
        """What is in the lanes' hands."""
        return (pending for batch in self._taken.values() for pending in batch if not pending.settled)

    def waiting(self) -> list[Pending]:
        """All that is not settled, those in front first."""
        behind = (pending for waiting in self._behind.values() for pending in waiting)
        return [pending for pending in (*self.taken(), *self._aside, *self._ready, *behind) if not pending.settled]

    async def emptied(self) -> None:
        """Returns when nothing is counted any more. The caller sets the deadline."""
        while self.count:
            if self._empty.is_set():
                self._empty = trio.Event()
            await self._empty.wait()
