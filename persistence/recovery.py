"""What was unfinished when the server last ended, in the order in which it should come back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID

from engine.ports import TaskStore
from engine.tasks.state import TaskState

PAGE = 500


async def unfinished(store: TaskStore, page: int = PAGE) -> AsyncIterator[tuple[TaskState, ...]]:
    """Pages of whole states, by priority, then age. What is accepted meanwhile may or may not appear.

    Raises:
        StorageDown: go on later, from the start: those that are back already are passed over by their registration.
    """
    after: tuple[int, float, UUID] | None = None
    while states := await store.unfinished(after, page):
        yield states
        last = states[-1]
        after = (last.priority, last.created_at, last.id)
