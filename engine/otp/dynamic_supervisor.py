"""The dynamic supervisor: any number of children of any spec, known by their pids, one_for_one.

Children start on request and end in parallel. A child is kept as one entry of a dict, since there may be a million.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import trio
from attrs import define, field, frozen

from engine.otp import trace
from engine.otp.calls import From
from engine.otp.child_spec import (
    INFINITY,
    ONE_FOR_ONE,
    PERMANENT,
    SUPERVISOR,
    TEMPORARY,
    BrutalKill,
    ChildSpec,
    Deadline,
    Decision,
    Flags,
    InvalidSpec,
    Restart,
    RestartWindow,
    Start,
    decide,
)
from engine.otp.children import end_child, ended_as_asked, report
from engine.otp.context import current_process
from engine.otp.gen_server import GenServer, NoReply, Ok, Reply, Stop
from engine.otp.messages import ExitSignal
from engine.otp.pid import Pid
from engine.otp.process import Process
from engine.otp.reasons import (
    MAX_CHILDREN,
    NOT_FOUND,
    RESTARTING,
    SHUTDOWN,
    BadReturn,
    Ignored,
    Reason,
    StartFailed,
    is_clean,
)
from engine.otp.reports import ProgressReport
from engine.otp.slot import Slot
from engine.otp.start import Name, Up
from engine.otp.supervisor import (
    ChildError,
    ChildInfo,
    CountChildren,
    Counts,
    Refusal,
    StartChild,
    TerminateChild,
    WhichChildren,
)


@frozen
class Limits:
    """`max_children`: None is no limit. `extra_arguments` go before each child's own."""

    max_children: int | None = None
    extra_arguments: tuple[Any, ...] = ()

    def __attrs_post_init__(self) -> None:
        if self.max_children is not None and self.max_children < 0:
            raise InvalidSpec("max_children", self.max_children)


@define
class Retry:
    """A child whose restart failed, or waits for its back-off. `pid` is what it was known by before."""

    spec: ChildSpec
    pid: Pid
    failures: int = 0


@define
class Brood:
    """State of a dynamic supervisor."""

    flags: Flags
    limits: Limits
    window: RestartWindow
    children: dict[Pid, ChildSpec] = field(factory=dict)
    retrying: dict[Pid, Retry] = field(factory=dict)
    failures: dict[Pid, tuple[int, float]] = field(factory=dict)
    supervisors: int = 0


@frozen
class _TryAgain:
    pid: Pid


class DynamicSupervisor(GenServer[Brood]):
    """Supervises children that come and go."""

    trap_exit = True

    @classmethod
    async def start_link(
        cls,
        *,
        name: Name | None = None,
        max_children: int | None = None,
        intensity: int = 3,
        period: float = 5.0,
        extra_arguments: tuple[Any, ...] = (),
    ) -> Pid:
        """Starts one, linked to the running process. Raises InvalidSpec or StartFailed."""
        flags, limits = Flags(ONE_FOR_ONE, intensity, period), Limits(max_children, extra_arguments)
        return await super().start_link(flags, limits, name=name)

    @classmethod
    def spec(
        cls,
        *,
        id: Any = None,
        name: Name | None = None,
        max_children: int | None = None,
        intensity: int = 3,
        period: float = 5.0,
        extra_arguments: tuple[Any, ...] = (),
        restart: Restart = PERMANENT,
        shutdown: Deadline = INFINITY,
    ) -> ChildSpec:
        """The spec of a dynamic supervisor under another supervisor; its id is by default its name."""
        flags, limits = Flags(ONE_FOR_ONE, intensity, period), Limits(max_children, extra_arguments)
        key = id if id is not None else name if name is not None else cls
        return ChildSpec(key, Start.server(cls, flags, limits, name=name), restart, shutdown, SUPERVISOR)

    async def init(self, flags: Flags, limits: Limits) -> Ok[Brood]:
        return Ok(Brood(flags, limits, RestartWindow(flags.intensity, flags.period)))

    async def terminate(self, reason: Reason, state: Brood) -> None:
        await _end_all(current_process(), state)

    def format_status(self, state: Brood) -> object:
        return {"children": len(state.children), "restarting": len(state.retrying)}

    async def handle_call(self, request: Any, caller: From, state: Brood) -> Reply[Brood]:
        try:
            return Reply(await _answer(current_process(), state, request), state)
        except (StartFailed, ChildError) as error:
            return Reply(Refusal(error), state)

    async def handle_info(self, message: Any, state: Brood) -> NoReply[Brood] | Stop[Brood]:
        if isinstance(message, ExitSignal):
            spec = state.children.get(message.pid) if message.pid is not None else None
            if spec is None or message.pid is None:
                return NoReply(state)
            return await _ended(current_process(), state, message.pid, spec, message.reason)
        if isinstance(message, _TryAgain):
            retry = state.retrying.get(message.pid)
            return NoReply(state) if retry is None else await _restart(current_process(), state, retry)
        return await super().handle_info(message, state)


# --- what happens ---------------------------------------------------------------------------------------


async def _answer(me: Process, brood: Brood, request: Any) -> Any:
    match request:
        case StartChild(spec):
            return await _start_new(me, brood, spec)
        case TerminateChild(pid):
            return await _terminate(me, brood, pid)
        case WhichChildren():
            return _infos(brood)
        case CountChildren():
            total = len(brood.children) + len(brood.retrying)
            return Counts(total, len(brood.children), brood.supervisors, total - brood.supervisors)
        case _:
            raise StartFailed(BadReturn(request))


