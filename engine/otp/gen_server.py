"""GenServer: a process that answers calls, one message after another, with state that only it has.

Lives here: what callbacks return, the base class, and the loop. May import everything but supervisors.

Callbacks take the state and answer the next one. When one raises, `terminate` runs with the last good state, and the
process ends with a Crash.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

import trio
from attrs import define, frozen
from trio.lowlevel import wait_task_rescheduled

from engine.otp import system
from engine.otp.calls import From
from engine.otp.context import current_node, process_var
from engine.otp.messages import Call, Cast, ExitSignal, Hibernate, System
from engine.otp.pid import ROOT, Address, Pid
from engine.otp.process import ASLEEP, Blueprint, Process, call_user
from engine.otp.reasons import NORMAL, TIMEOUT, BadReturn, CallFailed, Reason
from engine.otp.reports import UnexpectedMessage, summary
from engine.otp.start import IGNORE, Ignore, Name, Up, names_of, start

S = TypeVar("S")

SLICE = 0.002
"""Seconds of backlog that a server handles before it lets the other processes run."""


@frozen
class Continue:
    """`then=Continue(message)`: call `handle_continue(message)` before anything that waits in the mailbox."""

    message: object = None


@frozen
class Timeout:
    """`then=Timeout(seconds)`: `handle_info(TIMEOUT)` if no message comes in that time."""

    seconds: float


Then: TypeAlias = Continue | Timeout | Hibernate | None


class _Missing:
    def __repr__(self) -> str:
        return "<nothing>"


_MISSING: Any = _Missing()


@define(eq=False)
class Ok(Generic[S]):
    """From `init`: the first state."""

    state: S
    then: Then = None


@define(eq=False)
class Reply(Generic[S]):
    """From `handle_call`: the answer, and the next state."""

    answer: Any
    state: S
    then: Then = None


@define(eq=False)
class NoReply(Generic[S]):
    """The next state; a call that ends so is answered later, with `reply`."""

    state: S
    then: Then = None


@define(eq=False)
class Stop(Generic[S]):
    """End with `reason`, after `terminate`. A given `answer` goes to the caller after that; from `init`: no start."""

    reason: Reason = NORMAL
    state: S = _MISSING
    answer: Any = _MISSING


class GenServer(Generic[S]):
    """Subclass it; `S` is the type of the state.

    `keeps_children`: what it starts is found in its state (`children_of`), and needs no set of links beside that.
    `trap_exit`: exit signals become ExitSignal messages and `terminate` runs when the parent shuts the server down.
    `hibernate_after`: seconds of idleness after which it hibernates. `budget`: seconds that one step may take before
    the watchdog interrupts it.
    """

    keeps_children: ClassVar[bool] = False
    trap_exit: ClassVar[bool] = False
    hibernate_after: ClassVar[float | None] = None
    budget: ClassVar[float | None] = None

    async def init(self, *args: Any) -> Ok[S] | Ignore | Stop[S]:
        """The first state from the start arguments. The starter waits for it."""
        raise NotImplementedError(f"{type(self).__name__} has no init")

    async def handle_call(self, request: Any, caller: From, state: S) -> Reply[S] | NoReply[S] | Stop[S]:
        """Answers a request."""
        raise NotImplementedError(f"{type(self).__name__} does not know the request {request!r}")

    async def handle_cast(self, message: Any, state: S) -> NoReply[S] | Stop[S]:
        """Takes what `cast` told."""
        raise NotImplementedError(f"{type(self).__name__} does not know the cast {message!r}")

    async def handle_info(self, message: Any, state: S) -> NoReply[S] | Stop[S]:
        """Takes every other message: Down, ExitSignal, TIMEOUT, what `send` sent. By default reports and drops it."""
        process = process_var.get()
        if process is not None:
            process.node.report(UnexpectedMessage(process.pid, process.blueprint.kind, summary(message)))
        return NoReply(state)

    async def handle_continue(self, message: Any, state: S) -> NoReply[S] | Stop[S]:
        """Takes what `then=Continue(message)` asked for."""
        raise NotImplementedError(f"{type(self).__name__} does not know the continuation {message!r}")

    async def terminate(self, reason: Reason, state: S) -> None:
        """Last words. Not called when the process is killed, nor on an exit signal it does not trap."""

    def pack(self, state: S) -> Any:
        """What is kept of the state while the server hibernates; bytes or other flat data spare the collector."""
        return state

    def unpack(self, packed: Any) -> S:
        """The state from what `pack` made."""
        return packed  # type: ignore[no-any-return]

    def is_child(self, state: S, pid: Pid) -> bool:
        """With `keeps_children`: whether `pid` is one of them."""
        return False

    def children_of(self, state: S) -> list[Pid]:
        """With `keeps_children`: the processes that this one has started and that are linked to it."""
        return []

    def format_status(self, state: S) -> object:
        """What reports and introspection may show of the state; redact secrets here."""
        return state

    @classmethod
    async def start(cls, *args: Any, **options: Any) -> Pid:
        """Starts a server tied to nobody, and returns when its `init` is done.

        Options: `name` or `names` (strings and Via), `max_mailbox` (messages), `timeout` (seconds for `init`).

        Raises:
            StartFailed: `init` crashed, answered Stop, took too long; AlreadyStarted(pid) when a name is taken.
            Ignored: `init` answered IGNORE.
        """
        return (await start_server(cls, args, parent=None, **options)).pid

    @classmethod
    async def start_link(cls, *args: Any, **options: Any) -> Pid:
        """`start`, linked to the running process, which becomes the parent (outside of processes: just `start`)."""
        return (await start_server(cls, args, parent=process_var.get(), **options)).pid


async def start_server(
    cls: type[GenServer[Any]],
    args: tuple[Any, ...],
    *,
    parent: Process | None,
    name: Name | None = None,
    names: tuple[Name, ...] = (),
    max_mailbox: int | None = None,
    timeout: float | None = None,
) -> Up:
    """Starts a server of class `cls`; answers Up(pid)."""
    node = current_node() if parent is None else parent.node
    return await start(node, server_blueprint(cls, parent, max_mailbox), args, names_of(name, names), timeout)


def server_blueprint(cls: type[GenServer[Any]], parent: Process | None, max_mailbox: int | None) -> Blueprint:
    """The blueprint of servers of a class under a parent, linked to it."""
    options = (cls.trap_exit, max_mailbox, cls.budget, cls.hibernate_after)
    if parent is None:
        return Blueprint(cls.__name__, serve, cls, ROOT, False, *options)
    return parent.blueprint_of_child(cls.__name__, serve, cls, True, *options)


async def stop(server: Address, reason: Reason = NORMAL, timeout: float | None = None) -> None:
    """Has the server end in order, `terminate` included, and waits for it.

    Raises:
        CallFailed: NOPROC; TIMEOUT; or what it ended with, if that is not `reason`.
    """
    try:
        await system.ask(server, system.StopServer(reason), timeout)
    except CallFailed as failure:
        if failure.reason != reason:
            raise


# --- the loop -------------------------------------------------------------------------------------------


@define
class Ending:
    """How a server's loop ends by itself: with this reason, and this caller to answer last."""

    reason: Reason
    caller: From | None = None
    answer: Any = None


