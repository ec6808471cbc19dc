"""A queue that runs: its subtree on a node, its store on a real PostgreSQL, and a journal's part played by hand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import trio
from attrs import define, field

from engine.jobs.config import QueueConfig, Timing
from engine.jobs.job import Complete, Job, JobChange, JobOutcome, JobState, Lease, NewJob, Recorded
from engine.jobs.ports import JobRecord, JobStore
from engine.jobs.queues import Queues
from engine.otp import SHUTDOWN, Supervisor, stop
from engine.ports import Committed
from persistence.jobs.rows import apply_changes, insert_jobs
from persistence.jobs.store import PostgresJobStore
from persistence.pool import Pool

Script = Callable[[Job], Awaitable[JobOutcome | Recorded]]

QUICK = Timing(lease=1.5, heartbeat=0.25, rescue=0.1, stage=0.05, poll=0.2, count=0.05, ping=0.5, drain=0.2)
"""Everything that waits for the clock, waits little."""


@define(eq=False)
class Floor:
    """What the handlers saw, and ways to wait for it."""

    queues: Queues
    pool: Pool
    started: list[Job] = field(factory=list)
    ended: list[Job] = field(factory=list)
    started_at: dict[UUID, float] = field(factory=dict)
    _news: trio.Event = field(factory=trio.Event)

    def tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Waits until the condition holds after some job started or ended."""
        with trio.fail_after(seconds):
            while not condition():
                await self._news.wait()

    async def eventually(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Waits until the condition holds, of whose coming nobody tells."""
        with trio.fail_after(seconds):
            while True:
                if condition():
                    return
                await trio.sleep(0.005)

    async def in_state(self, job_id: UUID, *states: JobState, seconds: float = 10.0) -> JobRecord:
        """Waits until the row of a job is in one of these states."""
        with trio.fail_after(seconds):
            while True:
                record = await self.queues.store.get(job_id)
                if record is not None and record.state in states:
                    return record
                await trio.sleep(0.01)

    async def journal(self, job: NewJob) -> Lease | None:
        """Inserts as the journal does: reserve, one transaction, receipt."""
        lease = self.queues.reserve(job)
        async with self.pool.connection() as conn, conn.transaction():
            await insert_jobs(conn, [(job, lease)])
        self.queues.inserted(job, Committed())
        return lease

    async def journal_change(self, change: JobChange) -> bool:
        """Changes as the journal does; whether it was taken."""
        async with self.pool.connection() as conn, conn.transaction():
            lease = self.queues.successor(change.fence) if change.fence else None
            stale = await apply_changes(conn, [(change, lease)])
        self.queues.changed(change, Committed())
        return not stale


async def at_once(job: Job) -> JobOutcome:
    return Complete()


@asynccontextmanager
async def running(
    pool: Pool,
    scripts: Mapping[str, Script] | None = None,
    config: QueueConfig | Mapping[str, QueueConfig] | None = None,
    node: str = "node",
    store: JobStore | None = None,
    timing: Timing = QUICK,
    **options: object,
) -> AsyncIterator[Floor]:
    """A queue under its supervisor, drained at the end. Scripts are handlers, by worker; "work" completes at once."""
    given: dict[str, Script] = {"work": at_once, **(scripts or {})}
    configs = config if isinstance(config, Mapping) else {"default": config or QueueConfig()}
    handlers: dict[str, Script] = {}
    queues = Queues(
        store or PostgresJobStore(pool),
        handlers,
        configs,
        node=node,
        boot=uuid4(),
        timing=timing,
        **options,  # type: ignore[arg-type]
    )
    floor = Floor(queues, pool)
    handlers.update({name: _watched(floor, script) for name, script in given.items()})
    supervisor = await Supervisor.start_link([queues.spec()], intensity=0)
    try:
        yield floor
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 20):
            await stop(supervisor, SHUTDOWN)


def _watched(floor: Floor, script: Script) -> Script:
    async def handler(job: Job) -> JobOutcome | Recorded:
        floor.started.append(job)
        floor.started_at[job.id] = trio.current_time()
        floor.tell()
        try:
            return await script(job)
        finally:
            floor.ended.append(job)
            floor.tell()

    return handler


def new_job(worker: str = "work", user: str = "", **more: object) -> NewJob:
    return NewJob(uuid4(), worker, user=user, **more)  # type: ignore[arg-type]


@define(eq=False)
class Gate:
    """A script that holds its jobs until they are let go, one by one or all."""

    outcome: JobOutcome | Recorded = field(factory=Complete)
    _events: defaultdict[UUID, trio.Event] = field(factory=lambda: defaultdict(trio.Event))
    _open: bool = False

    async def __call__(self, job: Job) -> JobOutcome | Recorded:
        if not self._open:
            await self._events[job.id].wait()
        return self.outcome

    def let_go(self, job_id: UUID) -> None:
        self._events[job_id].set()

    def open(self) -> None:
        self._open = True
        for event in self._events.values():
            event.set()
