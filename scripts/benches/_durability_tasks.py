"""The journal's, the snapshots' and recovery's part of the durability bench; `durability.py` prints the figures.

Accepts go through the engine (`engine.tasks.intake.accept`) of a whole application, without HTTP: TaskServer, first
event, task row and job in one commit each, `synchronous_commit` on. The queues are paused, so that accepting is all
there is to do. Recovery is that of the server as a process, after kill -9.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import LiteralString

import psycopg
import trio
from attrs import define, evolve, field

from engine.ports import Durability
from engine.tasks.intake import accept
from engine.tasks.messages import NewTask
from engine.tasks.state import TaskState
from persistence.pool import Pool
from persistence.snapshots import Snapshotter
from scripts.server import ServerProcess, launch
from web.application import Application
from web.serve import running
from web.settings import Settings
from web.telemetry import logs

AT_ONCE = 64
READY_WITHIN = 120.0

Line = dict[str, object]


def line(name: str, value: float, unit: str, **more: object) -> Line:
    return {"bench": "durability", "name": name, "value": round(value, 3), "unit": unit, **more}


# --- stalls -----------------------------------------------------------------------------------------------


@define
class Pulse:
    """How long the loop was held at a time, in seconds: by the clock, and of processor time of the loop's thread.

    On a machine with other work the clock also shows who else had the processor; the second figure does not.
    """

    wall: float = 0.0
    processor: float = 0.0

    async def beat(self) -> None:
        while True:
            wall, processor = time.perf_counter(), time.thread_time()
            await trio.sleep(0.001)
            self.wall = max(self.wall, time.perf_counter() - wall - 0.001)
            self.processor = max(self.processor, time.thread_time() - processor)


@asynccontextmanager
async def pulse() -> AsyncIterator[Pulse]:
    """Takes the pulse of the loop for the length of a block."""
    found = Pulse()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(found.beat)
        yield found
        nursery.cancel_scope.cancel()


# --- accepts ----------------------------------------------------------------------------------------------


def settings(data_dir: Path) -> Settings:
    return Settings(
        port=0, data_dir=data_dir, local_model=False, max_queued=10**7, max_queued_per_user=10**7, preempt_budget=0
    )


def wish(number: int) -> NewTask:
    """A task that, were it run, would say something once an hour."""
    return NewTask(user=f"user-{number % 100}", input={"steps": 24, "interval": 3600.0}, model="simulate")


async def accept_many(application: Application, tasks: int) -> list[float]:
    """Seconds that each accept took, `AT_ONCE` at a time."""
    took: list[float] = []
    numbers = iter(range(tasks))

    async def client() -> None:
        for number in numbers:
            began = time.perf_counter()
            accepted = await accept(application.runtime, wish(number))
            took.append(time.perf_counter() - began)
            assert accepted.durability is Durability.DURABLE

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(client)
    return took


@define
class Accepts:
    """Of each round: accepts a second, microseconds of our process's processor time an accept, and p99 in ms."""

    rates: list[float] = field(factory=list)
    processor: list[float] = field(factory=list)
    p99: list[float] = field(factory=list)


