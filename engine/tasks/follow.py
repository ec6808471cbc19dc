"""Other servers on the same database run tasks, too: what was not heard of them is learnt by asking, now and then.

A process beside the TaskServers, and the net below the notifications. Of the tasks that nothing here works on it
asks, a page at a time: of those that live here, whether they still do; of mirrors, whether their log goes on. May
import `engine.otp`, the ports and the rest of this room.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import structlog
import trio

from engine.otp import StartFailed, Via, cast, init_ack
from engine.ports import StorageDown
from engine.runtime import Runtime
from engine.tasks import lookup
from engine.tasks.ids import key
from engine.tasks.mirror import CatchUp, Moved
from engine.tasks.stash import Live

log = structlog.get_logger(__name__)

EVERY = 1.0
"""Seconds between two questions, each about at most PAGE tasks."""
PAGE = 1000
MODELS_EVERY = 30.0
"""Seconds between two looks at the registry of models, where nobody tells of a change."""


async def follow(runtime: Runtime) -> None:
    """Asks for as long as the node lives."""
    init_ack()
    waiting: list[UUID] = []
    while True:
        await trio.sleep(EVERY)
        waiting = waiting or list(runtime.stash.ids())
        page, waiting = waiting[:PAGE], waiting[PAGE:]
        await _tidy(runtime, page)
        idle = [live for live in map(runtime.stash.get, page) if live is not None and live.idle]
        try:
            await _ask(runtime, idle)
        except StorageDown:
            continue


async def follow_models(runtime: Runtime) -> None:
    """Keeps the registry of models as the database has it: when another server says so, and now and then."""
    init_ack()
    relay = runtime.relay
    while True:
        with trio.move_on_after(MODELS_EVERY):
            await relay.other_models.wait()
        relay.other_models = trio.Event()
        try:
            await runtime.models.refresh()
        except StorageDown:
            continue


def moved(runtime: Runtime, task_id: UUID) -> None:
    """Another server has claimed the task's job."""
    if task_id in runtime.stash:
        _tell(runtime, task_id, Moved())


async def _tidy(runtime: Runtime, page: Sequence[UUID]) -> None:
    """What was ended from outside, to save memory or by an operator: a task that waits for its turn is read again when
    it is wanted, one that has something under way goes on."""
    for task_id in page:
        live = runtime.stash.get(task_id)
        if live is None or not live.started or runtime.names.whereis(key(task_id)) is not None:
            continue
        if live.idle and not live.subscribers:
            runtime.stash.drop(task_id)
        else:
            try:
                await lookup.start(runtime, task_id)
            except StartFailed as failed:
                log.error("task not started again", task_id=str(task_id), reason=repr(failed.reason))


async def _ask(runtime: Runtime, idle: Sequence[Live]) -> None:
    for live in idle:
        if live.mirror and not live.subscribers:
            _tell(runtime, live.task.id, Moved())  # it only has to notice that nobody watches
    if runtime.homes.alone:
        idle = [live for live in idle if live.mirror]
    known = {live.task.id: live.task.seq for live in idle}
    for task_id in await runtime.store.ahead(known) if known else ():
        _tell(runtime, task_id, CatchUp(known[task_id]))
    jobs = {live.task.job_id: live.task.id for live in idle if not live.mirror and live.task.job_id is not None}
    for job_id in await runtime.homes.strayed(list(jobs)) if jobs else ():
        _tell(runtime, jobs[job_id], Moved())


def _tell(runtime: Runtime, task_id: UUID, message: object) -> None:
    cast(Via(runtime.names, key(task_id)), message)
