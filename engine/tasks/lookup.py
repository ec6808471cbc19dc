"""Finding a task, wherever it is: its TaskServer, its state in memory, or what the store has. And orders to it.

What the doors and the workers use. May import `engine.otp`, the ports and the rest of this room.
"""

from __future__ import annotations

from typing import TypeVar
from uuid import UUID, uuid4

import trio
from attrs import evolve

from engine.errors import UserError
from engine.otp import (
    TRANSIENT,
    AlreadyStarted,
    CallFailed,
    Ignored,
    Pid,
    Request,
    StartFailed,
    Via,
    call,
    start_child,
    worker,
)
from engine.ports import Buffered, Committed, Durability, Receipt, StorageDown
from engine.runtime import TASKS, Runtime
from engine.tasks import decide, delivery, stash
from engine.tasks.events import Actor
from engine.tasks.ids import key
from engine.tasks.messages import CancelTask, Refusal, RetryTask, Subscribe, View
from engine.tasks.outbox import Pending
from engine.tasks.server import TaskServer, view_of
from engine.tasks.stash import Live
from engine.tasks.state import Status, TaskState

A = TypeVar("A")

CALL_TIMEOUT = 10.0
"""Seconds until an order to a task must be answered: its answer may wait for the journal."""

RECEIPT_TIMEOUT = 30.0
"""Seconds that a newcomer waits for the journal, which within that time either has the entry or says it is away."""

ATTEMPTS = 5
"""How often an order is repeated to a TaskServer that crashes under it."""

EVENTS_A_PAGE = 500


def whereis(runtime: Runtime, task_id: UUID) -> Pid | None:
    """The task's TaskServer, if the task is live on this node."""
    return runtime.names.whereis(key(task_id))


async def find(runtime: Runtime, task_id: UUID) -> TaskState | None:
    """The task as others may know it: from memory while it is live, else from the store. Raises StorageDown."""
    live = runtime.stash.get(task_id)
    return live.outbox.told if live is not None else await runtime.store.load(task_id)


def stored(runtime: Runtime, task_id: UUID) -> bool:
    """Whether all that has happened to a task is in the database, also what nobody was told yet."""
    live = runtime.stash.get(task_id)
    return live is None or live.outbox.settled


def durability(runtime: Runtime, task_id: UUID) -> Durability:
    """Where all that is known of a task is: in the database, or in part in memory only."""
    live = runtime.stash.get(task_id)
    in_memory = live is not None and live.outbox.durable_seq is not None
    return Durability.MEMORY if in_memory else Durability.DURABLE


async def ensure(runtime: Runtime, task_id: UUID) -> Pid | None:
    """The task's TaskServer; started from the store when there is none. None: unknown, or over.

    Raises:
        StorageDown: it is not in memory and cannot be looked for.
        StartFailed: it does not come up.
    """
    pid = whereis(runtime, task_id)
    if pid is not None:
        return pid
    if task_id not in runtime.stash:
        task = await runtime.store.load(task_id)
        if task is None or task.status.terminal:
            return None
        runtime.stash.offer(stash.of(task, mirror=True))  # until it is told to live here
    return await start(runtime, task_id)


async def start(runtime: Runtime, task_id: UUID) -> Pid | None:
    """Starts the TaskServer of a task whose state lies in the stash. Somebody else's start is as good.

    While a crashed one is being restarted, the supervisor answers after that, and with the new one.
    """
    spec = worker(TaskServer, runtime, task_id, id=task_id, name=Via(runtime.names, key(task_id)), restart=TRANSIENT)
    try:
        return await start_child(TASKS, spec)
    except Ignored:
        return None
    except StartFailed as failed:
        if isinstance(failed.reason, AlreadyStarted) and isinstance(failed.reason.pid, Pid):
            return failed.reason.pid
        raise


async def ask(runtime: Runtime, task_id: UUID, request: Request[A]) -> A | None:
    """Asks the task's TaskServer, and asks again when it crashes or ends under the question. None: it is over."""
    for tries_left in reversed(range(ATTEMPTS)):
        server = await ensure(runtime, task_id)
        if server is None:
            return None
        try:
            return await call(server, request, CALL_TIMEOUT)
        except CallFailed:
            if not tries_left:
                raise UserError("timeout", "The task does not answer. Try again.", retry_after=1.0) from None
    raise AssertionError("the last try answers or raises")


# --- what newcomers see -----------------------------------------------------------------------------------


async def join(runtime: Runtime, subscriber: Pid, task_id: UUID, last_seq: int | None) -> View | None:
    """Subscribes a process to a task and answers what it missed; of a finished task, the same without subscribing.

    None: there is no such task. Raises StorageDown.
    """
    server = whereis(runtime, task_id)
    if server is not None:
        try:
            seen = await call(server, Subscribe(subscriber, last_seq), CALL_TIMEOUT)
        except CallFailed:
            if await ensure(runtime, task_id) is not None:
                return await join(runtime, subscriber, task_id, last_seq)
        else:
            return await _completed(runtime, seen, last_seq)
    task = await runtime.store.load(task_id)
    if task is None or task.status.terminal or await ensure(runtime, task_id) is None:
        return await view(runtime, task_id, last_seq)
    return await join(runtime, subscriber, task_id, last_seq)


