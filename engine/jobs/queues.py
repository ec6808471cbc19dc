"""The job queue as the rest of the house sees it: one handle, made before the tree, and the spec of its subtree.

`Queues` is the journal's door to the queue, admission, the operators' levers, and the state that the processes of the
subtree share; see `tree` for those processes, `lane` for what happens inside one queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from uuid import UUID, uuid4

import trio
from attrs import define, field, frozen

from engine.jobs import metrics
from engine.jobs.acknowledger import Outbox
from engine.jobs.admission import Estimate
from engine.jobs.clockwork import Heart
from engine.jobs.config import Cron, QueueConfig, Retention, Timing
from engine.jobs.dispatcher import Bell, Claims
from engine.jobs.job import Cancel, Fence, JobChange, JobState, Lease, NewJob, Retry
from engine.jobs.lane import Identity, Lane
from engine.jobs.notifier import Hearing
from engine.jobs.ports import JobRecord, JobStore, Notice, NoticeKind, QueueCounts, QueueSetting
from engine.jobs.servers import Servers
from engine.jobs.worker import JobHandler
from engine.otp import ChildSpec
from engine.ports import Receipt

DEFAULT_PRIORITY = 4
PAGE = 100


@frozen
class QueueStats:
    """A queue as operators see it: slots here, counts over all nodes (as last taken), times in seconds."""

    queue: str
    limit: int
    running: int
    paused: bool
    draining: bool
    available: int
    scheduled: int
    retryable: int
    executing: int
    discarded: int
    in_memory: int
    oldest_age: float | None
    estimated_wait: float
    job_seconds: float
    mode: str
    running_ids: tuple[UUID, ...] = ()
    suspended: int = 0


def queue_name(queue: str) -> str:
    """The name under which a queue's dispatcher is registered on the node."""
    return f"queue:{queue}"


