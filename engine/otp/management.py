"""Managing children: what a supervisor is asked, what it answers, and the functions that ask.

For both kinds of supervisors; children of a `Supervisor` are known by id, those of a `DynamicSupervisor` by pid.
"""

from __future__ import annotations

from typing import Any

from attrs import frozen

from engine.otp.calls import From, call, fence
from engine.otp.child_spec import ChildSpec, ChildType
from engine.otp.context import current_node, process_var
from engine.otp.messages import Request
from engine.otp.pid import Address, Pid
from engine.otp.reasons import Atom, CallFailed, Ignored, Reason
from engine.otp.start import IGNORE, Up

# --- what a supervisor is asked -------------------------------------------------------------------------


class ChildError(Exception):
    """A supervisor cannot do that to this child: `reason` is NOT_FOUND, RUNNING or RESTARTING."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


@frozen
class ChildInfo:
    """A child as `which_children` shows it; `pid` is None when it is down, RESTARTING while it is being retried."""

    id: Any
    pid: Pid | Atom | None
    type: ChildType
    subject: Any


@frozen
class Counts:
    """`specs` children are known, `active` of them run; `supervisors` and `workers` count all that are known."""

    specs: int
    active: int
    supervisors: int
    workers: int


@frozen
class Refusal:
    """A supervisor's answer when it will not; raised on the caller's side."""

    error: Exception


@frozen
class StartChild(Request["Up | None | Refusal"]):
    spec: ChildSpec


@frozen
class TerminateChild(Request["None | Refusal"]):
    id: Any


@frozen
class RestartChild(Request["Up | None | Refusal"]):
    id: Any


@frozen
class DeleteChild(Request["None | Refusal"]):
    id: Any


@frozen
class GetChildSpec(Request["ChildSpec | Refusal"]):
    id: Any


@frozen
class WhichChildren(Request[list[ChildInfo]]):
    pass


@frozen
class CountChildren(Request[Counts]):
    pass


# --- for callers ----------------------------------------------------------------------------------------


async def _ask(supervisor: Address, request: Request[Any]) -> Any:
    answer = await call(supervisor, request, timeout=None)
    if isinstance(answer, Refusal):
        raise answer.error
    return answer


async def _start(supervisor: Address, spec: ChildSpec) -> Any:
    """Asks for a child. A supervisor that has nothing else to do begins at once, in the caller's own turn of the loop:
    for everybody the same as if it had been the next to run, and a wake-up less."""
    sender = process_var.get()
    fence(sender)
    process = current_node().awaken(supervisor)
    at_once = getattr(process.behaviour, "start_now", None) if process is not None else None
    caller = From(None if sender is None else sender.pid)
    if process is None or at_once is None or not at_once(process, spec, caller):
        return await _ask(supervisor, StartChild(spec))
    process.watch(caller, caller.fail)
    try:
        answer = await caller.wait()
    finally:
        process.unwatch(caller)
    if caller.failed:
        raise CallFailed(answer, supervisor, StartChild(spec))
    if isinstance(answer, Refusal):
        raise answer.error
    return answer


async def start_child(supervisor: Address, spec: ChildSpec) -> Pid:
    """Starts a new child. Waits as long as its `init` takes.

    Raises:
        StartFailed: AlreadyStarted(pid) or AlreadyPresent(id) for a known id, else why the child did not come up.
        Ignored: the child's `init` answered IGNORE; its spec is kept unless it is temporary.
    """
    return (await start_child_info(supervisor, spec)).pid


async def start_child_info(supervisor: Address, spec: ChildSpec) -> Up:
    """As `start_child`; answers also what the child told with `init_ack`."""
    up: Up | None = await _start(supervisor, spec)
    if up is None:
        raise Ignored(IGNORE)
    return up


async def terminate_child(supervisor: Address, id: Any) -> None:
    """Ends a child and keeps its spec (a temporary one's goes). Done again it does nothing. Raises ChildError."""
    await _ask(supervisor, TerminateChild(id))


async def restart_child(supervisor: Address, id: Any) -> Pid:
    """Starts a child that is down. Raises ChildError (RUNNING, RESTARTING, NOT_FOUND) or StartFailed."""
    up: Up | None = await _ask(supervisor, RestartChild(id))
    if up is None:
        raise Ignored(IGNORE)
    return up.pid


async def delete_child(supervisor: Address, id: Any) -> None:
    """Forgets the spec of a child that is down. Raises ChildError (RUNNING, RESTARTING, NOT_FOUND)."""
    await _ask(supervisor, DeleteChild(id))


async def get_childspec(supervisor: Address, id: Any) -> ChildSpec:
    """The spec of a child. Raises ChildError."""
    spec: ChildSpec = await _ask(supervisor, GetChildSpec(id))
    return spec


async def which_children(supervisor: Address) -> list[ChildInfo]:
    """All children, in start order."""
    children: list[ChildInfo] = await _ask(supervisor, WhichChildren())
    return children


async def count_children(supervisor: Address) -> Counts:
    """How many children there are."""
    counts: Counts = await _ask(supervisor, CountChildren())
    return counts
