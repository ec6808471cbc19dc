"""Runs one peer's queue through the same work as ours: `_peer_queues.py PEER CONNINFO JOBS SLOTS`, one JSON line.

Each peer is used as its documents advise for throughput: batches in, its fastest driver, as many at once as it is told.
Needs `pgqueuer[asyncpg]` and `procrastinate`; knows nothing of ours.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import timedelta
from typing import Any

INSERT_AT_ONCE = 500


def parameters(conninfo: str) -> dict[str, str]:
    from psycopg.conninfo import conninfo_to_dict

    return {key: str(value) for key, value in conninfo_to_dict(conninfo).items() if key in ("host", "port", "user")}


async def pgqueuer(conninfo: str, jobs: int, slots: int) -> float:
    import asyncpg
    from pgqueuer import AsyncpgPoolDriver, PgQueuer
    from pgqueuer.queries import Queries
    from pgqueuer.types import QueueExecutionMode
    from psycopg.conninfo import conninfo_to_dict

    database = conninfo_to_dict(conninfo)["dbname"]
    pool: Any = await asyncpg.create_pool(database=database, min_size=4, max_size=8, **parameters(conninfo))
    driver = AsyncpgPoolDriver(pool)
    queries = Queries(driver)
    await queries.install()
    queue = PgQueuer(driver)

    @queue.entrypoint("noop")
    async def noop(job: Any) -> None:
        pass

    began = time.perf_counter()
    for _ in range(0, jobs, INSERT_AT_ONCE):
        await queries.enqueue(["noop"] * INSERT_AT_ONCE, [None] * INSERT_AT_ONCE, [0] * INSERT_AT_ONCE)
    await queue.qm.run(
        dequeue_timeout=timedelta(seconds=1),
        batch_size=slots,
        mode=QueueExecutionMode.drain,
        max_concurrent_tasks=2 * slots,
    )
    seconds = time.perf_counter() - began
    left = sum(entry.count for entry in await queries.queue_size())
    if left:
        raise RuntimeError(f"{left} jobs were not run")
    await pool.close()
    return jobs / seconds


async def procrastinate(conninfo: str, jobs: int, slots: int) -> float:
    from procrastinate import App, PsycopgConnector

    app = App(connector=PsycopgConnector(conninfo=conninfo, min_size=4, max_size=8))

    @app.task(name="noop")
    async def noop() -> None:
        pass

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        began = time.perf_counter()
        for _ in range(0, jobs, INSERT_AT_ONCE):
            await noop.batch_defer_async(*[{} for _ in range(INSERT_AT_ONCE)])
        await app.run_worker_async(concurrency=slots, wait=False, install_signal_handlers=False)
        return jobs / (time.perf_counter() - began)


def main() -> None:
    peer, conninfo, jobs, slots = sys.argv[1:5]
    run = {"pgqueuer": pgqueuer, "procrastinate": procrastinate}[peer]
    print(json.dumps({"peer": peer, "jobs_per_s": asyncio.run(run(conninfo, int(jobs), int(slots)))}))


if __name__ == "__main__":
    main()
