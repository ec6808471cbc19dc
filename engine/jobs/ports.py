"""What the queue asks of the database, and what the journal asks of the queue: Protocols and the data between them.

`JobStore` is implemented in `persistence.jobs.store`; `QueueDoor` by `engine.jobs.queues`. Imports only data.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from attrs import field, frozen, validators

from engine.jobs.job import Fence, Job, JobChange, JobState, Lease, NewJob
from engine.ports import Receipt

# --- the journal's door to the queue -----------------------------------------------------------------


class QueueDoor(Protocol):
    """How the journal tells the queue of jobs that travel in its entries.

    Every method is synchronous, quick, and never raises. A job that can run here at once is inserted already claimed:
    `reserve` hands out the lease just before the INSERT is built, so that insert and claim are one commit.
    """

    def reserve(self, job: NewJob) -> Lease | None:
        """A lease to insert the job under, or None: insert it `available`. The same id gets the same answer."""
        ...

    def successor(self, fence: Fence) -> Lease | None:
        """The lease of the next attempt, when the job was already claimed again in memory after `fence`."""
        ...

    def inserted(self, job: NewJob, receipt: Receipt) -> None:
        """Each receipt of an entry that carried a new job; `Buffered` again after each failed flush."""
        ...

    def changed(self, change: JobChange, receipt: Receipt) -> None:
        """Each receipt of an entry that carried a change of a job."""
        ...


# --- what the queue asks of the database --------------------------------------------------------------


@frozen
class Rate:
    """At most `allowed` starts in `period` seconds, over all nodes; unused allowance is kept up to `allowed`."""

    allowed: int = field(validator=validators.gt(0))
    period: float = field(default=1.0, validator=validators.gt(0.0))

    @property
    def per_second(self) -> float:
        return self.allowed / self.period


@frozen
class Claim:
    """A wish for up to `demand` jobs of one queue, held by this node for `seconds`."""

    queue: str
    demand: int
    node: str
    boot: UUID
    seconds: float
    global_limit: int | None = None
    rate: Rate | None = None


@frozen
class Claimed:
    """`more` says that the line may hold further jobs; `wait` (seconds) that a limit forbids them until then."""

    jobs: tuple[Job, ...]
    more: bool
    wait: float | None = None


@frozen
class Staged:
    """Queues that received due jobs, and the seconds until the next job is due (None: none is scheduled)."""

    queues: frozenset[str]
    moved: int
    next_in: float | None


@frozen
class Rescued:
    """A job taken back from a node that was lost."""

    job_id: UUID
    queue: str
    state: JobState
    node: str


@frozen
class Waiting:
    """A user's jobs at one priority: `jobs` stand in line, `unfinished` counts these and all that are not finished.

    With `users` above one it sums up a crowd of users, each of whom has less to do than any who is named.
    """

    priority: int
    user: str
    jobs: int
    unfinished: int
    users: int = 1


@frozen
class QueueCounts:
    """A queue as the database has it. `oldest_age`: seconds that the oldest available job has waited."""

    queue: str
    suspended: int = 0
    available: int = 0
    scheduled: int = 0
    retryable: int = 0
    executing: int = 0
    discarded: int = 0
    oldest_age: float | None = None
    waiting: tuple[Waiting, ...] = ()


@frozen
class QueueSetting:
    """What operators set on a queue, kept over restarts. `limit` None: as configured."""

    queue: str
    paused: bool = False
    limit: int | None = None


class NoticeKind(StrEnum):
    """What a notification from the database says."""

    WAKE = "wake"
    STOP = "stop"
    SETTINGS = "settings"
    PING = "ping"
    MOVED = "moved"
    JOINED = "joined"
    LEFT = "left"
    NEWS = "news"


@frozen
class Notice:
    """A notification. `subject`: the queue (wake), the job's id (stop), the boot id of who pings, the task that another
    server has claimed from the home `token` (moved), the server that has started (joined) or ended in good order
    (left), or what one server tells the others of its tasks (news)."""

    kind: NoticeKind
    subject: str = ""
    token: str = ""


@frozen
class JobError:
    """One line of a job's errors."""

    at: float
    attempt: int
    error: str


@frozen
class JobRecord:
    """A job as operators see it."""

    id: UUID
    state: JobState
    queue: str
    worker: str
    args: dict[str, object]
    task_id: UUID | None
    user: str | None
    priority: int
    attempt: int
    max_attempts: int
    rescues: int
    snoozes: int
    scheduled_at: float
    created_at: float
    updated_at: float
    node: str | None = None
    token: UUID | None = None
    errors: tuple[JobError, ...] = field(default=())
    home: str | None = None


