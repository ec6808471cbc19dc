"""Every question of the application at a million tasks: how long it takes, and by which index it is answered.

    scripts/bench million              a million tasks (filling takes some three minutes)
    scripts/bench million 100000       fewer

One JSON object a question: `value` is the p99 in ms, with p50, the pages that its statements touched, and the indices.
The server is told once, by ANALYZE, what its tables hold; tests/persistence/test_plans.py asks where it was never told.
Ends with status 1 when a statement reads a table from end to end.
"""

from __future__ import annotations

import json
import logging
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psycopg
import trio
from _million_fill import fill
from _million_questions import GROWN, Asker, WatchedPool

from persistence.embedded.folder import DataFolder
from persistence.embedded.server import EmbeddedServer

ROUNDS = 30


async def main(tasks: int) -> int:
    folder = make_folder()
    server = EmbeddedServer(DataFolder(folder / "data"))
    pool = WatchedPool(server.conninfo)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run, lambda: None)
            nursery.start_soon(pool.watch, lambda: None)
            await pool.wait_up()
            began = time.monotonic()
            await trio.to_thread.run_sync(fill, pool.conninfo, tasks, tasks // 50)
            await trio.to_thread.run_sync(vacuum, pool.conninfo)
            emit("fill", (time.monotonic() - began) * 1e3, tasks=tasks)
            scans = await ask(pool, tasks // 50)
            nursery.cancel_scope.cancel()
    finally:
        server.folder.release()
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if scans else 0


def make_folder() -> Path:
    """One that PostgreSQL's account can reach."""
    folder = Path(tempfile.mkdtemp(prefix="elwift-bench-"))
    folder.chmod(0o711)
    return folder


def vacuum(conninfo: str) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE)")


async def ask(pool: WatchedPool, users: int) -> int:
    """Prints a line for each question; how many statements scanned a table."""
    asker, scans = Asker(pool, users), 0
    await asker.look_round()
    async with asker.at_work():
        took: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for name, question in asker.questions().items():
                began = time.perf_counter()
                await question()
                took.setdefault(name, []).append((time.perf_counter() - began) * 1e3)
        pool.watching = True
        for name, question in asker.questions().items():
            pool.plans.clear()
            await question()
            await trio.sleep(0.05)  # what is written behind the answer
            whole = sorted({table for plan in pool.plans for table in plan.whole & GROWN})
            scans += len(whole)
            emit(
                name,
                sorted(took[name])[-1 - ROUNDS // 100],
                p50=round(statistics.median(took[name]), 2),
                pages=sum(plan.pages for plan in pool.plans),
                indices=sorted({index for plan in pool.plans for index in plan.indices}),
                **({"scanned": whole} if whole else {}),
            )
    return scans


def emit(name: str, value: float, **more: object) -> None:
    print(json.dumps({"bench": "million", "name": name, "value": round(value, 2), "unit": "ms", **more}), flush=True)


if __name__ == "__main__":
    logging.disable()  # the made-up snapshots are none, and are passed over with a word each
    sys.exit(trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000))
