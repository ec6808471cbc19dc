"""Two servers on one database, as real processes: they share the queue, and one that was stopped loses its claim."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any
from uuid import UUID

import trio
from attrs import define, field

from engine.jobs.config import QueueConfig, Timing
from engine.jobs.job import JobState
from engine.otp import Node
from persistence.jobs.store import PostgresJobStore
from persistence.pool import Pool
from tests.persistence.jobs.floor import at_once, new_job, running

ROOT = Path(__file__).parents[3]
TIMING = Timing(lease=1.0, heartbeat=0.3, rescue=0.1, stage=0.2, poll=0.2, count=0.2, drain=0.5)


@define(eq=False)
class Other:
    """The other server, and what it has said so far."""

    process: trio.Process
    said: list[dict[str, Any]] = field(factory=list)
    _news: trio.Event = field(factory=trio.Event)

    async def read(self) -> None:
        assert self.process.stdout is not None
        rest = b""
        async for chunk in self.process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            self.said += [json.loads(line) for line in lines]
            self._news.set()
            self._news = trio.Event()

    def heard(self, word: str) -> list[Any]:
        return [line[word] for line in self.said if word in line]

    async def says(self, word: str, times: int = 1) -> list[Any]:
        with trio.fail_after(20):
            while len(self.heard(word)) < times:
                await self._news.wait()
        return self.heard(word)

    async def go(self) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(b"go\n")

    async def finish(self) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.aclose()
        with trio.fail_after(20):
            await self.process.wait()


@asynccontextmanager
async def other_server(conninfo: str, node: str, limit: int = 0) -> AsyncIterator[Other]:
    command = [sys.executable, "-m", "tests.persistence.jobs.second_server", conninfo, node, str(limit)]
    process = await trio.lowlevel.open_process(command, stdin=PIPE, stdout=PIPE, cwd=ROOT)
    other = Other(process)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other.read)
        try:
            await other.says("ready")
            yield other
            if process.returncode is None:
                await other.finish()
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            nursery.cancel_scope.cancel()


async def test_a_server_stopped_past_its_lease_loses_its_job_and_its_late_outcome_is_refused(
    node: Node, database: Pool, jobs_conninfo: str
) -> None:
    store, job = PostgresJobStore(database), new_job("hold")
    async with other_server(jobs_conninfo, "stopped") as stopped:
        await store.insert([job])
        assert await stopped.says("started") == [str(job.id)]
        stopped.process.send_signal(signal.SIGSTOP)
        async with running(database, {"hold": at_once}, node="living", timing=TIMING) as floor:
            rescued = await floor.in_state(job.id, JobState.COMPLETED)
        await stopped.go()
        stopped.process.send_signal(signal.SIGCONT)
        await stopped.says("ended")
        await stopped.finish()
        assert await stopped.says("stale") == [1.0]
    record = await store.get(job.id)
    assert record == rescued
    assert (rescued.node, rescued.attempt, rescued.rescues) == ("living", 1, 1)
    assert "stopped" in rescued.errors[0].error


async def test_a_server_killed_outright_has_its_jobs_run_by_the_other_within_a_lease_and_a_sweep(
    node: Node, database: Pool, jobs_conninfo: str
) -> None:
    jobs = [new_job("hold") for _ in range(3)]
    async with other_server(jobs_conninfo, "killed") as killed:
        await PostgresJobStore(database).insert(jobs)
        await killed.says("started", times=3)
        killed.process.kill()
        await killed.process.wait()
    async with running(database, {"hold": at_once}, node="living", timing=TIMING) as floor:
        with trio.fail_after(TIMING.lease + TIMING.rescue + 5.0):
            for job in jobs:
                record = await floor.in_state(job.id, JobState.COMPLETED)
                assert (record.node, record.attempt, record.rescues) == ("living", 1, 1)


async def test_a_pause_on_one_server_holds_on_the_other_at_once(node: Node, database: Pool, jobs_conninfo: str) -> None:
    elsewhere = {"elsewhere": QueueConfig()}
    async with running(database, config=elsewhere) as here, other_server(jobs_conninfo, "other") as other:
        await here.queues.pause("default")
        job = new_job("brief")
        await here.queues.insert([job])
        with trio.move_on_after(0.5):
            await other.says("started")
        assert other.heard("started") == []
        await here.queues.resume("default")
        assert await other.says("ended") == [str(job.id)]


async def test_two_servers_run_each_job_once_and_keep_a_limit_over_both(database: Pool, jobs_conninfo: str) -> None:
    store, jobs = PostgresJobStore(database), [new_job("brief") for _ in range(200)]
    most = 0
    async with other_server(jobs_conninfo, "one", 5) as one, other_server(jobs_conninfo, "two", 5) as two:
        await store.insert(jobs)
        with trio.fail_after(30):
            while len(one.heard("ended")) + len(two.heard("ended")) < 200:
                most = max([most, *(counts.executing for counts in await store.counts())])
                await trio.sleep(0.002)
    started = [UUID(job_id) for server in (one, two) for job_id in server.heard("started")]
    assert sorted(started) == sorted(job.id for job in jobs)
    assert one.heard("started")
    assert two.heard("started")
    assert 1 < most <= 5
