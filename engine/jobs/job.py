"""A job and its life, as data: states, lease, fence, and what a worker may answer.

Pure; imports nothing of ours. The rules (which state follows which) are in `lifecycle`, the SQL in `persistence`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any
from uuid import UUID

from attrs import field, frozen


class JobState(StrEnum):
    """The states of a job (Oban's words). The last three are terminal."""

    SUSPENDED = "suspended"
    AVAILABLE = "available"
    SCHEDULED = "scheduled"
    EXECUTING = "executing"
    RETRYABLE = "retryable"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    DISCARDED = "discarded"


@frozen
class NewJob:
    """A job to be. `worker` names the handler; `user` is the key of fairness; times are Unix seconds; `home` is the
    server on which its task lives."""

    id: UUID
    worker: str
    queue: str = "default"
    args: dict[str, Any] = field(factory=dict)
    task_id: UUID | None = None
    user: str | None = None
    priority: int = 4
    max_attempts: int = 20
    scheduled_at: float | None = None
    unique_key: str | None = None
    trace_parent: str | None = None
    home: str | None = None


@frozen
class Fence:
    """Proof of who holds a job now. Every write of a worker carries it and is refused once it is stale."""

    job_id: UUID
    attempt: int
    token: UUID


@frozen
class Lease:
    """A claim: `fence` holds the job for `node` in the life `boot` until `seconds` after it was last written."""

    fence: Fence
    node: str
    boot: UUID
    seconds: float


@frozen
class Job:
    """A claimed job, as a worker gets it. `rescues` counts the times its node was lost under it."""

    fence: Fence
    worker: str
    queue: str
    args: dict[str, Any]
    task_id: UUID | None
    user: str | None
    priority: int
    attempt: int
    max_attempts: int
    inserted_at: float
    scheduled_at: float
    lease_expires_at: float
    trace_parent: str | None = None
    rescues: int = 0

    @property
    def id(self) -> UUID:
        return self.fence.job_id


@frozen
class Complete:
    """The job is done."""


@frozen
class Retry:
    """The attempt failed; the job runs again at `at` (Unix seconds), or by the queue's back-off when None."""

    error: str
    at: float | None = None


@frozen
class Snooze:
    """Not now: run again at `at` without counting this attempt."""

    at: float
    reason: str = ""


@frozen
class Discard:
    """The job failed for good: a dead letter."""

    error: str


@frozen
class Cancel:
    """The job was cancelled."""

    reason: str = "requested"


@frozen
class Recorded:
    """The outcome already stands in the journal, in one transaction with the task's event; nothing is left to write."""


JobOutcome = Complete | Retry | Snooze | Discard | Cancel


@frozen
class Hold:
    """Nothing happens to the job: what goes with this in one entry is refused unless the fence still holds."""


@frozen
class JobChange:
    """What happens to an existing job in a journal entry. Without a fence: an order by its owner (cancel, retry)."""

    job_id: UUID
    outcome: JobOutcome | Hold
    fence: Fence | None = None