@frozen
class Peer:
    """A server on this database, this one included. `alive`: its lease has not expired, by the database's clock;
    `age`: seconds since its last heartbeat; `slots`: how many jobs it runs at once, by queue."""

    name: str
    boot: UUID
    alive: bool
    age: float
    slots: Mapping[str, int] = field(factory=dict)


@frozen
class Slot:
    """A cron's time that has come, and the job that is to be made for it. `at`: Unix time."""

    name: str
    at: float
    job: NewJob


@frozen
class Retention:
    """How long finished jobs are kept, in seconds."""

    completed: float = 3600.0
    cancelled: float = 86_400.0
    discarded: float = 7 * 86_400.0


class JobStore(Protocol):
    """The jobs as PostgreSQL has them. Every method raises `StorageDown` while the database is away.

    Leases, and when a job is due, are judged by the database's clock alone; a node's own clock decides nothing.
    """

    async def insert(self, jobs: Sequence[NewJob]) -> frozenset[UUID]:
        """Inserts jobs outside the journal; the ids that were new. A taken id or unique key is not inserted."""
        ...

    async def claim(self, wish: Claim) -> Claimed:
        """Takes jobs from the front of the line; never one that another node is taking."""
        ...

    async def settle(self, changes: Sequence[JobChange]) -> frozenset[int]:
        """Applies outcomes under their fences; the indices of those that were stale and changed nothing."""
        ...

    async def heartbeat(self, leases: Sequence[Lease]) -> frozenset[UUID]:
        """Extends the leases; the ids of jobs that are no longer held."""
        ...

    async def suspend(self, job_id: UUID) -> bool:
        """Holds a waiting job back; whether it was waiting."""
        ...

    async def unsuspend(self, job_id: UUID) -> bool:
        """Lets a job go that was held back; whether it was."""
        ...

    async def beat(self, node: str, boot: UUID, seconds: float, slots: Mapping[str, int]) -> tuple[Peer, ...]:
        """Keeps this server's lease for `seconds`; all servers, as they stood before."""
        ...

    async def look_around(self) -> tuple[Peer, ...]:
        """All servers."""
        ...

    async def leave(self, node: str, boot: UUID) -> None:
        """This server ends; the others hear of it."""
        ...

    async def adopt(self, node: str, jobs: Sequence[UUID]) -> frozenset[UUID]:
        """Those of these jobs whose tasks live on this server: already, or from now on, their home being lost."""
        ...

    async def strayed(self, node: str, jobs: Sequence[UUID]) -> frozenset[UUID]:
        """Those of these jobs whose tasks live on another server."""
        ...

    async def release(self, fences: Sequence[Fence]) -> int:
        """Gives running jobs back without counting the attempt."""
        ...

    async def recover(self, node: str, boot: UUID) -> int:
        """Gives back, uncounted, what an earlier life of this node still held."""
        ...

    async def rescue(self, held: Sequence[UUID], limit: int) -> tuple[Rescued, ...]:
        """Takes back jobs whose lease has expired, except those in `held`, which live here."""
        ...

    async def stage(self, limit: int) -> Staged:
        """Moves scheduled and retryable jobs that are due into the line."""
        ...

    async def now(self) -> float:
        """Unix time by the database's clock."""
        ...

    async def make_for(self, slots: Sequence[Slot]) -> frozenset[UUID]:
        """Inserts the jobs of crons' times for which none was made yet, on any node; the ids that were new."""
        ...

    async def prune(self, retention: Retention, limit: int) -> int:
        """Deletes finished jobs past their time, at most `limit`; how many."""
        ...

    async def counts(self) -> tuple[QueueCounts, ...]: ...

    async def paces(self) -> dict[str, float]:
        """How long the jobs that ended last took, in seconds, by queue."""
        ...

    async def settings(self) -> tuple[QueueSetting, ...]: ...

    async def set(self, setting: QueueSetting) -> None:
        """Stores what an operator set and tells the other nodes."""
        ...

    async def get(self, job_id: UUID) -> JobRecord | None: ...

    async def page(
        self, queue: str | None, state: JobState | None, after: UUID | None, limit: int
    ) -> tuple[JobRecord, ...]:
        """Jobs by descending id (newest first), before the id `after`."""
        ...

    async def notify(self, notice: Notice) -> None:
        """Sends a notification to every node, this one included."""
        ...

    async def tell(self, words: Sequence[str]) -> None:
        """Sends news (each below 7.9 kB) to every node, this one included, without waiting for the disk."""
        ...

    def notices(self) -> AbstractAsyncContextManager[AsyncIterator[Notice]]:
        """Listens on a connection of its own, for as long as the context is open."""
        ...