async def accepts(data_dir: Path, tasks: int, rounds: int) -> list[Line]:
    """Durable accepts a second and their p99, medians of the rounds."""
    found = Accepts()
    async with running(settings(data_dir)) as application:
        for queue in ("default", "simulate"):
            await application.queues.pause(queue)
        await accept_many(application, tasks // 4)
        spare()
        for _ in range(rounds):
            began, processor = time.perf_counter(), time.process_time()
            took = await accept_many(application, tasks)
            found.rates.append(tasks / (time.perf_counter() - began))
            found.processor.append((time.process_time() - processor) / tasks * 1e6)
            found.p99.append(statistics.quantiles(took, n=100)[98] * 1000)
    processor_us = round(statistics.median(found.processor))
    return [
        line("accepts_per_s", statistics.median(found.rates), "tasks/s", processor_us=processor_us, rounds=found.rates),
        line("accept_p99_ms", statistics.median(found.p99), "ms", rounds=found.p99),
    ]


# --- snapshots --------------------------------------------------------------------------------------------

FILL: LiteralString = """
    INSERT INTO users (external_id) VALUES ('bench') ON CONFLICT DO NOTHING;
    CREATE TEMP TABLE born AS
        SELECT gen_random_uuid() AS id, gen_random_uuid() AS job FROM generate_series(1, {tasks});
    INSERT INTO tasks (id, user_id, model_id, model, provider, status, priority, queue, job_id, input, progress,
                       attempt, max_attempts, version, created_at)
    SELECT b.id, u.id, m.id, m.name, m.provider, 'queued', 4, 'default', b.job, '{input}', 0, 0, 3, 1, now()
    FROM born b, users u, models m WHERE u.external_id = 'bench' AND m.name = 'simulate';
    INSERT INTO task_events (task_id, seq, type, attempt, actor, payload, at)
    SELECT t.id, 1, 'created', 0, 'user', jsonb_build_object('user', 'bench', 'model_id', t.model_id, 'model', t.model,
        'provider', t.provider, 'input', t.input, 'job_id', t.job_id), t.created_at
    FROM tasks t JOIN born USING (id);
    INSERT INTO jobs (id, worker, task_id, user_key, args, home)
    SELECT b.job, 'task', b.id, 'bench', jsonb_build_object('task_id', b.id), '{home}' FROM born b;
    DROP TABLE born;
    ANALYZE
"""


def fill(conninfo: str, tasks: int, home: str) -> None:
    """So many unfinished tasks with their jobs, as accepting them leaves them on the server called `home`."""
    query = FILL.replace("{tasks}", str(tasks)).replace("{input}", '{"steps": 24, "interval": 3600.0}')
    query = query.replace("{home}", home)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(query.encode())


async def snapshots(pool: Pool, states: Iterable[TaskState]) -> list[Line]:
    """Seconds to write a snapshot of each state, and the longest hold of the loop meanwhile."""
    snapshotter = Snapshotter(pool)
    changed = [evolve(state, progress=0.5, text="a few words of what was said. " * 8) for state in states]
    spare()
    seconds, holds = [], []
    for progress in (0.5, 0.6, 0.7):
        for state in changed:
            snapshotter.dirty(evolve(state, progress=progress))
        async with pulse() as found:
            began = time.perf_counter()
            await snapshotter.round()
            seconds.append(time.perf_counter() - began)
        holds.append(found)
    stall = {"wall_ms": [found.wall * 1000 for found in holds]}
    return [
        line("snapshot_100k_s", statistics.median(seconds), "s", tasks=len(changed), rounds=seconds),
        line("snapshot_stall_ms", statistics.median(found.processor for found in holds) * 1000, "ms", **stall),
    ]


# --- stalls by the database layer under a mixture ---------------------------------------------------------


async def stalls(application: Application, tasks: int) -> list[Line]:
    """The longest hold of the loop while tasks are accepted, snapshots written, and histories and logs read."""
    persistence = application.persistence
    states = list(await persistence.store.unfinished(None, 500))
    spare()
    async with pulse() as found, trio.open_nursery() as nursery:

        async def readers() -> None:
            while True:
                page = await persistence.store.history("bench", limit=100)
                await persistence.store.events(page.tasks[0].id)
                await persistence.store.unfinished(None, 500)

        async def writers() -> None:
            while True:
                for state in states:
                    persistence.snapshots.dirty(evolve(state, text="word " * 200))
                await persistence.snapshots.round()

        nursery.start_soon(readers)
        nursery.start_soon(writers)
        await accept_many(application, tasks)
        nursery.cancel_scope.cancel()
    return [line("db_stall_ms", found.processor * 1000, "ms", wall_ms=found.wall * 1000)]


# --- recovery ---------------------------------------------------------------------------------------------


async def recovery(data_dir: Path, tasks: int, kills: int) -> list[Line]:
    """Seconds from the start after a kill -9 to the first answer, and until every unfinished task is back."""
    ready, everything = [], []
    environment = {"ELWIFT_LOCAL_MODEL": "false", "ELWIFT_LOG_FORMAT": "json"}
    async with trio.open_nursery() as nursery:
        server = await launch(nursery, data_dir, environment=environment, within=READY_WITHIN)
        for _ in range(kills):
            await server.kill()
            said = server.log.stat().st_size
            began = time.perf_counter()
            server = await launch(nursery, data_dir, environment=environment, within=READY_WITHIN)
            ready.append(time.perf_counter() - began)
            await recovered(server, said)
            everything.append(time.perf_counter() - began)
        await server.terminate(within=60)
        nursery.cancel_scope.cancel()
    return [
        line("recovery_ready_s", statistics.median(ready), "s", tasks=tasks, rounds=ready),
        line("recovery_all_s", statistics.median(everything), "s", tasks=tasks, rounds=everything),
    ]


async def recovered(server: ServerProcess, said: int) -> None:
    """Returns once the server's log says, after its first `said` bytes, that recovery is complete."""
    with trio.fail_after(READY_WITHIN):
        while True:
            with server.log.open("rb") as log:
                log.seek(said)
                if b"recovery complete" in log.read():
                    return
            await trio.sleep(0.05)


def quiet() -> None:
    """Benches print figures, not logs."""
    logs.configure("json", "critical")


def spare() -> None:
    """What was made so far out of the garbage collector's sight, as `web.serve` does at a start."""
    gc.collect()
    gc.freeze()