async def serve(process: Process) -> Reason:
    """Body of a server's process: `init`, then messages until something ends it, then `terminate`.

    One flat coroutine, since every idle server keeps its frame: each further level would cost 300 bytes a process.
    """
    server, then = process.behaviour, None
    if server is None:
        first = await _begin(process)
        if not isinstance(first, Ok):
            return _declined(process, first)
        server, then = process.behaviour, first.then
    try:
        while True:
            if type(then) is not Continue and not process.queue:
                process.queue = None
                if then is None:
                    process.sleeper = process.task
                    await wait_task_rescheduled(process.stop_sleeping)
                elif type(then) is Timeout:
                    await _idle(process, then.seconds)
                else:
                    return ASLEEP
            outcome = await _work(process, server, then)
            if type(outcome) is Ending:
                break
            then = outcome
    except BaseException as error:
        if process.exiting is not None:
            raise
        outcome = Ending(process.reason_for(error))
    return await _end(process, server, outcome)


async def _begin(process: Process) -> object:
    """Runs `init` and tells the starter when it is up."""
    args, process.args = process.args, ()
    process.behaviour = process.blueprint.subject()
    first = await call_user(process.behaviour.init, *args)
    if isinstance(first, Ok):
        process.state = first.state
        process.acknowledge(process.pid)
    return first


def _declined(process: Process, first: object) -> Reason:
    """`init` did not want to: why, for the starter and for everybody else."""
    if isinstance(first, Ignore):
        process.verdict = IGNORE
        return NORMAL
    if isinstance(first, Stop):
        process.verdict = first.reason
        return first.reason
    return BadReturn(first)


async def _end(process: Process, server: GenServer[Any], ending: Ending) -> Reason:
    """`terminate`, and then the last answer."""
    await call_user(server.terminate, ending.reason, process.state)
    if ending.caller is not None:
        ending.caller.resolve(ending.answer)
    return ending.reason


async def _work(process: Process, server: GenServer[Any], then: Then) -> Any:
    """Handles what is due until nothing is: answers what to do then, or how the server ends."""
    started = perf_counter()
    pause = started + SLICE
    while True:
        if process.exiting is not None:
            await trio.lowlevel.checkpoint()
        queue = process.queue
        if type(then) is Continue:
            entry: Any = then
            result: Any = await call_user(server.handle_continue, then.message, process.state)
        elif queue:
            if len(queue) > process.peak:
                process.peak = len(queue)
            entry = queue.popleft()
            process.last = entry
            kind = type(entry)
            if kind is Call:
                result = await call_user(server.handle_call, entry.request, entry.caller, process.state)
            elif kind is Cast:
                result = await call_user(server.handle_cast, entry.message, process.state)
            elif kind is System:
                reason = await system.handle(process, entry)
                if reason is not None:
                    return Ending(reason)
                continue
            elif kind is Hibernate:
                return None if queue else entry
            elif kind is ExitSignal and entry.pid == process.blueprint.parent:
                return Ending(entry.reason)
            else:
                result = await call_user(server.handle_info, entry, process.state)
        else:
            return then
        process.handled += 1
        now = perf_counter()
        process.busy += now - started
        kind = type(result)
        if kind is NoReply:
            process.state = result.state
        elif kind is Reply and type(entry) is Call:
            process.state = result.state
            entry.caller.resolve(result.answer)
        else:
            return _ending(process, entry, result)
        then = result.then
        if now > pause:
            await trio.lowlevel.checkpoint()
            now = perf_counter()
            pause = now + SLICE
        started = now


def _ending(process: Process, entry: Any, result: Any) -> Ending:
    if not isinstance(result, Stop):
        return Ending(BadReturn(result))
    if result.state is not _MISSING:
        process.state = result.state
    if result.answer is _MISSING or not isinstance(entry, Call):
        return Ending(result.reason)
    return Ending(result.reason, entry.caller, result.answer)


async def _idle(process: Process, seconds: float) -> None:
    """Sleeps until a message comes; when none came in time, TIMEOUT is one."""

    def expire() -> None:
        if not process.queue:
            process.put(TIMEOUT)

    alarm = process.alarm = process.node.timers.after(seconds, expire)
    try:
        while not process.queue:
            await process.sleep()
    finally:
        alarm.cancel()
        process.alarm = None
