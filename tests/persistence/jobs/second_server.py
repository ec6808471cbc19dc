"""A second server's queue, as a program: `python -m tests.persistence.jobs.second_server CONNINFO NODE GLOBAL_LIMIT`.

Says in JSON lines what it does: {"ready"}, {"started": id}, {"ended": id}. Jobs of the worker "hold" end when a line
comes on standard input; those of "brief" take 5 ms. At the end of the input it drains and says what it was refused.
"""

from __future__ import annotations

import json
import sys

import trio

from engine.jobs import metrics
from engine.jobs.config import QueueConfig, Timing
from engine.jobs.job import Complete, Job, JobOutcome
from engine.jobs.queues import Queues
from engine.otp import SHUTDOWN, Node, Supervisor, stop
from persistence.jobs.store import PostgresJobStore
from tests.postgres import opened

TIMING = Timing(lease=1.0, heartbeat=0.3, rescue=0.2, stage=0.2, poll=0.2, count=0.2, drain=0.5)


def say(**words: object) -> None:
    print(json.dumps(words), flush=True)


async def main(conninfo: str, node: str, limit: str) -> None:
    go, over = trio.Event(), trio.Event()

    async def hold(job: Job) -> JobOutcome:
        say(started=str(job.id))
        await go.wait()
        say(ended=str(job.id))
        return Complete()

    async def brief(job: Job) -> JobOutcome:
        say(started=str(job.id))
        await trio.sleep(0.005)
        say(ended=str(job.id))
        return Complete()

    async def listen() -> None:
        async for _ in trio.lowlevel.FdStream(0):
            go.set()
        over.set()

    config = QueueConfig(limit=4, global_limit=int(limit) or None)
    async with opened(conninfo) as pool, Node.open(), trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        queues = Queues(
            PostgresJobStore(pool), {"hold": hold, "brief": brief}, {"default": config}, node=node, timing=TIMING
        )
        supervisor = await Supervisor.start_link([queues.spec()])
        say(ready=node)
        await over.wait()
        await stop(supervisor, SHUTDOWN)
    lost = metrics.LOST.labels("default")._value.get()
    say(stale=metrics.STALE._value.get(), lost=lost)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
