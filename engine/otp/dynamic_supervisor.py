"""The dynamic supervisor: any number of children of any spec, known by their pids, one_for_one.

Starts and restarts overlap, so that a child with a slow `init` holds up nobody else, and all children end in parallel.
How children are kept is in `brood`.
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Any

import trio
from attrs import define, field, frozen

from engine.otp import trace
from engine.otp.brood import Brood, Limits, Retry
from engine.otp.calls import From
from engine.otp.child_spec import (
    INFINITY,
    ONE_FOR_ONE,
    PERMANENT,
    SUPERVISOR,
    BrutalKill,
    ChildSpec,
    Deadline,
    Decision,
    Flags,
    How,
    Restart,
    RestartWindow,
    Start,
    decide,
)
from engine.otp.children import end_child, ended_as_asked, report
from engine.otp.context import current_process
from engine.otp.gen_server import GenServer, NoReply, Ok, Reply, Stop
from engine.otp.management import (
    ChildError,
    ChildInfo,
    CountChildren,
    Counts,
    Refusal,
    StartChild,
    TerminateChild,
    WhichChildren,
)
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
from engine.otp.start import Birth, Name, Up
from engine.otp.timers import Timer


@frozen
class _TryAgain:
    """A restart that failed, or had to wait, is due."""

    pid: Pid


@frozen
class _NotRestarted:
    """A restart failed, as the supervisor hears through its own mailbox."""

    retry: Retry
    reason: Reason


class DynamicSupervisor(GenServer[Brood]):
    """Supervises children that come and go."""

    keeps_children = True
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
        await _Ending(current_process(), state).run()

    def is_child(self, state: Brood, pid: Pid) -> bool:
        return isinstance(state, Brood) and state.has(pid)

    def children_of(self, state: Brood) -> list[Pid]:
        return state.pids() if isinstance(state, Brood) else []

    def format_status(self, state: Brood) -> object:
        return {"children": len(state.children), "restarting": len(state.retrying)}

    async def handle_call(self, request: Any, caller: From, state: Brood) -> Reply[Brood] | NoReply[Brood]:
        me = current_process()
        try:
            if isinstance(request, StartChild) and request.spec.start.how is not How.CALLING:
                _start_new(me, state, request.spec, caller)
                return NoReply(state)
            return Reply(await _answer(me, state, request), state)
        except (StartFailed, ChildError) as error:
            return Reply(Refusal(error), state)

    @staticmethod
    def start_now(me: Process, spec: ChildSpec, caller: From) -> bool:
        """Begins a start in the caller's turn if it would be the next thing to happen here anyhow; else False."""
        idle = me.sleeper is not None and not me.queue and me.exiting is None
        plain = type(me.behaviour) is DynamicSupervisor and not vars(me.behaviour)  # neither traced nor suspended
        if not (idle and plain) or spec.start.how is How.CALLING:
            return False
        me.handled += 1
        try:
            _start_new(me, me.state, spec, caller)
        except StartFailed as error:
            caller.resolve(Refusal(error))
        return True

    async def handle_info(self, message: Any, state: Brood) -> NoReply[Brood] | Stop[Brood]:
        me = current_process()
        match message:
            case ExitSignal(Pid() as pid, reason):
                return _ended(me, state, pid, reason) if pid in state.children else NoReply(state)
            case _TryAgain(pid):
                retry = state.retrying.get(pid)
                return NoReply(state) if retry is None else await _restart(me, state, retry)
            case _NotRestarted(retry, reason):
                return _not_restarted(me, state, retry, reason)
            case _:
                return await super().handle_info(message, state)


# --- starting -------------------------------------------------------------------------------------------


def _room_for_one(brood: Brood) -> None:
    limit = brood.limits.max_children
    if limit is not None and brood.size >= limit:
        raise StartFailed(MAX_CHILDREN)


def _start_new(me: Process, brood: Brood, spec: ChildSpec, caller: From) -> None:
    """Starts a child; `caller` is answered when it is up. Raises StartFailed."""
    _room_for_one(brood)

    def born(birth: Birth) -> None:
        try:
            up = _arrived(me, brood, spec, birth)
        except Ignored:
            caller.resolve(None)
        except StartFailed as failure:
            caller.resolve(Refusal(failure))
        else:
            brood.grew(spec)
            caller.resolve(up)

    birth = spec.start.begin(me, brood.limits.extra_arguments, born)
    brood.starting[birth.process.pid] = spec


