"""Servers that the tests of the engine share: they write down what happens to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio
import trio.testing
from attrs import define, field, frozen

from engine.otp import (
    PERMANENT,
    ROOT,
    ChildSpec,
    ExitSignal,
    From,
    GenServer,
    NoReply,
    Ok,
    Pid,
    Reason,
    Reply,
    Request,
    Start,
    Stop,
    monitor,
    receive,
    spawn,
    trap_exits,
)


@define
class Diary:
    """Events in the order in which they happened, and how often each server is still to fail in `init`."""

    events: list[str] = field(factory=list)
    faults: dict[str, int] = field(factory=dict)

    def note(self, event: str) -> None:
        self.events.append(event)

    def take(self) -> list[str]:
        """What happened since the last time."""
        taken, self.events = self.events, []
        return taken


@frozen
class Do(Request[Any]):
    """Has the server run a function with its state; what it returns is the answer."""

    function: Callable[[Any], Any]


@frozen
class Get(Request[Any]):
    """Answers the state."""


class Witness(GenServer[Any]):
    """Notes its start, its end and its messages; the state is what it was started with."""

    trap_exit = True

    async def init(self, diary: Diary, id: str, state: Any = 0) -> Ok[Any] | Stop[Any]:
        self.diary, self.id = diary, id
        if diary.faults.get(id, 0) > 0:
            diary.faults[id] -= 1
            diary.note(f"init {id} failed")
            return Stop(f"no {id}")
        diary.note(f"init {id}")
        return Ok(state)

    async def handle_call(self, request: Any, caller: From, state: Any) -> Any:
        match request:
            case Get():
                return Reply(state, state)
            case Do(function):
                answer = function(state)
                return answer if isinstance(answer, Reply | NoReply | Stop) else Reply(answer, state)
        return await super().handle_call(request, caller, state)

    async def handle_cast(self, message: Any, state: Any) -> Any:
        if callable(message):
            answer = message(state)
            return answer if isinstance(answer, NoReply | Stop) else NoReply(state)
        self.diary.note(f"cast {message}")
        return NoReply(state)

    async def handle_info(self, message: Any, state: Any) -> Any:
        self.diary.note(f"info {message}")
        return NoReply(state)

    async def terminate(self, reason: Reason, state: Any) -> None:
        self.diary.note(f"stop {self.id}")


class Plain(Witness):
    """A witness that does not trap exits."""

    trap_exit = False


def child(diary: Diary, id: str, restart: Any = PERMANENT, *, server: Any = Plain, **options: Any) -> ChildSpec:
    """The spec of a witness that is registered under its id."""
    return ChildSpec(id, Start.server(server, diary, id, name=id), restart, **options)


def boom(_: Any) -> Any:
    raise ValueError("boom")


async def settle() -> None:
    """Waits until nothing moves any more."""
    await trio.testing.wait_all_tasks_blocked()


async def gone(pid: Pid) -> object:
    """Waits until a process has ended; answers why."""
    over, reasons = trio.Event(), []

    async def watch() -> None:
        monitor(pid)
        reasons.append((await receive()).reason)  # type: ignore[attr-defined]
        over.set()

    await spawn(watch)
    await over.wait()
    return reasons[0]


class Inbox:
    """A plain process that traps exits and keeps every message it gets."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    async def run(self) -> None:
        trap_exits()
        while not self._told_to_end(message := await receive()):
            self.messages.append(message)

    def _told_to_end(self, message: object) -> bool:
        return isinstance(message, ExitSignal) and message.pid == ROOT

    def exits(self) -> list[Any]:
        return [message.reason for message in self.messages if isinstance(message, ExitSignal)]