async def view(runtime: Runtime, task_id: UUID, last_seq: int | None) -> View | None:
    """The task and the events after `last_seq`. None: there is no such task. Raises StorageDown."""
    live = runtime.stash.get(task_id)
    if live is not None:
        return await _completed(runtime, view_of(live, last_seq), last_seq)
    task = await runtime.store.load(task_id)
    return None if task is None else await _completed(runtime, view_of(stash.of(task), last_seq), last_seq)


async def _completed(runtime: Runtime, seen: View, last_seq: int | None) -> View:
    """The view with all that was missed, and with links that work now."""
    seen = await _with_missed(runtime, seen, last_seq)
    links, now = runtime.outputs.links, runtime.clock()
    events = await links.events(seen.task, seen.events, now)
    return evolve(seen, task=await links.task(seen.task, now), events=events)


async def _with_missed(runtime: Runtime, seen: View, last_seq: int | None) -> View:
    """Adds, from the store, the events that are not in memory any more."""
    if not seen.reset or last_seq is None or not 0 <= last_seq <= seen.task.seq:
        return seen
    try:
        events = await runtime.store.events(seen.task.id, after=last_seq, limit=EVENTS_A_PAGE)
    except StorageDown:
        return seen
    events = tuple(event for event in events if event.seq <= seen.task.seq)
    reached = events[-1].seq if events else last_seq
    if [event.seq for event in events] != list(range(last_seq + 1, reached + 1)):
        return seen
    return evolve(seen, events=events, has_more=reached < seen.task.seq, reset=False)


# --- orders -----------------------------------------------------------------------------------------------


async def cancel(runtime: Runtime, task_id: UUID, actor: Actor = Actor.USER, reason: str = "requested") -> TaskState:
    """Cancels a task at whatever stage; one that is over is answered unchanged.

    Raises:
        UserError: `unknown_task`, `timeout`.
        StorageDown
    """
    for _ in range(ATTEMPTS):
        task = await ask(runtime, task_id, CancelTask(actor, reason)) or await _known(runtime, task_id)
        if task.status.terminal:
            return task  # else what was known here was out of date, and is not any more
    raise UserError("conflict", "The task is being run elsewhere and cannot be stopped now. Try again.")


async def retry(runtime: Runtime, task_id: UUID, actor: Actor = Actor.USER) -> TaskState:
    """Gives a failed task a new job, and with it new attempts.

    Raises:
        UserError: `unknown_task`, `not_failed`, `over_capacity`, `over_quota`, `over_budget`, `timeout`.
        StorageDown
    """
    task = await _known(runtime, task_id)
    _only_failed(task)
    await runtime.budgets.check(task.user)
    runtime.queues.admit(task.queue, task.user, task.priority)
    server = whereis(runtime, task_id)
    if server is not None:
        try:
            return _accepted(await call(server, RetryTask(actor, uuid4()), CALL_TIMEOUT))
        except CallFailed:
            task = await _known(runtime, task_id)
            _only_failed(task)
    return await _revived(runtime, task, actor)


async def _revived(runtime: Runtime, task: TaskState, actor: Actor) -> TaskState:
    """The failed task has left memory: its new life begins as its first did, with an entry of its own."""
    entry = decide.requeue(task, runtime.clock(), actor, uuid4(), runtime.homes.node)
    live = delivery.unborn(runtime, entry, told=task)
    if not runtime.stash.offer(live):
        raise UserError("conflict", "The task is being retried already.")
    receipt = await launch(runtime, live)
    if not isinstance(receipt, Committed | Buffered):
        raise UserError("conflict", "The task was retried already.")
    return entry.task


async def launch(runtime: Runtime, live: Live) -> Receipt:
    """Submits the one entry that `live` waits for, starts its TaskServer, and waits for the first receipt.

    Raises:
        JournalFull: nothing was written, nothing was started.
        UserError: `timeout`: no receipt came in time; the entry may still be written.
    """
    (item,) = live.outbox.items
    assert isinstance(item, Pending)
    try:
        runtime.journal.submit(item.entry, item.receive)
    except BaseException:
        runtime.stash.drop(live.task.id)
        raise
    item.submitted = True
    with trio.CancelScope(shield=True) as scope:  # brief; half a birth would have to be taken back
        await start(runtime, live.task.id)
        scope.deadline, scope.shield = trio.current_time() + RECEIPT_TIMEOUT, False
        await item.heard.wait()
    if item.receipt is None:
        raise UserError("timeout", "The database is too slow. Look for the task, or try again.", retry_after=5.0)
    return item.receipt


async def _known(runtime: Runtime, task_id: UUID) -> TaskState:
    task = await find(runtime, task_id)
    if task is None:
        raise UserError("unknown_task", "There is no such task.")
    return task


def _only_failed(task: TaskState) -> None:
    if task.status is not Status.FAILED:
        raise UserError("not_failed", f"The task is {task.status}; only a failed one can be tried again.")


def _accepted(answer: TaskState | Refusal) -> TaskState:
    if isinstance(answer, Refusal):
        raise UserError(answer.code, answer.message)
    return answer