def _arrived(me: Process, brood: Brood, spec: ChildSpec, birth: Birth) -> Up:
    """Takes a child in that has come up. Raises what kept it from that."""
    brood.starting.pop(birth.process.pid, None)
    up = birth.outcome()
    brood.add(up.pid, spec)
    me.node.report(ProgressReport(me.pid, spec.id, up.pid))
    return up


async def _answer(me: Process, brood: Brood, request: Any) -> Any:
    match request:
        case StartChild(spec):
            return await _start_calling(me, brood, spec)
        case TerminateChild(pid):
            return await _terminate(me, brood, pid)
        case WhichChildren():
            return _infos(brood)
        case CountChildren():
            total = len(brood.children) + len(brood.retrying)
            return Counts(total, len(brood.children), brood.supervisors, total - brood.supervisors)
        case _:
            raise StartFailed(BadReturn(request))


async def _start_calling(me: Process, brood: Brood, spec: ChildSpec) -> Up | None:
    """A child whose start is a function to be called here."""
    _room_for_one(brood)
    try:
        up = await spec.start.run(me, brood.limits.extra_arguments)
    except Ignored:
        return None
    brood.add(up.pid, spec)
    brood.grew(spec)
    me.node.report(ProgressReport(me.pid, spec.id, up.pid))
    return up


def _infos(brood: Brood) -> list[ChildInfo]:
    infos = []
    for pid, folded in brood.children.items():
        spec = brood.folder.template(folded)
        infos.append(ChildInfo(None, pid, spec.type, spec.start.subject))
    for retry in brood.retrying.values():
        infos.append(ChildInfo(None, RESTARTING, retry.spec.type, retry.spec.start.subject))
    return infos


# --- ending and restarting --------------------------------------------------------------------------------


async def _terminate(me: Process, brood: Brood, pid: Any) -> None:
    folded = brood.children.pop(pid, None)
    if folded is not None:
        spec = brood.folder.unfold(folded)
        await end_child(me, spec, pid)
    elif (retry := brood.retrying.pop(pid, None)) is not None:
        spec = retry.spec
        if retry.birth is not None:
            retry.birth.give_up(SHUTDOWN)
    else:
        raise ChildError(NOT_FOUND)
    brood.failures.pop(pid, None)
    brood.shrank(spec)


def _ended(me: Process, brood: Brood, pid: Pid, reason: Reason) -> NoReply[Brood] | Stop[Brood]:
    """A child ended by itself."""
    spec = brood.folder.unfold(brood.children.pop(pid))
    failures, since = brood.failures.pop(pid, (0, 0.0))
    decision = decide(spec.restart, reason)
    if decision is Decision.START_AGAIN or not is_clean(reason):
        report(me, "child_terminated", spec.id, pid, reason)
    if decision is not Decision.START_AGAIN:
        brood.shrank(spec)
        return NoReply(brood)
    if spec.backoff is not None and trio.current_time() - since >= spec.backoff.reset_after:
        failures = 0
    return _restart_counted(me, brood, Retry(spec, pid, failures), at_once=True)


def _not_restarted(me: Process, brood: Brood, retry: Retry, reason: Reason) -> NoReply[Brood] | Stop[Brood]:
    if retry.pid not in brood.retrying:
        return NoReply(brood)
    report(me, "start_error", retry.spec.id, None, reason)
    return _restart_counted(me, brood, retry, at_once=False)


