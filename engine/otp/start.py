"""Starting processes: plain functions and servers, alone, linked, or for a supervisor.

`start` is the one way: it launches, waits for the acknowledgement, and leaves nothing behind when there is none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias

import trio
from attrs import frozen

from engine.otp.calls import fence
from engine.otp.context import current_node, process_var
from engine.otp.node import Node
from engine.otp.pid import ROOT, Pid, Ref, Via, new_ref
from engine.otp.process import Blueprint, Process, run_plain
from engine.otp.reasons import NORMAL, TIMEOUT, Ignored, StartFailed
from engine.otp.slot import Slot

Name: TypeAlias = str | Via
AsyncFunction: TypeAlias = Callable[..., Awaitable[Any]]


@frozen
class Ignore:
    """What `init` answers to say that this process is not wanted now. It ends normally."""


IGNORE = Ignore()


@frozen
class Up:
    """A started process, and what it told its starter."""

    pid: Pid
    info: object = None


def names_of(name: Name | None, names: Iterable[Name]) -> tuple[Name, ...]:
    return tuple(names) if name is None else (name, *names)


async def start(
    node: Node, blueprint: Blueprint, args: tuple[Any, ...], names: Iterable[Name] = (), timeout: float | None = None
) -> Up:
    """Starts a process and returns when it has acknowledged; `timeout` in seconds bounds that.

    Raises:
        StartFailed: why it did not come up; it has ended and its names are free again.
        Ignored: its `init` answered IGNORE.
    """
    ack = Slot()
    process = node.launch(blueprint, args, names, ack)
    timer = None if timeout is None else node.timers.after(timeout, lambda: ack.fail(TIMEOUT))
    try:
        answer = await ack.wait()
    except trio.Cancelled:
        await _abandon(process)
        raise
    finally:
        if timer is not None:
            timer.cancel()
    if ack.failed:
        if answer is TIMEOUT:
            await _abandon(process)
        raise Ignored(answer) if isinstance(answer, Ignore) else StartFailed(answer)
    return Up(*answer) if isinstance(answer, tuple) else Up(process.pid)


async def _abandon(process: Process) -> None:
    """Kills a process that its starter does not wait for any more, and waits for its end (a zombie's is soon, too)."""
    process.tied = False
    parent = process.node.awaken(process.blueprint.parent)
    if parent is not None:
        parent.unlink(process.pid)
    process.kill()
    if not process.dead:
        ended = Slot()
        process.watch(ended, ended.resolve)
        with trio.CancelScope(shield=True):
            await ended.wait()


def blueprint_for(
    node: Node, kind: str, body: Any, subject: Any, *, parent: Process | None, linked: bool, **options: Any
) -> Blueprint:
    """The blueprint of a process started by `parent`; equal ones are one object."""
    pid = ROOT if parent is None else parent.pid
    return Blueprint(kind, body, subject, pid, linked and parent is not None, **options)


def _launch(
    function: AsyncFunction, args: tuple[Any, ...], name: Name | None, *, linked: bool, **options: Any
) -> Process:
    sender = process_var.get()
    fence(sender)
    node = current_node()
    blueprint = blueprint_for(
        node, function_name(function), run_plain, function, parent=sender if linked else None, linked=linked, **options
    )
    return node.launch(blueprint, args, names_of(name, ()), None)


def function_name(function: AsyncFunction) -> str:
    """How a function is shown to people."""
    return getattr(function, "__qualname__", None) or repr(function)


async def spawn(function: AsyncFunction, *args: Any, name: Name | None = None, **options: Any) -> Pid:
    """Starts `await function(*args)` as a process, tied to nobody. Options: `trap_exit`, `max_mailbox`, `budget`.

    Raises:
        StartFailed: AlreadyStarted when the name is taken.
    """
    return _launch(function, args, name, linked=False, **options).pid


async def spawn_link(function: AsyncFunction, *args: Any, name: Name | None = None, **options: Any) -> Pid:
    """`spawn`, linked to the running process (outside of processes there is nobody to link to)."""
    return _launch(function, args, name, linked=True, **options).pid


async def spawn_monitor(
    function: AsyncFunction, *args: Any, name: Name | None = None, **options: Any
) -> tuple[Pid, Ref]:
    """`spawn`, and a monitor of it by the running process."""
    process = _launch(function, args, name, linked=False, **options)
    ref = new_ref()
    watching = process_var.get()
    if watching is None:
        raise StartFailed(NORMAL)
    watching.monitor(process, ref)
    return process.pid, ref
