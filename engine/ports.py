"""What the engine asks of the outside, as Protocols, and the data that crosses the line.

Implemented in `persistence`; imported by nobody's implementation details. A caller of the engine builds
these once, in `web.application`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from attrs import field, frozen

from engine.jobs.job import JobChange, NewJob
from engine.tasks.events import Output, TaskEvent, Usage
from engine.tasks.state import Status, TaskState

# --- the journal: everything that must survive is written through it --------------------------------


class Durability(StrEnum):
    """Where an acknowledged fact is: in the database, or in this process's memory until the database is back."""

    DURABLE = "durable"
    MEMORY = "memory"


@frozen
class PredictionChange:
    """Upsert of a row of `predictions`, keyed by `id`: the attempt's uuid, written before the provider is called."""

    id: UUID
    task_id: UUID
    attempt: int
    provider: str
    status: str
    input: dict[str, Any] | None = field(default=None, repr=False)
    external_id: str | None = None
    output: Any = field(default=None, repr=False)
    logs: str | None = field(default=None, repr=False)
    metrics: dict[str, Any] | None = None
    error_message: str | None = None
    usage: Usage | None = None
    started_at: float | None = None
    completed_at: float | None = None
    held_by: str | None = None
    held_since: float | None = None
    """Since when (Unix time), and on which server's disk, its result waits to be stored. The first time stands."""
    in_doubt: bool | None = None
    """True: more may be at work for it at the provider, or be paid, than is on record. None leaves it as it was."""
    duplicates: int | None = None
    """Calls that were or may have been paid beside the one that counts."""


@frozen
class Entry:
    """One atomic step of one task: all of it is committed, or nothing.

    `task` is the state after `events`; its row is written from it. `new_job` is inserted, `job` is applied under its
    fence: when the fence is stale the whole entry is refused.
    """

    task: TaskState
    events: tuple[TaskEvent, ...] = ()
    new_job: NewJob | None = None
    job: JobChange | None = None
    predictions: tuple[PredictionChange, ...] = ()
    outputs: tuple[Output, ...] = ()


@frozen
class Committed:
    """The entry is in the database."""


@frozen
class Buffered:
    """The database is away: the entry is in memory, in order; `Committed` or `Refused` follows on the same callback."""


@frozen
class Duplicate:
    """The user's idempotency key already belongs to this task; nothing was written."""

    task_id: UUID


@frozen
class Refused:
    """Nothing was written: `stale_fence`, `terminal` (another outcome was first), `conflict`, `poison`, or, in strict
    mode, `unavailable` (the database went away)."""

    reason: str


Receipt = Committed | Buffered | Duplicate | Refused
Notify = Callable[[Receipt], None]


class JournalFull(Exception):
    """The buffer is at its bound (or strict mode is on and the database is away). `retry_after` is in seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the journal cannot take more; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


@frozen
class JournalHealth:
    """What operators and `/readyz` show. `since` is the Unix time of the last change of `up`; `accepting`: whether new
    tasks are taken now."""

    up: bool
    since: float
    buffered: int
    bound: int
    last_error: str | None = None
    accepting: bool = True


class Journal(Protocol):
    """Group commit of entries, in the order in which they were submitted for each task.

    New tasks are refused with JournalFull above the bound; entries of tasks that are under way only far above it.
    """

    def submit(self, entry: Entry, notify: Notify) -> None:
        """Takes an entry without waiting; `notify` is called on the loop with each receipt. Raises JournalFull."""
        ...

    async def write(self, entry: Entry) -> Receipt:
        """Submits and waits for the first receipt."""
        ...

    def health(self) -> JournalHealth: ...


# --- reading back ------------------------------------------------------------------------------------


@frozen
class Page:
    """A page of history, newest first; `cursor` fetches the next one."""

    tasks: tuple[TaskState, ...]
    cursor: str | None


class TaskStore(Protocol):
    """Tasks as PostgreSQL has them. Every method raises StorageDown when the database is away."""

    async def load(self, task_id: UUID) -> TaskState | None:
        """Latest snapshot + events after it, or the fold of the whole log."""
        ...

    async def events(self, task_id: UUID, after: int = 0, limit: int = 500) -> tuple[TaskEvent, ...]: ...

    async def history(
        self,
        user: str,
        status: Status | None = None,
        model: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page: ...

    async def by_idempotency_key(self, user: str, key: str) -> UUID | None: ...

    async def unfinished(self, after: tuple[int, float, UUID] | None, limit: int) -> tuple[TaskState, ...]:
        """Whole states of tasks that are not terminal, by (priority, created_at, id), after the given key."""
        ...

    async def ahead(self, known: Mapping[UUID, int]) -> tuple[UUID, ...]:
        """Those of these tasks, each with the last seq that is known here, whose log goes on: by another server."""
        ...

    async def open_prediction(self, task_id: UUID) -> PredictionChange | None:
        """The latest prediction of a task whose end is not known: one to adopt instead of buying another."""
        ...

    async def open_attempts(self, attempts: Sequence[UUID]) -> frozenset[UUID]:
        """Those of these attempts whose end is not on record, of tasks that are not over."""
        ...


class Snapshots(Protocol):
    """Takes note of changed tasks and writes them down now and then. Both calls are a dictionary's assignment."""

    def dirty(self, state: TaskState) -> None:
        """The task is as `state` says now; only the newest state counts."""
        ...

    def forget(self, task_id: UUID) -> None:
        """The task is finished and stored: it needs no snapshot any more."""
        ...


