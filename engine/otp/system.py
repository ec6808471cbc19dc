"""System messages: what every behaviour answers without its callbacks knowing. `sys` in OTP.

`handle` is called by a server's loop; the functions are for callers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import frozen

from engine.otp import calls
from engine.otp.context import current_node, process_var
from engine.otp.messages import ExitSignal, System
from engine.otp.pid import Address
from engine.otp.process import Process
from engine.otp.reasons import Reason


@frozen
class GetState:
    """Answers the state."""


@frozen
class ReplaceState:
    """Puts `change(state)` in the place of the state and answers it."""

    change: Callable[[Any], Any]


@frozen
class Suspend:
    """Handles nothing but system messages until Resume."""


@frozen
class Resume:
    """Undoes Suspend; what came meanwhile is handled in order."""


@frozen
class TraceMessages:
    """Has each message of a server shown to `handler`; None ends that."""

    handler: Callable[[Handled], object] | None


@frozen
class Handled:
    """One message through a server, and the state after it. `kind` is call, cast or info."""

    kind: str
    message: object
    state: object


@frozen
class StopServer:
    """Ends the server in order."""

    reason: Reason


async def ask(server: Address, request: Any, timeout: float | None = 5.0) -> Any:
    """A call that the engine answers. Raises CallFailed as `call` does."""
    sender = process_var.get()
    calls.fence(sender)
    process = current_node().awaken(server)
    return await calls.ask(
        process, server, System(request, calls.From(None if sender is None else sender.pid)), timeout
    )


async def get_state(server: Address, timeout: float | None = 5.0) -> Any:
    """The state of a server, for people and tests."""
    return await ask(server, GetState(), timeout)


async def replace_state(server: Address, change: Callable[[Any], Any], timeout: float | None = 5.0) -> Any:
    """Replaces the state by `change(state)`; answers the new one. When `change` raises, the state stays."""
    answer = await ask(server, ReplaceState(change), timeout)
    if isinstance(answer, BaseException):
        raise answer
    return answer


async def suspend(server: Address, timeout: float | None = 5.0) -> None:
    """Makes a server wait; messages gather in its mailbox."""
    await ask(server, Suspend(), timeout)


async def resume(server: Address, timeout: float | None = 5.0) -> None:
    """Lets a suspended server go on."""
    await ask(server, Resume(), timeout)


async def trace_messages(
    server: Address, handler: Callable[[Handled], object] | None, timeout: float | None = 5.0
) -> None:
    """Shows each message of a server to `handler` after it was handled; None ends that. Costs nothing elsewhere."""
    await ask(server, TraceMessages(handler), timeout)


async def handle(process: Process, entry: System) -> Reason:
    """Answers one system message; a reason when the server is to end."""
    request = entry.request
    if isinstance(request, StopServer):
        return request.reason
    if isinstance(request, Suspend):
        entry.caller.resolve(None)
        process.behaviour.__dict__["suspended"] = True  # for whoever would act in its place
        try:
            return await _suspended(process)
        finally:
            del process.behaviour.__dict__["suspended"]
    entry.caller.resolve(_answer(process, request))
    return None


def _answer(process: Process, request: Any) -> Any:
    if isinstance(request, GetState):
        return process.state
    if isinstance(request, TraceMessages):
        _trace(process, request.handler)
    if isinstance(request, ReplaceState):
        try:
            process.state = request.change(process.state)
        except Exception as error:  # noqa: BLE001 - the caller's function failed: its trouble, not the server's
            return error
        return process.state
    return None


def _trace(process: Process, handler: Callable[[Handled], object] | None) -> None:
    """Puts wrappers in front of this server's callbacks, or takes them away; so the loop need not ask each time."""
    server = process.behaviour
    for kind in ("call", "cast", "info"):
        name = f"handle_{kind}"
        server.__dict__.pop(name, None)
        if handler is not None:
            server.__dict__[name] = _shown(getattr(server, name), kind, handler)


def _shown(callback: Any, kind: str, handler: Callable[[Handled], object]) -> Any:
    async def traced(message: Any, *rest: Any) -> Any:
        result = await callback(message, *rest)
        handler(Handled(kind, message, getattr(result, "state", None)))
        return result

    return traced


async def _suspended(process: Process) -> Reason:
    """Serves system messages and the parent's exit only; all others stay in the mailbox, and count against its bound.

    Answers None when resumed, else why the server ends.
    """
    seen = 0
    while True:
        queue = process.queue
        if queue is None or seen >= len(queue):
            await process.sleep()
            continue
        entry = queue[seen]
        if isinstance(entry, ExitSignal) and entry.pid == process.blueprint.parent:
            return entry.reason
        if not isinstance(entry, System):
            seen += 1
            continue
        del queue[seen]
        if isinstance(entry.request, StopServer):
            return entry.request.reason
        entry.caller.resolve(_answer(process, entry.request))
        if isinstance(entry.request, Resume):
            return None