def _infos(brood: Brood) -> list[ChildInfo]:
    up = [ChildInfo(None, pid, spec.type, spec.start.subject) for pid, spec in brood.children.items()]
    return up + [ChildInfo(None, RESTARTING, r.spec.type, r.spec.start.subject) for r in brood.retrying.values()]


async def _start_new(me: Process, brood: Brood, spec: ChildSpec) -> Up | None:
    limit = brood.limits.max_children
    if limit is not None and len(brood.children) + len(brood.retrying) >= limit:
        raise StartFailed(MAX_CHILDREN)
    try:
        up = await spec.start.run(me, brood.limits.extra_arguments)
    except Ignored:
        return None
    _keep(brood, up.pid, spec)
    brood.supervisors += spec.type is SUPERVISOR
    me.node.report(ProgressReport(me.pid, spec.id, up.pid))
    return up


def _keep(brood: Brood, pid: Pid, spec: ChildSpec) -> None:
    """Notes a running child. One that never restarts is kept without its arguments, which may be large."""
    brood.children[pid] = spec.without_arguments() if spec.restart is TEMPORARY else spec


def _forget(brood: Brood, spec: ChildSpec) -> None:
    brood.supervisors -= spec.type is SUPERVISOR


async def _terminate(me: Process, brood: Brood, pid: Any) -> None:
    spec = brood.children.pop(pid, None)
    if spec is not None:
        await end_child(me, spec, pid)
    elif (retry := brood.retrying.pop(pid, None)) is not None:
        spec = retry.spec
    else:
        raise ChildError(NOT_FOUND)
    brood.failures.pop(pid, None)
    _forget(brood, spec)


async def _ended(me: Process, brood: Brood, pid: Pid, spec: ChildSpec, reason: Reason) -> NoReply[Brood] | Stop[Brood]:
    """A child ended by itself."""
    del brood.children[pid]
    failures, since = brood.failures.pop(pid, (0, 0.0))
    decision = decide(spec.restart, reason)
    if decision is Decision.START_AGAIN or not is_clean(reason):
        report(me, "child_terminated", spec.id, pid, reason)
    if decision is not Decision.START_AGAIN:
        _forget(brood, spec)
        return NoReply(brood)
    if spec.backoff is not None and trio.current_time() - since >= spec.backoff.reset_after:
        failures = 0
    return await _restart_later(me, brood, Retry(spec, pid, failures))


async def _restart_later(me: Process, brood: Brood, retry: Retry) -> NoReply[Brood] | Stop[Brood]:
    backoff = retry.spec.backoff
    if (backoff is None or backoff.counted) and not brood.window.allow(trio.current_time()):
        report(me, "shutdown", retry.spec.id, retry.pid, "reached_max_restart_intensity")
        return Stop(SHUTDOWN, brood)
    if backoff is None:
        return await _restart(me, brood, retry)
    brood.retrying[retry.pid] = retry
    again = _TryAgain(retry.pid)
    me.node.timers.after(backoff.delay(retry.failures), lambda: me.put(again))
    retry.failures += 1
    return NoReply(brood)


async def _restart(me: Process, brood: Brood, retry: Retry) -> NoReply[Brood] | Stop[Brood]:
    """One attempt; a failed one is counted and tried again through the mailbox."""
    try:
        up = await retry.spec.start.run(me, brood.limits.extra_arguments)
    except Ignored:
        brood.retrying.pop(retry.pid, None)
        _forget(brood, retry.spec)
        return NoReply(brood)
    except StartFailed as failure:
        report(me, "start_error", retry.spec.id, None, failure.reason)
        return await _failed(me, brood, retry)
    brood.retrying.pop(retry.pid, None)
    brood.children[up.pid] = retry.spec
    if retry.failures:
        brood.failures[up.pid] = (retry.failures, trio.current_time())
    if me.node.tracer.on:
        me.node.tracer.emit(trace.Restarted(me.pid, retry.spec.id, retry.pid, up.pid))
    me.node.report(ProgressReport(me.pid, retry.spec.id, up.pid))
    return NoReply(brood)


async def _failed(me: Process, brood: Brood, retry: Retry) -> NoReply[Brood] | Stop[Brood]:
    if retry.spec.backoff is not None:
        return await _restart_later(me, brood, retry)
    if not brood.window.allow(trio.current_time()):
        report(me, "shutdown", retry.spec.id, retry.pid, "reached_max_restart_intensity")
        return Stop(SHUTDOWN, brood)
    brood.retrying[retry.pid] = retry
    me.put(_TryAgain(retry.pid))
    return NoReply(brood)


async def _end_all(me: Process, brood: Brood) -> None:
    """Ends all children at once, each within its own time, and waits for the last."""
    left = Slot()
    waiting: set[Pid] = set()
    timers = []

    def ended(pid: Pid, spec: ChildSpec, reason: Reason) -> None:
        waiting.discard(pid)
        if not ended_as_asked(spec, reason):
            report(me, "shutdown_error", spec.id, pid, reason)
        if not waiting:
            left.resolve(None)

    for pid, spec in brood.children.items():
        target = me.node.awaken(pid)
        if target is None:
            continue
        me.unlink(pid)
        target.unlink(me.pid)
        waiting.add(pid)
        target.watch(left, partial(ended, pid, spec))
        deadline = spec.deadline
        if isinstance(deadline, BrutalKill):
            target.kill()
            continue
        target.signal(me.pid, SHUTDOWN)
        if deadline != INFINITY:
            timers.append(me.node.timers.after(deadline, target.kill))
    brood.children.clear()
    if waiting:
        await left.wait()
    for timer in timers:
        timer.cancel()
