"""The supervisor: starts its children in order, restarts them by strategy, ends them in reverse order.

The tree is data: a supervisor is a GenServer whose state is its children. Which decision to take is in `child_spec`,
how a child is ended in `children`; this module is what happens, in which order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

import trio
from attrs import define, field, frozen

from engine.otp import trace
from engine.otp.calls import From
from engine.otp.child_spec import (
    ALL_SIGNIFICANT,
    INFINITY,
    NEVER,
    ONE_FOR_ALL,
    ONE_FOR_ONE,
    PERMANENT,
    SUPERVISOR,
    TEMPORARY,
    AutoShutdown,
    Backoff,
    ChildSpec,
    Deadline,
    Decision,
    Flags,
    Restart,
    RestartWindow,
    Start,
    Strategy,
    check_children,
    decide,
)
from engine.otp.children import Child, end_child, report
from engine.otp.context import current_process
from engine.otp.gen_server import GenServer, NoReply, Ok, Reply, Stop
from engine.otp.management import (
    ChildError,
    CountChildren,
    Counts,
    DeleteChild,
    GetChildSpec,
    Refusal,
    RestartChild,
    StartChild,
    TerminateChild,
    WhichChildren,
)
from engine.otp.messages import ExitSignal
from engine.otp.pid import Pid
from engine.otp.process import Process
from engine.otp.reasons import (
    NORMAL,
    NOT_FOUND,
    RESTARTING,
    RUNNING,
    SHUTDOWN,
    AlreadyPresent,
    AlreadyStarted,
    BadReturn,
    FailedToStartChild,
    Ignored,
    Reason,
    Shutdown,
    StartFailed,
    is_clean,
)
from engine.otp.reports import ProgressReport
from engine.otp.start import IGNORE, Ignore, Name, Up


@frozen
class _TryAgain:
    """A restart that failed, or that had to wait, is due; `attempt` tells it from one cancelled meanwhile."""

    id: Any
    attempt: int


@define
class Family:
    """State of a supervisor: its children in start order, and its count of restarts."""

    flags: Flags
    window: RestartWindow
    children: dict[Any, Child] = field(factory=dict)
    by_pid: dict[Pid, Child] = field(factory=dict)


@frozen
class Plan:
    """What a function given to a supervisor in the place of its children answers."""

    children: tuple[ChildSpec, ...]
    flags: Flags = field(factory=Flags)


Children: TypeAlias = Iterable[ChildSpec] | Callable[[], object]
"""The children, or a function that answers a Plan, or IGNORE, when the supervisor starts."""


class Supervisor(GenServer[Family]):
    """Supervises children known by id."""

    trap_exit = True

    @classmethod
    async def start_link(
        cls,
        children: Children,
        strategy: Strategy = ONE_FOR_ONE,
        intensity: int = 3,
        period: float = 5.0,
        auto_shutdown: AutoShutdown = NEVER,
        name: Name | None = None,
    ) -> Pid:
        """Starts a supervisor, linked to the running process, and returns when all its children are up.

        Raises:
            InvalidSpec: a flag cannot be; nothing was started.
            StartFailed: Shutdown(FailedToStartChild(id, reason)) when a child did not come up; all are down again.
        """
        flags = Flags(strategy, intensity, period, auto_shutdown)
        return await super().start_link(children, flags, name=name)

    @classmethod
    def spec(
        cls,
        children: Children,
        strategy: Strategy = ONE_FOR_ONE,
        intensity: int = 3,
        period: float = 5.0,
        auto_shutdown: AutoShutdown = NEVER,
        *,
        id: Any = None,
        name: Name | None = None,
        restart: Restart = PERMANENT,
        shutdown: Deadline = INFINITY,
        significant: bool = False,
        backoff: Backoff | None = None,
    ) -> ChildSpec:
        """The spec of a supervisor under another one; its id is by default its name."""
        flags = Flags(strategy, intensity, period, auto_shutdown)
        start = Start.server(cls, children if callable(children) else tuple(children), flags, name=name)
        return ChildSpec(_id(cls, id, name), start, restart, shutdown, SUPERVISOR, significant, backoff)

    # --- start and end ------------------------------------------------------------------------------------

    async def init(self, children: Children, flags: Flags) -> Ok[Family] | Ignore | Stop[Family]:
        if callable(children):
            plan = children()
            if isinstance(plan, Ignore):
                return IGNORE
            if not isinstance(plan, Plan):
                return Stop(BadReturn(plan))
            children, flags = plan.children, plan.flags
        specs = list(children)
        problem = check_children(specs, flags)
        if problem is not None:
            return Stop(problem)
        family = Family(flags, RestartWindow(flags.intensity, flags.period))
        return await self._start_all(family, specs)

    async def _start_all(self, family: Family, specs: list[ChildSpec]) -> Ok[Family] | Stop[Family]:
        me = current_process()
        for spec in specs:
            try:
                await _start_new(me, family, spec)
            except StartFailed as failure:
                report(me, "start_error", spec.id, None, failure.reason)
                await _end_all(me, family)
                return Stop(Shutdown(FailedToStartChild(spec.id, failure.reason)))
        return Ok(family)

    async def terminate(self, reason: Reason, state: Family) -> None:
        await _end_all(current_process(), state)

    def format_status(self, state: Family) -> object:
        return {"strategy": state.flags.strategy.value, "children": len(state.children)}

    # --- messages -----------------------------------------------------------------------------------------

    async def handle_call(self, request: Any, caller: From, state: Family) -> Reply[Family] | NoReply[Family]:
        try:
            return Reply(await _answer(current_process(), state, request), state)
        except (StartFailed, ChildError) as error:
            return Reply(Refusal(error), state)

    async def handle_info(self, message: Any, state: Family) -> NoReply[Family] | Stop[Family]:
        me = current_process()
        if isinstance(message, _TryAgain):
            child = state.children.get(message.id)
            if child is None or not child.restarting or child.attempt != message.attempt:
                return NoReply(state)
            return await _restart(me, state, child, counted=not child.waiting)
        if isinstance(message, ExitSignal):
            child = state.by_pid.get(message.pid) if message.pid is not None else None
            return NoReply(state) if child is None else await _ended(me, state, child, message.reason)
        return await super().handle_info(message, state)


def _id(cls: type, id: Any, name: Name | None) -> Any:
    if id is not None:
        return id
    return cls if name is None else name


# --- what happens ---------------------------------------------------------------------------------------


async def _answer(me: Process, family: Family, request: Any) -> Any:
    match request:
        case StartChild(spec):
            return await _start_new(me, family, spec)
        case TerminateChild(id):
            return await _terminate(me, family, _known(family, id))
        case RestartChild(id):
            return await _start_again(me, family, _down(family, id))
        case DeleteChild(id):
            del family.children[_down(family, id).spec.id]
            return None
        case GetChildSpec(id):
            return _known(family, id).spec
        case WhichChildren():
            return [child.info for child in family.children.values()]
        case CountChildren():
            return _counts(family)
        case _:
            raise StartFailed(BadReturn(request))


def _known(family: Family, id: Any) -> Child:
    child = family.children.get(id)
    if child is None:
        raise ChildError(NOT_FOUND)
    return child


def _down(family: Family, id: Any) -> Child:
    child = _known(family, id)
    if child.pid is not None:
        raise ChildError(RUNNING)
    if child.restarting:
        raise ChildError(RESTARTING)
    return child


def _counts(family: Family) -> Counts:
    children = family.children.values()
    supervisors = sum(child.spec.type is SUPERVISOR for child in children)
    return Counts(len(children), len(family.by_pid), supervisors, len(children) - supervisors)


async def _start_new(me: Process, family: Family, spec: ChildSpec) -> Up | None:
    """Starts a child that is not known yet. A temporary one that answers `ignore` is not kept."""
    present = family.children.get(spec.id)
    if present is not None:
        raise StartFailed(AlreadyPresent(spec.id) if present.pid is None else AlreadyStarted(present.pid))
    problem = check_children([spec], family.flags)
    if problem is not None:
        raise StartFailed(problem)
    child = Child(spec)
    up = await _start_again(me, family, child)
    if spec.restart is TEMPORARY:
        child.spec = spec.without_arguments()
    if up is not None or spec.restart is not TEMPORARY:
        family.children[spec.id] = child
    return up


async def _start_again(me: Process, family: Family, child: Child) -> Up | None:
    """Runs the child's start; None when it answered `ignore`. Raises StartFailed."""
    try:
        up = await child.spec.start.run(me)
    except Ignored:
        child.down()
        return None
    child.up(up.pid, trio.current_time())
    family.by_pid[up.pid] = child
    me.node.report(ProgressReport(me.pid, child.spec.id, up.pid))
    return up


