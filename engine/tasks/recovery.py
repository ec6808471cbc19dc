"""After a start the tasks that live here and were unfinished come back, the urgent and the old ones first, a page at a
time. So do, when another server is lost, those that lived there.

A process beside the TaskServers. New requests are served meanwhile: it never has more than one start under way, and
lets the others run after each few. Their jobs come back by the queue's own recovery.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import structlog
import trio
from attrs import frozen

from engine import telemetry
from engine.otp import ChildSpec, DynamicSupervisor, Start, StartFailed, Supervisor, Via, cast, init_ack
from engine.ports import StorageDown
from engine.runtime import TASKS, Runtime
from engine.tasks import lookup, stash
from engine.tasks.follow import follow, follow_models
from engine.tasks.ids import key
from engine.tasks.mirror import Adopted
from engine.tasks.spent import clear
from engine.tasks.state import TaskState

log = structlog.get_logger(__name__)

PAGE = 500
STORAGE_PAUSE = 1.0

RESTARTS = 1000
"""Crashes of TaskServers in RESTART_PERIOD seconds that are borne. One task cannot use them up (see
`server.POISONED_AFTER`); when hundreds crash at once, it is something that they share, and that is started anew."""
RESTART_PERIOD = 5.0

Key = tuple[int, float, UUID]


def specs(runtime: Runtime) -> tuple[ChildSpec, ChildSpec]:
    """The supervisor of the TaskServers, and what fills it and keeps it up to date: two children of the tree, in this
    order."""
    telemetry.TASKS_LIVE.set_function(lambda: len(runtime.stash))
    return (
        DynamicSupervisor.spec(id=TASKS, name=TASKS, intensity=RESTARTS, period=RESTART_PERIOD),
        Supervisor.spec(
            [
                ChildSpec(id="recover", start=Start.process(recover, runtime, name="recovery")),
                ChildSpec(id="follow", start=Start.process(follow, runtime, name="follow")),
                ChildSpec(id="spent", start=Start.process(clear, runtime, name="spent")),
                ChildSpec(id="follow models", start=Start.process(follow_models, runtime, name="follow models")),
                ChildSpec(id="relay", start=Start.process(runtime.relay.run, name="relay")),
            ],
            id="recovery",
        ),
    )


async def recover(runtime: Runtime) -> None:
    """Brings back every unfinished task that lives here, now and whenever another server is gone."""
    init_ack()
    while True:
        await bring_back(runtime)
        await runtime.homes.someone_gone()


async def bring_back(runtime: Runtime) -> None:
    """Goes through all unfinished tasks once."""
    after: Key | None = None
    count = 0
    with garbage_collection_paused():
        while page := await _page(runtime, after):
            for task in page.here:
                count += await _bring_back(runtime, task)
            after = page.last
    log.info("recovery complete", tasks=count)


@frozen
class Here:
    """Of a page of unfinished tasks, those that live here; and the place in the order where the page ends."""

    here: tuple[TaskState, ...]
    last: Key


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """What a recovery makes is there to stay: looking through it again and again, as it grows, would stall the loop
    for half a second at a hundred thousand tasks."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


async def _page(runtime: Runtime, after: Key | None) -> Here | None:
    """The next page, however long the database is away: there is nothing else to do meanwhile."""
    while True:
        try:
            tasks = await runtime.store.unfinished(after, PAGE)
            if not tasks:
                return None
            ours = await runtime.homes.adopt([task.job_id for task in tasks if task.job_id is not None])
        except StorageDown:
            await trio.sleep(STORAGE_PAUSE)
        else:
            here = tuple(task for task in tasks if task.job_id in ours)
            return Here(here, (tasks[-1].priority, tasks[-1].created_at, tasks[-1].id))


async def _bring_back(runtime: Runtime, task: TaskState) -> bool:
    """Starts one task's TaskServer, unless it is there; one that cannot be started does not hold up the others."""
    if not runtime.stash.offer(stash.of(task)):
        live = runtime.stash.get(task.id)
        if live is not None and live.mirror:
            cast(Via(runtime.names, key(task.id)), Adopted())
        return False
    try:
        await lookup.start(runtime, task.id)
    except StartFailed as failed:
        log.error("task not recovered", task_id=str(task.id), reason=repr(failed.reason))
        runtime.stash.drop(task.id)
        return False
    telemetry.TASKS_RECOVERED.inc()
    return True
