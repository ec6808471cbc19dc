"""The database goes away under the journal and the queue: work goes on in memory, and all of it is found afterwards."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import psycopg
import pytest
import trio
from attrs import define, field
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from engine.jobs.config import QueueConfig
from engine.jobs.job import Complete, Job, JobChange, JobOutcome, JobState, NewJob, Recorded, Retry, Snooze
from engine.otp import Node
from engine.ports import Buffered, Committed, Receipt
from engine.tasks.events import AttemptFailed, Completed, Started
from persistence.journal.journal import PostgresJournal
from persistence.pool import Pool
from tests.persistence.entries import Story
from tests.persistence.jobs.floor import Floor, Gate, Script, new_job, running


class Outage:
    """Takes one database away: nobody is let in, and who is in is thrown out."""

    def __init__(self, conninfo: str) -> None:
        self._name = str(conninfo_to_dict(conninfo)["dbname"])
        self._elsewhere = make_conninfo(conninfo, dbname="postgres")

    def begin(self) -> None:
        with psycopg.connect(self._elsewhere, autocommit=True) as connection:
            connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(self._name)))
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (self._name,)
            )

    def end(self) -> None:
        with psycopg.connect(self._elsewhere, autocommit=True) as connection:
            connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(self._name)))


@pytest.fixture
async def outage(database: Pool, jobs_conninfo: str) -> AsyncIterator[Outage]:
    made = Outage(jobs_conninfo)
    yield made
    await trio.to_thread.run_sync(made.end)


@define(eq=False)
class House:
    """A queue and a journal on one database, with the stories of the tasks."""

    floor: Floor
    journal: PostgresJournal
    receipts: list[Receipt] = field(factory=list)

    async def accept(self, worker: str, **more: object) -> tuple[Story, NewJob]:
        story, job = Story(), new_job(worker, task_id=uuid4(), **more)
        self.receipts.append(await self.journal.write(story.begin(job=job)))
        return story, job


@asynccontextmanager
async def house(pool: Pool, scripts: dict[str, Script], config: QueueConfig | None = None) -> AsyncIterator[House]:
    journal = PostgresJournal(pool)
    async with running(pool, scripts, config) as floor, trio.open_nursery() as nursery:
        journal.door = floor.queues
        nursery.start_soon(journal.flush)
        yield House(floor, journal)
        with trio.fail_after(20):
            await journal.drained()
        nursery.cancel_scope.cancel()


def told(journal: PostgresJournal, story: Story, job: Job, outcome: JobOutcome) -> None:
    """What a TaskServer does at the end of an attempt: the event and the job's outcome in one entry."""
    body = Completed(1.0) if isinstance(outcome, Complete) else AttemptFailed("x", "x", "x", time.time())
    entry = story.then(
        Started("simulate", "simulate"), body, attempt=job.attempt, job=JobChange(job.id, outcome, job.fence)
    )
    journal.submit(entry, lambda receipt: None)


async def away(pool: Pool, outage: Outage) -> None:
    await trio.to_thread.run_sync(outage.begin)
    with trio.fail_after(10):
        while True:
            if not pool.up:
                return
            await trio.sleep(0.01)


async def test_jobs_accepted_during_an_outage_run_at_once_and_settle_when_it_is_over(
    node: Node, database: Pool, outage: Outage
) -> None:
    stories: dict[object, Story] = {}

    async def script(job: Job) -> Recorded:
        told(home.journal, stories[job.id], job, Complete())
        return Recorded()

    async with house(database, {"script": script}, QueueConfig(limit=2)) as home:
        await away(database, outage)
        for _ in range(5):
            story, job = Story(), new_job("script", task_id=uuid4())
            stories[job.id] = story
            assert isinstance(await home.journal.write(story.begin(job=job)), Buffered)
        await home.floor.until(lambda: len(home.floor.ended) == 5)
        assert not database.up
        await trio.to_thread.run_sync(outage.end)
        for job_id in stories:
            record = await _when_back(home, job_id)
            assert (record.state, record.attempt, record.rescues) == (JobState.COMPLETED, 1, 0)
    assert len(home.floor.started) == 5


async def _when_back(home: House, job_id: object) -> object:
    with trio.fail_after(15):
        await home.floor.pool.wait_up()
    return await home.floor.in_state(job_id, JobState.COMPLETED, JobState.DISCARDED, seconds=15)  # type: ignore[arg-type]


async def test_an_attempt_that_fails_during_an_outage_is_made_again_during_it(
    node: Node, database: Pool, outage: Outage
) -> None:
    story, new = Story(), new_job("script", task_id=uuid4(), max_attempts=3)

    async def script(job: Job) -> Recorded:
        outcome = Complete() if job.attempt == 2 else Retry("first", time.time())
        told(home.journal, story, job, outcome)
        return Recorded()

    async with house(database, {"script": script}) as home:
        await away(database, outage)
        await home.journal.write(story.begin(job=new))
        await home.floor.until(lambda: len(home.floor.ended) == 2)
        assert not database.up
        await trio.to_thread.run_sync(outage.end)
        record = await _when_back(home, new.id)
    assert (record.attempt, [error.error for error in record.errors]) == (2, ["first"])  # type: ignore[attr-defined]


async def test_a_job_that_runs_when_the_database_goes_keeps_its_claim_until_it_is_back(
    node: Node, database: Pool, outage: Outage
) -> None:
    gate, story, new = Gate(), Story(), new_job("script", task_id=uuid4())

    async def script(job: Job) -> Recorded:
        await gate(job)
        told(home.journal, story, job, Complete())
        return Recorded()

    async with house(database, {"script": script}) as home:
        assert isinstance(await home.journal.write(story.begin(job=new)), Committed)
        await home.floor.until(lambda: len(home.floor.started) == 1)
        await away(database, outage)
        # longer than a lease: its heartbeats cannot be written, and yet nobody may take it
        await trio.sleep(2.0)
        await trio.to_thread.run_sync(outage.end)
        with trio.fail_after(15):
            await database.wait_up()
        gate.open()
        record = await _when_back(home, new.id)
    assert (record.rescues, len(home.floor.started)) == (0, 1)  # type: ignore[attr-defined]


async def test_what_a_handler_could_not_begin_in_memory_is_settled_after_its_row_is_there(
    node: Node, database: Pool, outage: Outage
) -> None:
    async def script(job: Job) -> JobOutcome | Recorded:
        if len(home.floor.started) == 1:
            return Snooze(time.time(), "not begun")
        told(home.journal, story, job, Complete())
        return Recorded()

    story, new = Story(), new_job("script", task_id=uuid4())
    async with house(database, {"script": script}) as home:
        await away(database, outage)
        await home.journal.write(story.begin(job=new))
        await home.floor.until(lambda: len(home.floor.ended) == 1)
        await trio.to_thread.run_sync(outage.end)
        record = await _when_back(home, new.id)
    assert (record.state, record.attempt, record.snoozes) == (JobState.COMPLETED, 1, 1)  # type: ignore[attr-defined]