async def _terminate(me: Process, family: Family, child: Child) -> None:
    """Ends a child by hand: not counted, its spec kept, unless it is temporary."""
    await _stop(me, family, child)
    if child.spec.restart is TEMPORARY:
        family.children.pop(child.spec.id, None)


async def _stop(me: Process, family: Family, child: Child) -> None:
    pid = child.pid
    child.down()
    if pid is not None:
        family.by_pid.pop(pid, None)
        await end_child(me, child.spec, pid)


async def _end_all(me: Process, family: Family) -> None:
    for child in reversed(list(family.children.values())):
        await _stop(me, family, child)


async def _ended(me: Process, family: Family, child: Child, reason: Reason) -> NoReply[Family] | Stop[Family]:
    """A child ended by itself."""
    pid, spec = child.pid, child.spec
    assert pid is not None
    del family.by_pid[pid]
    child.last_pid = pid
    child.down()
    child.done = reason is NORMAL
    decision = decide(spec.restart, reason)
    if decision is Decision.START_AGAIN or not is_clean(reason):
        report(me, "child_terminated", spec.id, pid, reason)
    if decision is Decision.START_AGAIN:
        return await _restart_later(me, family, child)
    if decision is Decision.FORGET:
        del family.children[spec.id]
    if spec.significant and _shuts_down(family):
        return Stop(SHUTDOWN, family)
    return NoReply(family)


