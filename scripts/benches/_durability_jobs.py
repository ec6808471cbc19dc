"""The queue's part of the durability bench: jobs a second beside two peers, and insert to start on an idle queue.

Every measurement gets its own database on the server that the caller started (`synchronous_commit` on). The peers run
in a child process of their own, on the same server, one after the other. `durability.py` prints the figures.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import trio
from _peers import peer_python
from psycopg.conninfo import make_conninfo

from engine.jobs.config import QueueConfig
from engine.jobs.job import Complete, Job, JobOutcome, NewJob
from engine.jobs.queues import Queues
from engine.otp import SHUTDOWN, Node, Supervisor, stop
from engine.ports import Entry
from engine.tasks.events import Actor, Created, TaskEvent
from engine.tasks.state import fold
from persistence.jobs.store import PostgresJobStore
from persistence.journal.journal import PostgresJournal
from persistence.migrator import migrate
from persistence.pool import Pool

SLOTS = 100
"""Jobs at once, the same for everybody."""
INSERT_AT_ONCE = 500
PEERS = ("pgqueuer[psycopg]==1.6.0", "asyncpg", "procrastinate==3.10.0", "psycopg[binary,pool]")
PEER_DEADLINE = 180
"""Seconds that a peer may take."""


def fresh_database(conninfo: str, name: str) -> str:
    """Makes an empty database beside the one that `conninfo` names; how to connect to it."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        connection.execute(f'CREATE DATABASE "{name}"')
    return make_conninfo(conninfo, dbname=name)


@asynccontextmanager
async def _watched(conninfo: str) -> AsyncIterator[Pool]:
    pool = Pool(conninfo, size=8, migrations=None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.watch, lambda: None)
        with trio.fail_after(10):
            await pool.wait_up()
        yield pool
        nursery.cancel_scope.cancel()


# --- jobs a second ------------------------------------------------------------------------------------------


async def jobs_per_second(conninfo: str, jobs: int) -> float:
    """No-op jobs inserted, run and recorded as completed, over the time from the first insert to the last record."""
    conninfo = fresh_database(conninfo, "bench_jobs")
    await trio.to_thread.run_sync(migrate, conninfo)
    async with _watched(conninfo) as pool, Node.open():
        queues = Queues(PostgresJobStore(pool), {"noop": _noop}, {"default": QueueConfig(limit=SLOTS)})
        supervisor = await Supervisor.start_link([queues.spec()])
        began = time.perf_counter()
        for _ in range(0, jobs, INSERT_AT_ONCE):
            await queues.insert([NewJob(uuid4(), "noop") for _ in range(min(INSERT_AT_ONCE, jobs))])
        await _all_completed(pool, jobs)
        seconds = time.perf_counter() - began
        await stop(supervisor, SHUTDOWN)
    return jobs / seconds


async def _noop(job: Job) -> JobOutcome:
    return Complete()


async def _all_completed(pool: Pool, jobs: int) -> None:
    """Asks the database, which is the one to know, until it holds so many completed jobs."""
    with trio.fail_after(PEER_DEADLINE):
        while True:
            async with pool.connection() as connection:
                row = await (await connection.execute("SELECT count(*) FROM jobs WHERE state = 'completed'")).fetchone()
            if row and row[0] >= jobs:
                return
            await trio.sleep(0.05)


# --- insert to start ----------------------------------------------------------------------------------------


async def insert_to_start(conninfo: str, times: int) -> tuple[float, float]:
    """(p50, p99) in milliseconds from handing a task's first entry to the journal until its job's handler runs."""
    conninfo = fresh_database(conninfo, "bench_start")
    await trio.to_thread.run_sync(migrate, conninfo)
    async with _watched(conninfo) as pool, Node.open():
        started: dict[UUID, float] = {}
        arrived = trio.Event()

        async def note(job: Job) -> JobOutcome:
            started[job.id] = time.perf_counter()
            arrived.set()
            return Complete()

        queues = Queues(PostgresJobStore(pool), {"note": note})
        journal = PostgresJournal(pool, door=queues)
        supervisor = await Supervisor.start_link([queues.spec()])
        waits = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.flush)
            for _ in range(times):
                arrived = trio.Event()
                job = NewJob(uuid4(), "note", user="bench")
                began = time.perf_counter()
                await journal.write(_first_entry(job))
                await arrived.wait()
                waits.append((started[job.id] - began) * 1000)
                await trio.sleep(0.005)  # an idle queue is what is measured: the last outcome has been written by now
            nursery.cancel_scope.cancel()
        await stop(supervisor, SHUTDOWN)
    cuts = statistics.quantiles(waits, n=100)
    return cuts[49], cuts[98]


def _first_entry(job: NewJob) -> Entry:
    body = Created("bench", UUID(int=1), "simulate", "simulate", {"prompt": "hello"}, job_id=job.id)
    event = TaskEvent(uuid4(), 1, time.time(), 0, Actor.USER, body)
    return Entry(fold(None, event), (event,), new_job=job)


# --- the peers ----------------------------------------------------------------------------------------------


def peer_jobs_per_second(conninfo: str, peer: str, jobs: int) -> float | None:
    """The same for `pgqueuer` or `procrastinate`; None where it cannot be had."""
    python = peer_python("queues", *PEERS)
    if python is None:
        return None
    conninfo = fresh_database(conninfo, f"bench_{peer}")
    script = Path(__file__).with_name("_peer_queues.py")
    command = [str(python), str(script), peer, conninfo, str(jobs), str(SLOTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PEER_DEADLINE, check=False)
    if done.returncode:
        print(f"{peer} could not be measured: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return float(json.loads(done.stdout.splitlines()[-1])["jobs_per_s"])


def measure(conninfo: str, jobs: int = 10_000, starts: int = 300) -> list[dict[str, object]]:
    """All of the queue's figures, as lines of the bench."""
    ours = [trio.run(jobs_per_second, conninfo, jobs) for _ in range(2)]
    peers = {peer: peer_jobs_per_second(conninfo, peer, jobs) for peer in ("pgqueuer", "procrastinate")}
    p50, p99 = trio.run(insert_to_start, conninfo, starts)

    def line(name: str, value: float, unit: str, **more: object) -> dict[str, object]:
        return {"bench": "durability", "name": name, "value": round(value, 2), "unit": unit, **more}

    rounded = {peer: None if rate is None else round(rate, 1) for peer, rate in peers.items()}
    return [
        line("jobs_per_s", statistics.median(ours), "jobs/s", peers=rounded),
        line("insert_start_p50_ms", p50, "ms"),
        line("insert_start_p99_ms", p99, "ms"),
    ]


if __name__ == "__main__":
    for found in measure(sys.argv[1], *(int(number) for number in sys.argv[2:])):
        print(json.dumps(found))
