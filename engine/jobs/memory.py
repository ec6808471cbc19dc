"""Jobs of one queue that the database does not know of yet, or knows less of than this node. No I/O.

While the database is away, new jobs wait here in fair order and failed ones for their next attempt, and both run from
here. Each claim made in memory is remembered until the journal has flushed the row or the change before it: the flush
then writes the very leases under which the job ran (`lease_for_insert`, `lease_after`), and every outcome that follows
in the journal finds its fence.

What the journal has begun to write without a lease does not start here any more, even when the write seems to have
failed: its commit may have been done and only the answer lost. Then the database decides, once it is back.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from uuid import UUID

from attrs import define, evolve, field

from engine.jobs.fairness import FairQueue
from engine.jobs.job import Fence, Job, Lease, NewJob, Snooze

Claim = Callable[[UUID, int], Lease]
"""Makes a lease for a job's attempt."""


@define(eq=False)
class Memory:
    """See the module. `claim` makes a lease; `clock` is Unix time."""

    claim: Claim
    clock: Callable[[], float]
    _waiting: FairQueue[NewJob] = field(factory=FairQueue)
    _retries: dict[UUID, Job] = field(factory=dict)
    """Attempts that ended and are to be followed by another, by their token."""
    _due: list[tuple[float, int, UUID]] = field(factory=list)
    _leases: dict[UUID, Lease] = field(factory=dict)
    """The first lease of jobs whose insert is not committed, by job."""
    _successors: dict[UUID, Lease] = field(factory=dict)
    """The lease that followed in memory, by the token of the one before it."""
    _begun: set[UUID] = field(factory=set)
    """What the journal has begun to write and has no final receipt for: inserts by job, changes by token."""
    _order: count[int] = field(factory=count)

    def __len__(self) -> int:
        return len(self._waiting) + len(self._retries)

    @property
    def next_retry_at(self) -> float | None:
        """Unix time of the earliest attempt that waits here."""
        while self._due and self._due[0][2] not in self._retries:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    # --- new jobs ---

    def lease_for_insert(self, job_id: UUID) -> Lease | None:
        """The lease under which the row of this job must be inserted, when it has one already."""
        return self._leases.get(job_id)

    def lend(self, job_id: UUID) -> Lease:
        """A first lease, remembered until the insert is committed."""
        self._leases[job_id] = self.claim(job_id, 1)
        return self._leases[job_id]

    def begin_insert(self, job_id: UUID) -> bool:
        """The journal is about to insert the row: from here on the job only starts under a lease written with it.

        Whether it waited here.
        """
        self._begun.add(job_id)
        return self._waiting.discard(job_id) is not None

    def wait(self, job: NewJob) -> bool:
        """The row cannot be inserted now: the job waits in line here, unless it has a lease or may be stored.

        Whether it has joined the line.
        """
        if job.id in self._leases or job.id in self._begun or job.id in self._waiting:
            return False
        self._waiting.push(job.id, job, job.priority, job.user)
        return True

    def inserted(self, job_id: UUID) -> Lease | None:
        """The row is in the database (or never will be): its first lease, if it has one, is remembered no longer."""
        self._begun.discard(job_id)
        self._waiting.discard(job_id)
        return self._leases.pop(job_id, None)

    # --- further attempts ---

    def retry(self, job: Job, at: float) -> None:
        """Attempt `job` ended and the change cannot be written now: the next one may start here at `at`."""
        token = job.fence.token
        if token not in self._successors and token not in self._begun and token not in self._retries:
            self._retries[token] = job
            heapq.heappush(self._due, (at, next(self._order), token))

    def lease_after(self, fence: Fence) -> Lease | None:
        """The lease that followed `fence`. If none did, none will: the journal is about to write the change."""
        self._retries.pop(fence.token, None)
        self._begun.add(fence.token)
        return self._successors.get(fence.token)

    def changed(self, fence: Fence) -> Lease | None:
        """The change under `fence` has its final receipt; the lease that followed in memory, if one did."""
        self._begun.discard(fence.token)
        self._retries.pop(fence.token, None)
        return self._successors.pop(fence.token, None)

    def withdraw(self, job_id: UUID) -> None:
        """The job's owner ended it: it starts no more."""
        self._waiting.discard(job_id)
        for token in [token for token, job in self._retries.items() if job.id == job_id]:
            del self._retries[token]

    # --- starting ---

    def next(self) -> Job | None:
        """Claims the job whose turn it is: first what is due again, then the line."""
        at = self.next_retry_at
        if at is not None and at <= self.clock():
            return self._claim_again(self._retries.pop(heapq.heappop(self._due)[2]))
        new = self._waiting.pop()
        return None if new is None else as_job(new, self.lend(new.id), self.clock())

    def _claim_again(self, job: Job) -> Job:
        lease = self.claim(job.id, job.attempt + 1)
        self._successors[job.fence.token] = lease
        return evolve(job, fence=lease.fence, attempt=lease.fence.attempt)


def uncounted(job: Job, outcome: object) -> Job:
    """The attempt as it counts once it has ended so: a snooze does not count."""
    return evolve(job, attempt=job.attempt - 1) if isinstance(outcome, Snooze) else job


def as_job(job: NewJob, lease: Lease, now: float) -> Job:
    """A new job as its worker gets it, without asking the database."""
    return Job(
        fence=lease.fence,
        worker=job.worker,
        queue=job.queue,
        args=job.args,
        task_id=job.task_id,
        user=job.user,
        priority=job.priority,
        attempt=lease.fence.attempt,
        max_attempts=job.max_attempts,
        inserted_at=now,
        scheduled_at=job.scheduled_at if job.scheduled_at is not None else now,
        lease_expires_at=now + lease.seconds,
        trace_parent=job.trace_parent,
    )
