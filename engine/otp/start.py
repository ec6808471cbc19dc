"""Starting processes: plain functions and servers, alone, linked, or for a supervisor.

`start` is the one way: it launches, waits for the acknowledgement, and leaves nothing behind when there is none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

import trio
from attrs import frozen

from engine.otp.context import current_node, current_process, process_var
from engine.otp.node import Node
from engine.otp.pid import ROOT, Pid, Ref, Via, new_ref
from engine.otp.process import Blueprint, Body, Process, run_plain
from engine.otp.reasons import KILLED, TIMEOUT, Ignored, Reason, StartFailed
from engine.otp.slot import Slot
from engine.otp.timers import Timer

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


class Birth(Slot):
    """The wait for a process to be up. `tell` is called when it is, or when it has ended without."""

    __slots__ = ("process", "then", "timer")

    def __init__(self, then: Callable[[Birth], object] | None = None) -> None:
        super().__init__()
        self.then = then
        self.timer: Timer | None = None
        self.process: Process

    def tell(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if self.then is not None:
            self.then(self)
        else:
            super().tell()

    def outcome(self) -> Up:
        """The process, or why it did not come up. Raises StartFailed or Ignored."""
        if self.failed:
            raise Ignored(self.value) if isinstance(self.value, Ignore) else StartFailed(self.value)
        return Up(*self.value) if isinstance(self.value, tuple) else Up(self.process.pid)

    def give_up(self, reason: Reason) -> None:
        """Ends a process that its starter does not wait for any more; `tell` follows when it has ended."""
        process = self.process
        process.verdict = reason
        process.tied = False
        parent = process.node.awaken(process.blueprint.parent)
        if parent is not None:
            parent.unlink(process.pid)
        process.kill()


def begin(
    node: Node,
    blueprint: Blueprint,
    args: tuple[Any, ...],
    names: Iterable[Name] = (),
    timeout: float | None = None,
    then: Callable[[Birth], object] | None = None,
) -> Birth:
    """Starts a process without waiting: `then(birth)` is called when it is up or has failed.

    Raises:
        StartFailed: AlreadyStarted(pid) when a name is taken.
    """
    birth = Birth(then)
    birth.process = node.launch(blueprint, args, names, birth)
    if timeout is not None:
        birth.timer = node.timers.after(timeout, partial(birth.give_up, TIMEOUT))
    return birth


async def start(
    node: Node, blueprint: Blueprint, args: tuple[Any, ...], names: Iterable[Name] = (), timeout: float | None = None
) -> Up:
    """Starts a process and returns when it has acknowledged; `timeout` in seconds bounds that.

    Raises:
        StartFailed: why it did not come up; it has ended and its names are free again.
        Ignored: its `init` answered IGNORE.
    """
    return await finish_start(begin(node, blueprint, args, names, timeout))


async def finish_start(birth: Birth) -> Up:
    """Waits for a process to be up. When the starter is cancelled the process is ended first."""
    try:
        await birth.wait()
    except trio.Cancelled:
        birth.give_up(KILLED)
        if not birth.process.dead:
            ended = Slot()
            birth.process.watch(ended, ended.resolve)
            with trio.CancelScope(shield=True):
                await ended.wait()
        raise
    return birth.outcome()


def function_blueprint(
    function: AsyncFunction,
    body: Body,
    parent: Process | None,
    *,
    trap_exit: bool = False,
    max_mailbox: int | None = None,
    budget: float | None = None,
) -> Blueprint:
    """The blueprint of a plain process; linked to its parent if it has one."""
    kind = function_name(function)
    if parent is None:
        return Blueprint(kind, body, function, ROOT, False, trap_exit, max_mailbox, budget)
    return parent.blueprint_of_child(kind, body, function, True, trap_exit, max_mailbox, budget)


def _launch(
    function: AsyncFunction, args: tuple[Any, ...], name: Name | None, *, linked: bool, **options: Any
) -> Process:
    blueprint = function_blueprint(function, run_plain, process_var.get() if linked else None, **options)
    return current_node().launch(blueprint, args, names_of(name, ()), None)


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
    watching, ref = current_process(), new_ref()
    process = _launch(function, args, name, linked=False, **options)
    watching.monitor(process, ref)
    return process.pid, ref
