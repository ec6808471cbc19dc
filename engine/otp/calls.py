"""Calls: one request, one answer, whichever comes first of reply, end of the server, and timeout."""

from __future__ import annotations

from functools import partial
from typing import TypeVar
from typing import cast as typed

from engine.otp import trace
from engine.otp.context import current_node, process_var
from engine.otp.messages import Call, Request, System
from engine.otp.pid import Address, Pid
from engine.otp.process import Process
from engine.otp.reasons import CALLING_SELF, KILLED, NOPROC, OVERLOADED, TIMEOUT, CallFailed, Exit
from engine.otp.slot import Slot, describe

A = TypeVar("A")


class From(Slot):
    """Whom to answer. The first answer counts; one that comes late, or twice, is dropped."""

    __slots__ = ("pid",)

    def __init__(self, pid: Pid | None) -> None:
        super().__init__()
        self.pid = pid

    def stack(self) -> str:
        """Where the caller stands, for a crash report."""
        return "" if self.task is None else describe(self.task)


def fence(process: Process | None) -> None:
    """Stops code of a zombie: to everybody else its process is dead, so nothing it does may count any more."""
    if process is not None and process.dead:
        raise Exit(KILLED)


async def call(server: Address, request: Request[A], timeout: float | None = 5.0) -> A:
    """Asks `server` and waits for the answer; `timeout` in seconds, None for ever.

    Raises:
        CallFailed: with NOPROC, CALLING_SELF, OVERLOADED, TIMEOUT, or the reason with which the server ended before
            it answered (NORMAL too). After a timeout the server goes on; its late answer is dropped.
    """
    sender = process_var.get()
    fence(sender)
    process = current_node().awaken(server)
    caller = From(None if sender is None else sender.pid)
    return typed(A, await ask(process, server, Call(request, caller), timeout))


async def ask(process: Process | None, server: Address, envelope: Call | System, timeout: float | None) -> object:
    """Puts the envelope into the mailbox and waits for its slot."""
    caller, request = envelope.caller, envelope.request
    if process is None:
        raise CallFailed(NOPROC, server, request)
    if process.pid == caller.pid:
        raise CallFailed(CALLING_SELF, server, request)
    if isinstance(envelope, System):
        process.put(envelope)
    elif not process.offer(envelope):
        raise CallFailed(OVERLOADED, server, request)
    process.watch(caller, caller.fail)
    timer = None if timeout is None else process.node.timers.after(timeout, partial(caller.fail, TIMEOUT))
    try:
        answer = await caller.wait()
    finally:
        process.unwatch(caller)
        if timer is not None:
            timer.cancel()
    if caller.failed:
        if answer is TIMEOUT and process.node.tracer.on:
            process.node.tracer.emit(trace.CallTimedOut(process.pid, type(request).__name__, timeout or 0.0))
        raise CallFailed(answer, server, request)
    return answer


def reply(caller: From, answer: object) -> None:
    """Answers a call, from any process; a second answer, and one that comes after the timeout, is dropped."""
    fence(process_var.get())
    caller.resolve(answer)
