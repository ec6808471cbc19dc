"""One queue as this node sees it: its slots, what runs in them, and what waits in memory. No I/O.

A Lane is a plain object that lives outside the tree, so that it survives its dispatcher; all that changes it is
synchronous and called on the loop. It decides; the dispatcher acts: it starts what stands in `starting`, stops
what stands in `stopping`, and has a claim made when `demand` is above zero.

How a job gets here:
* inserted by this node with a slot free: `reserve` gives the lease before the INSERT, `inserted` starts it;
* claimed from the line in the database: `claimed`;
* while the database is away: `inserted` with a Buffered receipt puts it in memory, and it runs from there (`memory`).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import trio
from attrs import define, field, frozen

from engine.jobs.admission import Estimate, Line, Pace, check, wait
from engine.jobs.config import QueueConfig
from engine.jobs.job import Cancel, Fence, Hold, Job, JobChange, JobOutcome, Lease, NewJob, Retry, Snooze
from engine.jobs.memory import Memory, as_job, uncounted
from engine.jobs.ports import Claimed
from engine.ports import Buffered, Committed, Receipt

if TYPE_CHECKING:
    from engine.otp import Pid


@frozen
class Identity:
    """Who claims: the node (kept in its data folder) and this life of it; leases last `lease` seconds."""

    node: str
    boot: UUID
    lease: float = 30.0

    def claim(self, job_id: UUID, attempt: int) -> Lease:
        """A new lease, made in memory."""
        return self.hold(Fence(job_id, attempt, uuid4()))

    def hold(self, fence: Fence) -> Lease:
        return Lease(fence, self.node, self.boot, self.lease)


@define(eq=False)
class Running:
    """A job in a slot since `since` (monotonic). `stored`: the database has the claim; `settled`: and the outcome;
    `buffered`: the outcome waits in the journal's memory."""

    job: Job
    stored: bool
    since: float
    worker: Pid | None = None
    settled: bool = False
    buffered: bool = False
    failure: str | None = None
    """What the handler raised, noted just before its worker dies of it."""