def _shuts_down(family: Family) -> bool:
    """Whether the end of a significant child ends the supervisor."""
    if family.flags.auto_shutdown is ALL_SIGNIFICANT:
        return not any(c.spec.significant and (c.pid is not None or c.restarting) for c in family.children.values())
    return family.flags.auto_shutdown is not NEVER


async def _restart_later(me: Process, family: Family, child: Child) -> NoReply[Family] | Stop[Family]:
    """Restarts now, or, with a back-off, after its delay; the restart is counted when the child ends."""
    backoff = child.spec.backoff
    if backoff is None:
        return await _restart(me, family, child)
    if backoff.counted and not family.window.allow(trio.current_time()):
        return _give_up(me, family, child)
    now = trio.current_time()
    if now - child.started_at >= backoff.reset_after:
        child.failures = 0
    again = _TryAgain(child.spec.id, child.retry(waiting=True))
    me.node.timers.after(backoff.delay(child.failures), partial(me.put, again))
    child.failures += 1
    return NoReply(family)


def _give_up(me: Process, family: Family, child: Child) -> Stop[Family]:
    report(me, "shutdown", child.spec.id, child.last_pid, "reached_max_restart_intensity")
    return Stop(SHUTDOWN, family)


async def _restart(me: Process, family: Family, child: Child, counted: bool = True) -> NoReply[Family] | Stop[Family]:
    """One attempt to have the child, and those that the strategy ties to it, up again.

    A failed attempt is tried again through the supervisor's own mailbox, so that a shutdown or `terminate_child` gets
    in between (OTP: supervisor.erl, try_again_restart).
    """
    if counted and not family.window.allow(trio.current_time()):
        return _give_up(me, family, child)
    group = _tied(family, child)
    for member in reversed(group):
        if member.pid is not None:
            await _terminate(me, family, member)
    for member in [member for member in group if member.spec.id in family.children]:
        old = member.last_pid
        try:
            up = await _start_again(me, family, member)
        except StartFailed as failure:
            report(me, "start_error", member.spec.id, None, failure.reason)
            return await _failed(me, family, member)
        if up is not None:
            member.restarts += 1
            if me.node.tracer.on:
                me.node.tracer.emit(trace.Restarted(me.pid, member.spec.id, old, up.pid))
    return NoReply(family)


async def _failed(me: Process, family: Family, child: Child) -> NoReply[Family] | Stop[Family]:
    if child.spec.backoff is not None:
        return await _restart_later(me, family, child)
    me.put(_TryAgain(child.spec.id, child.retry(waiting=False)))
    return NoReply(family)


def _tied(family: Family, child: Child) -> list[Child]:
    """The children that restart with this one, in start order."""
    if family.flags.strategy is ONE_FOR_ONE:
        return [child]
    everyone = list(family.children.values())
    return everyone if family.flags.strategy is ONE_FOR_ALL else everyone[everyone.index(child) :]
