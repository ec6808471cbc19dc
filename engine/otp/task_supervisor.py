"""Tasks: a function run in a process of its own, its result awaited or taken as a message.

`async_` links the task to its owner, `async_nolink` puts it under a TaskSupervisor and lets its crash arrive as a
Down. `await_` takes either's result.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import trio
from attrs import frozen

from engine.otp.child_spec import TEMPORARY, ChildSpec, Deadline, Restart, Start
from engine.otp.context import current_node, current_process, process_var
from engine.otp.dynamic_supervisor import DynamicSupervisor
from engine.otp.management import start_child as start_spec
from engine.otp.messages import Down
from engine.otp.pid import Address, Pid, Ref, new_ref
from engine.otp.process import call_user, run_function
from engine.otp.reasons import TIMEOUT, CallFailed, Exit
from engine.otp.signals import demonitor, init_ack, receive
from engine.otp.slot import Slot
from engine.otp.start import AsyncFunction, function_blueprint, start

T = TypeVar("T")


@frozen
class TaskResult(Generic[T]):
    """What a task answered, in its owner's mailbox (unless `await_` took it). A Down with NORMAL and the same
    reference follows, unless the owner flushes it with `demonitor`."""

    ref: Ref
    value: T


@frozen(eq=False)
class Task(Generic[T]):
    """A running task of `owner` (None: started outside of processes)."""

    ref: Ref
    pid: Pid
    owner: Pid | None
    slot: Slot


class TaskSupervisor(DynamicSupervisor):
    """Supervises tasks; by default they are temporary."""


async def _work(owner: Pid | None, ref: Ref, slot: Slot, function: AsyncFunction, args: tuple[Any, ...]) -> None:
    """Body of a task's process. It has itself monitored before it says that it is up, so that no end goes unseen."""
    process = current_process()
    waiting = None if owner is None else process.node.awaken(owner)
    if waiting is not None:
        waiting.monitor(process, ref)
    process.watch(slot, slot.fail)
    init_ack()
    value = await call_user(function, *args)
    slot.resolve(value)
    waiting = None if owner is None else process.node.awaken(owner)
    if waiting is not None:
        waiting.put(TaskResult(ref, value))


def _owner() -> Pid | None:
    process = process_var.get()
    return None if process is None else process.pid


async def async_(function: AsyncFunction, *args: Any) -> Task[Any]:
    """Runs `await function(*args)` in a process linked to the running one."""
    ref, slot = new_ref(), Slot()
    blueprint = function_blueprint(_work, run_function, process_var.get())
    up = await start(current_node(), blueprint, (_owner(), ref, slot, function, args))
    return Task(ref, up.pid, _owner(), slot)


async def async_nolink(supervisor: Address, function: AsyncFunction, *args: Any) -> Task[Any]:
    """Runs `await function(*args)` under a TaskSupervisor; its crash reaches the owner as a Down.

    Raises:
        StartFailed: MAX_CHILDREN.
    """
    ref, slot = new_ref(), Slot()
    work = Start.process(_work, _owner(), ref, slot, function, args)
    pid = await start_spec(supervisor, ChildSpec(function, work, TEMPORARY))
    return Task(ref, pid, _owner(), slot)


async def start_task(
    supervisor: Address,
    function: AsyncFunction,
    *args: Any,
    restart: Restart = TEMPORARY,
    shutdown: Deadline | None = None,
) -> Pid:
    """Runs `await function(*args)` under a TaskSupervisor for its effects; nobody gets its result."""
    start = Start.process(_work, None, new_ref(), Slot(), function, args)
    return await start_spec(supervisor, ChildSpec(function, start, restart, shutdown))


async def await_(task: Task[T], timeout: float | None = 5.0) -> T:
    """The result of a task; only its owner may wait, and only once. `timeout` in seconds.

    Raises:
        CallFailed: TIMEOUT (the task goes on), or the reason with which the task ended.
    """
    owner = process_var.get()
    if (None if owner is None else owner.pid) != task.owner:
        raise RuntimeError(f"{task} belongs to {task.owner}")
    return await (_await_outside(task, timeout) if owner is None else _await_message(task, timeout))


async def _await_message(task: Task[T], timeout: float | None) -> T:
    try:
        message = await receive(lambda m: isinstance(m, TaskResult | Down) and m.ref == task.ref, timeout)
    except Exit as expired:
        demonitor(task.ref, flush=True)
        raise CallFailed(expired.reason, task.pid, task) from None
    demonitor(task.ref, flush=True)
    if isinstance(message, TaskResult):
        return message.value  # type: ignore[no-any-return]
    assert isinstance(message, Down)
    raise CallFailed(message.reason, task.pid, task)


async def _await_outside(task: Task[T], timeout: float | None) -> T:
    slot = task.slot
    with trio.move_on_after(float("inf") if timeout is None else timeout):
        value = await slot.wait()
        if slot.failed:
            raise CallFailed(value, task.pid, task)
        return value  # type: ignore[return-value]
    raise CallFailed(TIMEOUT, task.pid, task)
