"""What durability costs, and how fast it comes back: one JSON object a line.

    scripts/bench durability            everything (about four minutes)
    scripts/bench durability --quick    a tenth of the sizes, for a look
    scripts/bench durability accepts snapshots recovery jobs stalls      only these

On an embedded PostgreSQL in a temporary folder, fsync and synchronous_commit on. Peers for the jobs: see
`_durability_jobs.py`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
from _durability_jobs import measure
from _durability_tasks import Line, accepts, fill, quiet, recovery, settings, snapshots, stalls

from engine.tasks.state import TaskState
from persistence.pool import Pool
from web.serve import running

PARTS = ("accepts", "stalls", "snapshots", "jobs", "recovery")


@contextmanager
def folder() -> Iterator[Path]:
    """A data folder that PostgreSQL's account can reach, removed at the end."""
    path = Path(tempfile.mkdtemp(prefix="elwift-bench-"))
    path.chmod(0o711)
    try:
        yield path / "data"
    finally:
        shutil.rmtree(path, ignore_errors=True)


def show(lines: list[Line]) -> None:
    for found in lines:
        print(json.dumps(found), flush=True)


async def all_unfinished(pool: Pool, application: object) -> list[TaskState]:
    from persistence.store import PostgresTaskStore

    store, states = PostgresTaskStore(pool), list[TaskState]()
    while page := await store.unfinished(_after(states), 500):
        states += page
    return states


def _after(states: list[TaskState]) -> tuple[int, float, object] | None:
    return (states[-1].priority, states[-1].created_at, states[-1].id) if states else None


async def with_application(data_dir: Path, parts: list[str], tasks: int) -> None:
    """What is measured inside one application, its queues paused."""
    async with running(settings(data_dir)) as application:
        for queue in ("default", "simulate"):
            await application.queues.pause(queue)
        pool = application.persistence.pool
        if "stalls" in parts:
            await trio.to_thread.run_sync(fill, pool.conninfo, 1000, application.queues.node)
            show(await stalls(application, tasks // 10))
        if "snapshots" in parts:
            await trio.to_thread.run_sync(fill, pool.conninfo, tasks, application.queues.node)
            show(await snapshots(pool, (await all_unfinished(pool, application))[:tasks]))
        if "jobs" in parts:
            show(await trio.to_thread.run_sync(measure, pool.conninfo, tasks // 10))


async def with_recovery(data_dir: Path, tasks: int) -> None:
    """Fills the database, then starts and kills the server as a process."""
    async with running(settings(data_dir)) as application:
        await trio.to_thread.run_sync(fill, application.persistence.pool.conninfo, tasks, application.queues.node)
    show(await recovery(data_dir, tasks, kills=3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    parts, tasks = options.parts or list(PARTS), 10_000 if options.quick else 100_000
    quiet()
    if "accepts" in parts:
        with folder() as data_dir:
            show(trio.run(accepts, data_dir, tasks // 8, 3))
    if {"stalls", "snapshots", "jobs"} & set(parts):
        with folder() as data_dir:
            trio.run(with_application, data_dir, parts, tasks)
    if "recovery" in parts:
        with folder() as data_dir:
            trio.run(with_recovery, data_dir, tasks)


if __name__ == "__main__":
    main()