@define(eq=False)
class Lane:
    """See the module. `settle` writes an outcome that no journal records; `kick` wakes the dispatcher."""

    name: str
    config: QueueConfig
    identity: Identity
    settle: Callable[[JobChange], None]
    kick: Callable[[], None] = field(default=lambda: None)
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic

    paused: bool = False
    draining: bool = False
    limit: int = field(init=False)
    backlog: bool = True
    """The line in the database may hold jobs; until a claim has shown that it does not."""
    claiming: int = 0
    """Slots kept for the answer of a claim that is under way."""
    claim_after: float = 0.0
    """A limit over all nodes, or an outage, forbids a claim before this time (monotonic)."""
    executing: int = 0
    """Jobs that run on all nodes, as last counted."""
    others: int = 0
    """Slots of this queue on other nodes."""
    _wakes: int = 0

    line: Line = field(init=False)
    pace: Pace = field(init=False)

    running: dict[UUID, Running] = field(factory=dict)
    workers: dict[Pid, Running] = field(factory=dict)
    """Who has which job in hand."""
    starting: deque[Running] = field(factory=deque)
    stopping: deque[tuple[Running, str]] = field(factory=deque)
    memory: Memory = field(init=False)

    _freed: deque[float] = field(factory=deque)
    """Since when (monotonic) slots are empty though somebody waits."""
    _since: float = 0.0
    """The sum of the times (monotonic) since which what runs has run."""
    _idle: trio.Event = field(factory=trio.Event)
    _reserved: set[UUID] = field(factory=set)
    """Jobs that have a lease and a slot, but whose insert has no receipt yet."""
    _parked: dict[UUID, JobChange] = field(factory=dict)
    """Outcomes under claims that the database does not know of yet, by token."""
    _settling: dict[UUID, tuple[Job, float]] = field(factory=dict)
    """Jobs of tasks that left their slot before their outcome was journaled, with the time (monotonic); infinite, once
    the outcome waits in the journal's memory: then the job is ours however long the outage is."""

    def __attrs_post_init__(self) -> None:
        self.limit = self.config.limit
        self.memory = Memory(self.identity.claim, self.clock)
        self.line = Line(self.monotonic)
        self.pace = Pace(self.config.typical_seconds)

    # --- slots ---

    @property
    def open(self) -> bool:
        return not (self.paused or self.draining)

    @property
    def free(self) -> int:
        """Slots that nothing has a claim on."""
        return max(0, self.limit - len(self.running) - len(self._reserved) - self.claiming)

    @property
    def demand(self) -> int:
        """How many jobs a claim should ask for now; 0 when none should be made."""
        if not self.open or not self.backlog or self.claiming or self.monotonic() < self.claim_after:
            return 0
        return self.free

    @property
    def next_in(self) -> float | None:
        """Seconds until time alone gives the dispatcher something to do."""
        times = []
        if (at := self.memory.next_retry_at) is not None:
            times.append(at - self.clock())
        if self.backlog and self.claim_after > (now := self.monotonic()):
            times.append(self.claim_after - now)
        return max(0.0, min(times)) if times else None

    # --- admission ---

    def estimate(self, priority: int, user: str | None) -> Estimate:
        """Where a new job of this user would stand, and for how long."""
        before = self.line.ahead(priority, user)
        slots = max(self.limit + self.others, self.executing)
        free = self.free + max(0, self.others - max(0, self.executing - len(self.running)))
        return Estimate(before, wait(before, free, slots, self.seconds, self.config))

    @property
    def seconds(self) -> float:
        """How long jobs hold their slots, as far as is known."""
        running = len(self.running)
        self.pace.slots = self.limit
        return self.pace.seconds(running, running * self.monotonic() - self._since)

    def admit(self, priority: int, user: str | None, typical: float | None = None) -> Estimate:
        """Lets one job of this user in. Raises UserError: `over_quota`, `over_capacity`."""
        if typical is not None:
            self.pace.guess = typical
        estimate = self.estimate(priority, user)
        check(self.config, self.line, user, estimate)
        self.line.admit(priority, user)
        return estimate

    # --- the journal's door (see QueueDoor) ---

    def reserve(self, job: NewJob) -> Lease | None:
        if (lease := self.memory.lease_for_insert(job.id)) is not None:
            return lease
        if self.memory.begin_insert(job.id):
            self.line.leave(job.priority, job.user)
        if not self._may_start_at_once(job):
            return None
        self._reserved.add(job.id)
        return self.memory.lend(job.id)

    def _may_start_at_once(self, job: NewJob) -> bool:
        """Whether nobody is passed over and no limit is broken when this job takes a slot unasked."""
        due = job.scheduled_at is None or job.scheduled_at <= self.clock()
        alone = not self.backlog and not len(self.memory)
        return due and alone and self.open and self.free > 0 and not self.config.shared

    def inserted(self, job: NewJob, receipt: Receipt) -> None:
        match receipt:
            case Committed():
                self._insert_committed(job)
            case Buffered():
                self._insert_buffered(job)
            case _:
                self._insert_refused(job)
        self.kick()

    def _insert_committed(self, job: NewJob) -> None:
        lease = self.memory.inserted(job.id)
        if lease is None:
            self.line.join(job.priority, job.user)
            self.wake()
        elif job.id in self._reserved:
            self.line.start_at_once(job.priority, job.user)
            self._start(as_job(job, lease, self.clock()), stored=True)
        else:
            self._claim_stored(lease)

    def _insert_refused(self, job: NewJob) -> None:
        lease = self.memory.inserted(job.id)
        self._reserved.discard(job.id)
        self.line.refuse(job.priority, job.user)
        if lease is not None:
            self._parked.pop(lease.fence.token, None)
        self.stop(job.id, "refused")

    def _insert_buffered(self, job: NewJob) -> None:
        lease = self.memory.lease_for_insert(job.id)
        if lease is not None and job.id in self._reserved:
            self.line.start_at_once(job.priority, job.user)
            self._start(as_job(job, lease, self.clock()), stored=False)
        elif self.memory.wait(job):
            self.line.join(job.priority, job.user)

    def successor(self, fence: Fence) -> Lease | None:
        return self.memory.lease_after(fence)

    def changed(self, change: JobChange, receipt: Receipt) -> None:
        match receipt:
            case Committed() | Buffered() if isinstance(change.outcome, Hold):
                return
            case Committed():
                self._change_committed(change)
            case Buffered():
                self._change_buffered(change)
            case _ if change.fence is not None:
                self._settled(change.fence)
                self.memory.changed(change.fence)
                self.stop(change.job_id, "lease_lost", change.fence.token)
            case _:
                return
        self.kick()

    def _change_committed(self, change: JobChange) -> None:
        if change.fence is not None:
            self._settled(change.fence)
            self.room_again()
            self._claim_stored(self.memory.changed(change.fence))
        self._end_if_ordered(change)

    def _settled(self, fence: Fence) -> None:
        held = self.running.get(fence.job_id)
        if held is not None and held.job.fence == fence:
            held.settled = True
        settling = self._settling.get(fence.job_id)
        if settling is not None and settling[0].fence == fence:
            del self._settling[fence.job_id]

    def _claim_stored(self, lease: Lease | None) -> None:
        """A claim made in memory is in the database: now it can be kept alive, and its outcome written."""
        if lease is None:
            return
        held = self.running.get(lease.fence.job_id)
        if held is not None and held.job.fence == lease.fence:
            held.stored = True
        if (outcome := self._parked.pop(lease.fence.token, None)) is not None:
            self.settle(outcome)

    def _change_buffered(self, change: JobChange) -> None:
        """The database is away: what should run again runs again from memory, unless it is back before."""
        if change.fence is not None:
            self._waits(change.fence)
        if change.fence is not None and isinstance(change.outcome, Retry | Snooze):
            job = self._job_under(change.fence)
            at = change.outcome.at
            if job is not None:
                self.memory.retry(uncounted(job, change.outcome), self.clock() if at is None else at)
        self._end_if_ordered(change)

    def _waits(self, fence: Fence) -> None:
        held, settling = self.running.get(fence.job_id), self._settling.get(fence.job_id)
        if held is not None and held.job.fence == fence:
            held.buffered = True
        if settling is not None and settling[0].fence == fence:
            self._settling[fence.job_id] = (settling[0], math.inf)

    def _job_under(self, fence: Fence) -> Job | None:
        held = self.running.get(fence.job_id)
        if held is not None and held.job.fence == fence:
            return held.job
        settling = self._settling.get(fence.job_id)
        return settling[0] if settling is not None and settling[0].fence == fence else None

    def _end_if_ordered(self, change: JobChange) -> None:
        """The job's owner ended it, not its worker: it runs no more, wherever it stands."""
        if isinstance(change.outcome, Cancel) or (change.fence is None and not isinstance(change.outcome, Retry)):
            self.memory.withdraw(change.job_id)
            self.stop(change.job_id, "cancelled")
        elif change.fence is None:
            self.wake()

    # --- claims ---

    def wake(self) -> None:
        """There may be jobs in line: a notification, a poll, or an insert of our own says so."""
        self.backlog = True
        self._wakes += 1
        self.kick()

    def begin_claim(self) -> tuple[int, int]:
        """Keeps slots for a claim: how many, and a mark to end the claim with. Without a slot: (0, …)."""
        self.claiming = self.demand
        return self.claiming, self._wakes

    def end_claim(self, claimed: Claimed, mark: int) -> None:
        """Starts what the claim brought. The line counts as empty if nobody joined it since the claim began."""
        self.claiming = 0
        self.backlog = claimed.more or self._wakes != mark
        if claimed.wait is not None:
            self.claim_after = self.monotonic() + claimed.wait
        for job in claimed.jobs:
            self.line.leave(job.priority, job.user)
            self._start(job, stored=True)
        self.kick()

    def room_again(self) -> None:
        """Outcomes were written: a limit over all nodes may have room again."""
        if self.config.global_limit is not None and self.config.rate is None:
            self.claim_after = 0.0
            self.kick()

    def fail_claim(self, retry_in: float) -> None:
        """The database is away."""
        self.claiming = 0
        self.claim_after = self.monotonic() + retry_in
        self.kick()

    # --- starting and ending ---

    def _start(self, job: Job, stored: bool) -> None:
        self._reserved.discard(job.id)
        held = Running(job, stored, self.monotonic())
        if self._freed:
            self.pace.observe_gap(held.since - self._freed.popleft())
        if (before := self.running.get(job.id)) is not None:
            self._since -= before.since
        self.running[job.id] = held
        self._since += held.since
        self.starting.append(held)

    def start_from_memory(self) -> None:
        """Fills free slots with jobs that only memory knows."""
        while self.open and self.free > 0 and (job := self.memory.next()) is not None:
            self.line.leave(job.priority, job.user)
            self._start(job, stored=False)

    def take(self, worker: Pid) -> Running | None:
        """The next job to start, handed to this worker."""
        if not self.starting:
            return None
        held = self.starting.popleft()
        held.worker, self.workers[worker] = worker, held
        return held

    def leave(self, held: Running, journaled: bool) -> float:
        """Frees the slot; how long it was held, in seconds. `journaled`: the outcome comes through the journal."""
        self._free(held)
        if held.worker is not None:
            del self.workers[held.worker]
            held.worker = None
        self.line.end(held.job.priority, held.job.user)
        self.pace.observe(self.monotonic() - held.since)
        if journaled and not held.settled:
            self._settling[held.job.id] = (held.job, math.inf if held.buffered else self.monotonic())
        self.kick()
        return self.monotonic() - held.since

    def conclude(self, held: Running, outcome: JobOutcome) -> None:
        """Writes an outcome that no journal records, as soon as the database knows of the claim."""
        change = JobChange(held.job.id, outcome, held.job.fence)
        if held.stored:
            self.settle(change)
        else:
            self._parked[held.job.fence.token] = change

    def _free(self, held: Running) -> None:
        if self.running.get(held.job.id) is held:
            del self.running[held.job.id]
            self._since -= held.since
            if self.line.total:
                self._freed.append(self.monotonic())
            else:
                self._freed.clear()
        if not self.running:
            self._since = 0.0  # also of what rounding has left
            self._idle.set()

    async def idle(self) -> None:
        """Returns once nothing runs."""
        while self.running:
            self._idle = trio.Event()
            await self._idle.wait()

    def stop(self, job_id: UUID, reason: str, token: UUID | None = None) -> bool:
        """Has a running job stopped, if it still is the attempt with this token; whether it was here."""
        held = self.running.get(job_id)
        if held is None or (token is not None and held.job.fence.token != token):
            return False
        if held.worker is None and held in self.starting:
            self.starting.remove(held)
            self._free(held)
        else:
            self.stopping.append((held, reason))
        self.kick()
        return True

    def lost(self, job_id: UUID) -> bool:
        """The database refused to extend this lease; whether a job had to be stopped for it."""
        held = self.running.get(job_id)
        if held is None or not held.stored or held.settled:
            return False
        return self.stop(job_id, "lease_lost")

    # --- leases ---

    def leases(self) -> list[Lease]:
        """The leases to keep alive: of what runs, and of what a task is about to journal."""
        oldest = self.monotonic() - self.identity.lease
        self._settling = {job_id: entry for job_id, entry in self._settling.items() if entry[1] > oldest}
        fences = [held.job.fence for held in self.running.values() if held.stored and not held.settled]
        fences += [job.fence for job_id, (job, _) in self._settling.items() if job_id not in self.running]
        return [self.identity.hold(fence) for fence in fences]

    def holding(self) -> set[UUID]:
        """Jobs that live here, whatever the database believes of their leases."""
        return self.running.keys() | self._settling.keys() | self._reserved