def _restart_counted(me: Process, brood: Brood, retry: Retry, at_once: bool) -> NoReply[Brood] | Stop[Brood]:
    """Counts a restart and has it made: at once, after those who wait already, or after its back-off."""
    backoff = retry.spec.backoff
    if (backoff is None or backoff.counted) and not brood.window.allow(trio.current_time()):
        report(me, "shutdown", retry.spec.id, retry.pid, "reached_max_restart_intensity")
        return Stop(SHUTDOWN, brood)
    brood.retrying[retry.pid] = retry
    again = _TryAgain(retry.pid)
    if backoff is not None:
        me.node.timers.after(backoff.delay(retry.failures), partial(me.put, again))
        retry.failures += 1
    elif at_once and retry.spec.start.how is not How.CALLING:
        _begin_again(me, brood, retry)
    else:
        me.put(again)
    return NoReply(brood)


async def _restart(me: Process, brood: Brood, retry: Retry) -> NoReply[Brood] | Stop[Brood]:
    if retry.spec.start.how is not How.CALLING:
        _begin_again(me, brood, retry)
        return NoReply(brood)
    try:
        up = await retry.spec.start.run(me, brood.limits.extra_arguments)
    except Ignored:
        _gone(brood, retry)
    except StartFailed as failure:
        me.put(_NotRestarted(retry, failure.reason))
    else:
        brood.add(up.pid, retry.spec)
        _back(me, brood, retry, up.pid)
    return NoReply(brood)


def _begin_again(me: Process, brood: Brood, retry: Retry) -> None:
    """One attempt at a restart, without waiting for its outcome."""

    def born(birth: Birth) -> None:
        retry.birth = None
        try:
            up = _arrived(me, brood, retry.spec, birth)
        except Ignored:
            _gone(brood, retry)
        except StartFailed as failure:
            me.put(_NotRestarted(retry, failure.reason))
        else:
            _back(me, brood, retry, up.pid)

    try:
        retry.birth = retry.spec.start.begin(me, brood.limits.extra_arguments, born)
    except StartFailed as failure:
        me.put(_NotRestarted(retry, failure.reason))


def _gone(brood: Brood, retry: Retry) -> None:
    if brood.retrying.pop(retry.pid, None) is not None:
        brood.shrank(retry.spec)


def _back(me: Process, brood: Brood, retry: Retry, pid: Pid) -> None:
    """A restart succeeded."""
    del brood.retrying[retry.pid]
    if retry.failures:
        brood.failures[pid] = (retry.failures, trio.current_time())
    if me.node.tracer.on:
        me.node.tracer.emit(trace.Restarted(me.pid, retry.spec.id, retry.pid, pid))


@define(eq=False)
class _Ending:
    """The end of all children: all are asked at once, each has its own time, and the last is waited for."""

    me: Process
    brood: Brood
    waiting: set[Pid] = field(factory=set)
    timers: list[Timer] = field(factory=list)
    over: Slot = field(factory=Slot)

    STEP = 500
    """Children asked before other processes may run."""

    async def run(self) -> None:
        brood = self.brood
        children, starting = brood.children, brood.starting
        starting |= {r.birth.process.pid: r.spec for r in brood.retrying.values() if r.birth is not None}
        brood.children, brood.starting, brood.retrying = {}, {}, {}
        for number, (pid, spec) in enumerate(chain(children.items(), starting.items()), 1):
            self._ask(pid, brood.folder.template(spec))
            if number % self.STEP == 0:
                await trio.lowlevel.checkpoint()
        if self.waiting:
            await self.over.wait()
        for timer in self.timers:
            timer.cancel()

    def _ask(self, pid: Pid, spec: ChildSpec) -> None:
        node, deadline = self.me.node, spec.deadline
        self.me.unlink(pid)
        if node.end_sleeper(pid, SHUTDOWN, self.me.pid):
            return
        target = node.awaken(pid)
        if target is None:
            return
        target.unlink(self.me.pid)
        self.waiting.add(pid)
        target.watch(self.over, partial(self._ended, pid, spec))
        if isinstance(deadline, BrutalKill):
            target.kill()
            return
        target.signal(self.me.pid, SHUTDOWN)
        if deadline != INFINITY:
            self.timers.append(node.timers.after(deadline, target.kill))

    def _ended(self, pid: Pid, spec: ChildSpec, reason: Reason) -> None:
        self.waiting.discard(pid)
        if not ended_as_asked(spec, reason):
            report(self.me, "shutdown_error", spec.id, pid, reason)
        if not self.waiting:
            self.over.resolve(None)
