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

from engine.otp import system
from engine.otp.calls import From
from engine.otp.context import current_node, process_var
from engine.otp.messages import Call, Cast, ExitSignal, System
from engine.otp.pid import Address, Pid
from engine.otp.process import Process, call_user
from engine.otp.reasons import NORMAL, TIMEOUT, BadReturn, CallFailed, Reason, reason_of
from engine.otp.reports import UnexpectedMessage, summary
from engine.otp.start import IGNORE, Ignore, Name, Up, blueprint_for, names_of, start

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


@frozen
class Hibernate:
    """`then=HIBERNATE`: nothing to do for long; give up the task and keep only the state."""


HIBERNATE = Hibernate()
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

    `trap_exit`: exit signals become ExitSignal messages and `terminate` runs when the parent shuts the server down.
    `hibernate_after`: seconds of idleness after which it hibernates. `budget`: seconds that one step may take before
    the watchdog interrupts it.
    """

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
    link: bool = True,
) -> Up:
    """Starts a server of class `cls`; answers Up(pid)."""
    node = current_node() if parent is None else parent.node
    blueprint = blueprint_for(
        node,
        cls.__name__,
        serve,
        cls,
        parent=parent,
        linked=link,
        trap_exit=cls.trap_exit,
        max_mailbox=max_mailbox,
        budget=cls.budget,
        hibernate_after=cls.hibernate_after,
    )
    return await start(node, blueprint, args, names_of(name, names), timeout)


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


async def serve(process: Process) -> Reason:
    """Body of a server's process: `init`, then messages until something ends it."""
    args, process.args = process.args, ()
    server = process.behaviour = process.blueprint.subject()
    first = await call_user(server.init, *args)
    if isinstance(first, Ok):
        process.state = first.state
        process.acknowledge(process.pid)
        return await _last_words(process, server, _loop(process, server, first.then))
    if isinstance(first, Ignore):
        process.verdict = IGNORE
        return NORMAL
    if isinstance(first, Stop):
        process.verdict = first.reason
        return first.reason
    return BadReturn(first)


@define
class Ending:
    """How a server's loop ends by itself: with this reason, and this caller to answer last."""

    reason: Reason
    caller: From | None = None
    answer: Any = None


async def _last_words(process: Process, server: GenServer[Any], loop: Any) -> Reason:
    """Runs the loop; then `terminate`, unless an exit signal cut it off."""
    try:
        ending: Ending = await loop
    except BaseException as error:
        if process.exiting is not None:
            raise
        ending = Ending(reason_of(error))
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            process.node.abort(error)
    await call_user(server.terminate, ending.reason, process.state)
    if ending.caller is not None:
        ending.caller.resolve(ending.answer)
    return ending.reason


async def _loop(process: Process, server: GenServer[Any], then: Then) -> Ending:
    started = perf_counter()
    pause = started + SLICE
    while True:
        if process.exiting is not None:
            await trio.lowlevel.checkpoint()
        if then is not None and type(then) is Continue:
            entry: Any = then
            result: Any = await call_user(server.handle_continue, then.message, process.state)
        else:
            queue = process.queue
            if not queue:
                if then is None:
                    await process.sleep()
                    expired = False
                else:
                    expired = await _idle(process, then)
                started = perf_counter()
                pause = started + SLICE
                queue = process.queue
                if not queue:
                    if not expired:
                        continue
                    process.put(TIMEOUT)
                    queue = process.queue
                    assert queue is not None
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
                ending = await system.handle(process, entry)
                if ending is not None:
                    return Ending(ending)
                continue
            elif kind is ExitSignal and entry.pid == process.blueprint.parent:
                return Ending(entry.reason)
            else:
                result = await call_user(server.handle_info, entry, process.state)
        process.handled += 1
        now = perf_counter()
        process.busy += now - started
        started = now
        kind = type(result)
        if kind is NoReply:
            process.state = result.state
            then = result.then
        elif kind is Reply and type(entry) is Call:
            process.state = result.state
            then = result.then
            entry.caller.resolve(result.answer)
        else:
            return _ending(process, entry, result)
        if now > pause:
            await trio.lowlevel.checkpoint()
            started = perf_counter()
            pause = started + SLICE


def _ending(process: Process, entry: Any, result: Any) -> Ending:
    if not isinstance(result, Stop):
        return Ending(BadReturn(result))
    if result.state is not _MISSING:
        process.state = result.state
    if result.answer is _MISSING or not isinstance(entry, Call):
        return Ending(result.reason)
    return Ending(result.reason, entry.caller, result.answer)


async def _idle(process: Process, then: Then) -> bool:
    """Sleeps as `then` says; True when a Timeout passed without a message."""
    if not isinstance(then, Timeout):
        await process.sleep()
        return False
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = True
        process.wake()

    timer = process.node.timers.after(then.seconds, expire)
    try:
        while not expired and not process.queue:
            await process.sleep()
    finally:
        timer.cancel()
    return expired