class SnapshotStore(Protocol):
    async def save(self, states: Sequence[TaskState]) -> None:
        """Writes one snapshot for each state, in one batch. One that is ahead of the task's log is passed over."""
        ...


class StorageDown(Exception):
    """The database cannot be reached now."""


# --- models and users --------------------------------------------------------------------------------


@frozen
class Model:
    """A row of the model registry. `price` maps units (`input_token`, `output_token`, `second`) to US dollars."""

    id: UUID
    name: str
    provider: str
    slug: str
    version: str
    category: str
    owner: str | None = None
    description: str | None = None
    documentation_url: str | None = None
    input_schema: dict[str, Any] = field(factory=dict)
    defaults: dict[str, Any] = field(factory=dict)
    fallbacks: tuple[UUID, ...] = ()
    price: dict[str, float] = field(factory=dict)
    settings: dict[str, Any] = field(factory=dict)
    is_active: bool = True


class ModelStore(Protocol):
    async def all(self) -> tuple[Model, ...]: ...

    async def put(self, model: Model) -> None:
        """Inserts or replaces by id. Raises NameTaken."""
        ...

    async def remove(self, model_id: UUID) -> bool: ...


class NameTaken(Exception):
    """Another model has this (name, version) or (provider, owner, slug, version)."""


class UserStore(Protocol):
    async def preferences(self, user: str) -> dict[str, Any]: ...

    async def put_preferences(self, user: str, preferences: dict[str, Any]) -> None: ...


class Spending(Protocol):
    async def spent_on(self, user: str, day: date) -> float:
        """US dollars that the user's attempts which ended on this day of UTC cost. Raises StorageDown."""
        ...


# --- artifacts ---------------------------------------------------------------------------------------


@frozen
class StoredObject:
    """What a store has under a name; `size` in bytes."""

    name: str
    size: int
    content_type: str


@frozen
class Listed:
    """An object of a store; `changed_at` in Unix time."""

    name: str
    size: int
    changed_at: float


class ArtifactStore(Protocol):
    """Where outputs are kept: a bucket or a folder. A name is written once; its content never changes."""

    async def put(self, name: str, source: Path, content_type: str) -> StoredObject:
        """Stores a local file, which must not change any more. Where the name is taken, what is there stays, and must
        be the same. Raises StoreFailed."""
        ...

    async def url(self, name: str, expires_in: float) -> str:
        """A link that anyone who has it may fetch for `expires_in` seconds."""
        ...

    async def delete(self, name: str) -> None:
        """Removes an object; a missing one is fine. A name that ends with a slash means all below it. Raises
        StoreFailed."""
        ...

    async def list(self, after: str, limit: int) -> tuple[Listed, ...]:
        """At most `limit` objects with names after `after`, in the order of their names. Raises StoreFailed."""
        ...

    async def tidy(self, before: float) -> None:
        """Removes what writes that were cut short have left, before this Unix time. Raises StoreFailed."""
        ...


class StoreFailed(Exception):
    """An artifact could not be stored now; another try may do better."""
