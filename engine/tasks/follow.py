"""Other servers on the same database run jobs, too: what they do to tasks that are live here is learnt from the log.

A process beside the TaskServers. Of the tasks that nobody works on here it asks the store, a page at a time, whose log
goes on, and tells their TaskServers to catch up. Durable events arrive so; progress and text of an attempt that runs
elsewhere do not. May import `engine.otp`, the ports and the rest of this room.
"""

from __future__ import annotations

from uuid import UUID

import trio

from engine.otp import Via, cast, init_ack
from engine.ports import StorageDown
from engine.runtime import Runtime
from engine.tasks.delivery import key
from engine.tasks.server import CatchUp
from engine.tasks.stash import Live

EVERY = 1.0
"""Seconds between two questions, each about at most PAGE tasks."""
PAGE = 1000


async def follow(runtime: Runtime) -> None:
    """Asks for as long as the node lives."""
    init_ack()
    waiting: list[UUID] = []
    while True:
        await trio.sleep(EVERY)
        waiting = waiting or list(runtime.stash.ids())
        page, waiting = waiting[:PAGE], waiting[PAGE:]
        known = {id: live.task.seq for id in page if (live := runtime.stash.get(id)) is not None and idle(live)}
        if known:
            await _catch_up(runtime, known)


def idle(live: Live) -> bool:
    """Whether nothing of ours is under way for the task, so that only others can take it on."""
    return live.worker is None and live.outbox.settled


async def _catch_up(runtime: Runtime, known: dict[UUID, int]) -> None:
    try:
        ahead = await runtime.store.ahead(known)
    except StorageDown:
        return
    for task_id in ahead:
        cast(Via(runtime.names, key(task_id)), CatchUp(known[task_id]))
