"""Whose turn it is: start-time fair queueing over users. Pure; imports nothing of ours.

Every waiting job has a turn. A user's jobs take consecutive turns from the one now being served, so a thousand jobs of
one user stretch over a thousand turns, and one job of another user lands among the first of them. Jobs leave in the
order (priority, turn, arrival). The SQL of the queue computes turns by the same two numbers (`next_turn`), and an index
in that order makes a claim a plain index scan.

Source of the idea: Goyal, Vin, Cheng, "Start-time Fair Queueing", 1996, with every job of weight one.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Generic, TypeVar
from uuid import UUID

from attrs import define, field

T = TypeVar("T")


def next_turn(head: int | None, last: int | None) -> int:
    """The turn of a new job: behind the user's `last` waiting one, and not before the `head` of the line.

    `head` is the lowest turn of any waiting job, `last` the highest of this user's; None when there is none.
    """
    floor = 0 if head is None else head
    return floor if last is None else max(floor, last + 1)


def ahead(mine: int, others: Iterable[tuple[int, int]]) -> int:
    """How many waiting jobs leave before a new job of a user who has `mine` waiting, in one priority.

    `others` gives, for the other users, (number of waiting jobs, how many users have that many).
    """
    return mine + sum(min(waiting, mine + 1) * users for waiting, users in others)


@define
class _Line:
    """The waiting jobs of one priority."""

    heap: list[tuple[int, int, UUID]] = field(factory=list)
    last: dict[str, int] = field(factory=dict)
    waiting: Counter[str] = field(factory=Counter)


@define
class FairQueue(Generic[T]):
    """Jobs waiting in memory, in fair order. Removal by id is O(1): the heap forgets lazily."""

    _lines: dict[int, _Line] = field(factory=dict)
    _items: dict[UUID, tuple[T, int, str]] = field(factory=dict)
    _arrivals: count[int] = field(factory=count)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._items

    def __iter__(self) -> Iterator[T]:
        return (item for item, _, _ in self._items.values())

    def push(self, job_id: UUID, item: T, priority: int, user: str | None) -> None:
        """Adds a job at its turn. An id that already waits is left where it is."""
        if job_id in self._items:
            return
        name = user or ""
        line = self._lines.setdefault(priority, _Line())
        turn = next_turn(self._head(line), line.last.get(name))
        line.last[name] = turn
        line.waiting[name] += 1
        heapq.heappush(line.heap, (turn, next(self._arrivals), job_id))
        self._items[job_id] = (item, priority, name)

    def pop(self) -> T | None:
        """Takes the job whose turn it is, or None."""
        for priority in sorted(self._lines):
            line = self._lines[priority]
            if self._head(line) is not None:
                return self.discard(line.heap[0][2])
        return None

    def discard(self, job_id: UUID) -> T | None:
        """Takes a job out of the line, or returns None when it does not wait."""
        entry = self._items.pop(job_id, None)
        if entry is None:
            return None
        item, priority, user = entry
        line = self._lines[priority]
        line.waiting[user] -= 1
        if not line.waiting[user]:
            del line.waiting[user], line.last[user]
        return item

    def _head(self, line: _Line) -> int | None:
        while line.heap and line.heap[0][2] not in self._items:
            heapq.heappop(line.heap)
        return line.heap[0][0] if line.heap else None