@define(eq=False)
class Queues:
    """See the module. `node` names this server for good (it is kept in the data folder), `boot` this life of it."""

    store: JobStore
    handlers: Mapping[str, JobHandler]
    configs: Mapping[str, QueueConfig] = field(factory=lambda: {"default": QueueConfig()})
    node: str = "local"
    boot: UUID = field(factory=uuid4)
    timing: Timing = field(factory=Timing)
    retention: Retention = field(factory=Retention)
    crons: Sequence[Cron] = ()
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic

    lanes: dict[str, Lane] = field(init=False)
    bells: dict[str, Bell] = field(init=False)
    claims: dict[str, Claims] = field(init=False)
    outbox: Outbox = field(init=False)
    heart: Heart = field(init=False)
    hearing: Hearing = field(init=False)
    servers: Servers = field(init=False)
    counted: dict[str, QueueCounts] = field(init=False, factory=dict)
    settings_changed: trio.Event = field(init=False, factory=trio.Event)
    """Set when an operator may have set something, here or on another node."""

    def __attrs_post_init__(self) -> None:
        self.outbox = Outbox(self._room_again)
        identity = Identity(self.node, self.boot, self.timing.lease)
        self.bells = {name: Bell(queue_name(name)) for name in self.configs}
        self.lanes = {
            name: Lane(name, config, identity, self.outbox.put, self.bells[name], self.clock, self.monotonic)
            for name, config in self.configs.items()
        }
        self.claims = {name: Claims(lane, self.store) for name, lane in self.lanes.items()}
        self.heart = Heart(self.timing, monotonic=self.monotonic)
        self.hearing = Hearing(str(self.boot))
        self.servers = Servers(self.store, self.node, self.boot)

    def spec(self) -> ChildSpec:
        """The subtree: supervisor "jobs"."""
        from engine.jobs.tree import jobs_spec

        return jobs_spec(self)

    # --- the journal's door (see engine.jobs.ports.QueueDoor) ---

    def reserve(self, job: NewJob) -> Lease | None:
        lane = self.lanes.get(job.queue)
        return lane.reserve(job) if lane is not None else None

    def successor(self, fence: Fence) -> Lease | None:
        found = (lane.successor(fence) for lane in self.lanes.values())
        return next((lease for lease in found if lease is not None), None)

    def inserted(self, job: NewJob, receipt: Receipt) -> None:
        if (lane := self.lanes.get(job.queue)) is not None:
            lane.inserted(job, receipt)

    def changed(self, change: JobChange, receipt: Receipt) -> None:
        for lane in self.lanes.values():
            lane.changed(change, receipt)

    # --- coming in ---

    def has(self, queue: str) -> bool:
        """Whether there is such a queue here."""
        return queue in self.lanes

    def admit(
        self, queue: str, user: str | None, priority: int = DEFAULT_PRIORITY, typical: float | None = None
    ) -> Estimate:
        """Lets one job of this user in, with its place and its wait. `typical`: how long such jobs take, in seconds;
        used until some have ended.

        Raises:
            UserError: `over_quota` or `over_capacity`, with `retry_after`.
        """
        return self.lanes[queue].admit(priority, user, typical)

    async def insert(self, jobs: Sequence[NewJob]) -> frozenset[UUID]:
        """Inserts jobs that belong to no task; the ids that were new. Raises StorageDown."""
        new = await self.store.insert(jobs)
        self.wake({job.queue for job in jobs})
        return new

    def wake(self, queues: set[str] | frozenset[str] | None = None) -> None:
        """There may be jobs in line, in these queues or in any."""
        for name, lane in self.lanes.items():
            if queues is None or name in queues:
                lane.wake()

    # --- operators' levers ---

    async def pause(self, queue: str) -> None:
        """No job of this queue starts on any node until `resume`; what runs goes on. Raises StorageDown."""
        await self._set(queue, paused=True, limit=None)

    async def resume(self, queue: str) -> None:
        await self._set(queue, paused=False, limit=None)

    async def scale(self, queue: str, limit: int) -> None:
        """Gives the queue so many slots on each node. Raises StorageDown."""
        await self._set(queue, paused=None, limit=limit)

    async def _set(self, queue: str, paused: bool | None, limit: int | None) -> None:
        known = {setting.queue: setting for setting in await self.store.settings()}
        was = known.get(queue, QueueSetting(queue))
        setting = QueueSetting(
            queue,
            paused=was.paused if paused is None else paused,
            limit=was.limit if limit is None else limit,
        )
        await self.store.set(setting)
        self.apply((setting,))

    def apply(self, settings: Sequence[QueueSetting]) -> None:
        """Takes over what operators have set."""
        for setting in settings:
            if (lane := self.lanes.get(setting.queue)) is not None:
                lane.paused = setting.paused
                lane.limit = lane.config.limit if setting.limit is None else setting.limit
                lane.wake()

    async def cancel(self, job_id: UUID, reason: str = "requested") -> None:
        """Ends a job that belongs to no task, wherever it stands or runs; a finished one stays as it is."""
        change = JobChange(job_id, Cancel(reason))
        await self.store.settle([change])
        self.stop(str(job_id))

    async def retry(self, job_id: UUID) -> None:
        """Runs a finished or waiting job again now, with one attempt more if it had none left.

        Raises:
            UserError: `job_exists`, when an unfinished job has its unique key by now.
            StorageDown
        """
        await self.store.settle([JobChange(job_id, Retry("", self.clock()))])
        self.wake()

    async def suspend(self, job_id: UUID) -> bool:
        """Holds a waiting job back until `release`; whether it was waiting. Raises StorageDown."""
        return await self.store.suspend(job_id)

    async def release(self, job_id: UUID) -> bool:
        """Lets a job go that was held back; whether it was. Raises StorageDown."""
        return await self.store.unsuspend(job_id)

    async def get(self, job_id: UUID) -> JobRecord | None:
        return await self.store.get(job_id)

    async def page(
        self, queue: str | None = None, state: JobState | None = None, after: UUID | None = None
    ) -> tuple[JobRecord, ...]:
        """Jobs, newest first, a hundred at a time. Raises StorageDown."""
        return await self.store.page(queue, state, after, limit=PAGE)

    async def dead_letters(self, queue: str | None = None, after: UUID | None = None) -> tuple[JobRecord, ...]:
        """Jobs that failed for good, newest first, a hundred at a time."""
        return await self.page(queue, JobState.DISCARDED, after)

    # --- what the processes of the subtree tell ---

    def stop(self, job_id: str, token: str = "") -> None:
        """Has a job stopped that runs here."""
        for lane in self.lanes.values():
            lane.stop(UUID(job_id), "cancelled", UUID(token) if token else None)

    def on_notice(self, notice: Notice) -> None:
        match notice.kind:
            case NoticeKind.WAKE:
                self.wake({notice.subject})
            case NoticeKind.STOP:
                self.stop(notice.subject, notice.token)
            case NoticeKind.SETTINGS:
                self.settings_changed.set()
            case NoticeKind.MOVED if notice.token == self.node:
                self.servers.on_moved(UUID(notice.subject))
            case NoticeKind.JOINED:
                self.servers.joined(notice.subject)
            case NoticeKind.LEFT:
                self.servers.left(notice.subject)
            case NoticeKind.NEWS:
                self.servers.on_news(notice.subject)
            case _:
                return

    def count(self, counts: Sequence[QueueCounts], taken_at: float) -> None:
        """Takes the database's counts, asked for at `taken_at` (monotonic), for estimates, metrics and operators."""
        self.counted = {count.queue: count for count in counts}
        for name, lane in self.lanes.items():
            count = self.counted.get(name, QueueCounts(name))
            lane.line.reset(count.waiting, taken_at)
            lane.executing = count.executing
            _publish(self.stats_of(name))

    def learn(self, paces: Mapping[str, float]) -> None:
        """Takes over how long jobs took in an earlier life, or on other servers, until some have ended here."""
        for name, seconds in paces.items():
            if (lane := self.lanes.get(name)) is not None:
                lane.pace.guess = seconds

    def slots(self) -> dict[str, int]:
        """How many jobs this server runs at once, by queue."""
        return {name: lane.limit for name, lane in self.lanes.items() if lane.open}

    def count_others(self) -> None:
        """Takes over how many slots the other servers have."""
        for name, lane in self.lanes.items():
            lane.others = self.servers.slots(name)

    def _room_again(self) -> None:
        for lane in self.lanes.values():
            lane.room_again()

    # --- looking ---

    def stats(self) -> tuple[QueueStats, ...]:
        return tuple(self.stats_of(name) for name in self.lanes)

    def stats_of(self, queue: str) -> QueueStats:
        lane = self.lanes[queue]
        count = self.counted.get(queue, QueueCounts(queue))
        return QueueStats(
            queue=queue,
            limit=lane.limit,
            running=len(lane.running),
            paused=lane.paused,
            draining=lane.draining,
            available=lane.line.total,
            scheduled=count.scheduled,
            retryable=count.retryable,
            executing=max(count.executing, len(lane.running)),
            suspended=count.suspended,
            discarded=count.discarded,
            in_memory=len(lane.memory),
            oldest_age=count.oldest_age,
            estimated_wait=lane.estimate(DEFAULT_PRIORITY, None).wait_seconds,
            job_seconds=lane.seconds,
            mode="push" if self.hearing.push else "poll",
            running_ids=tuple(lane.running),
        )


def _publish(stats: QueueStats) -> None:
    metrics.RUNNING.labels(stats.queue).set(stats.running)
    metrics.LIMIT.labels(stats.queue).set(stats.limit)
    metrics.OLDEST.labels(stats.queue).set(stats.oldest_age or 0.0)
    metrics.ESTIMATE.labels(stats.queue).set(stats.estimated_wait)
    metrics.WAITING.labels(stats.queue).set(stats.available)
    for state in ("suspended", "available", "scheduled", "retryable", "executing", "discarded"):
        metrics.IN_STATE.labels(stats.queue, state).set(getattr(stats, state))
