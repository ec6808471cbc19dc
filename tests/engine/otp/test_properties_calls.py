"""Callers, servers that answer late, sleep, crash and come back, timeouts and cancelled callers, all at random.

Whatever the mixture: every call ends once, in one of the ways that are promised, and nothing is left behind.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import trio
from attrs import define, field, frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from engine.otp import (
    HIBERNATE,
    KILL,
    NOPROC,
    NORMAL,
    SHUTDOWN,
    TIMEOUT,
    CallFailed,
    Continue,
    Crash,
    From,
    GenServer,
    Node,
    NoReply,
    Ok,
    Reply,
    Request,
    Stop,
    Supervisor,
    Timeout,
    call,
    cast,
    exit,
    processes,
    reply,
    self_,
    stop,
    whereis,
    worker,
)
from engine.otp.gen_server import Then
from engine.otp.reasons import KILLED

mixed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)

WAYS = ["at once", "slowly", "later", "never", "crash", "stop", "stop without", "kill myself"]
REASONS = {NOPROC, TIMEOUT, NORMAL, SHUTDOWN, KILLED}


@frozen
class Ask(Request[int]):
    number: int
    way: str
    then: Then


@define
class Waiting:
    """State: callers who wait for an answer."""

    callers: list[tuple[From, int]] = field(factory=list)


class Server(GenServer[Waiting]):
    async def init(self) -> Ok[Waiting]:
        return Ok(Waiting())

    async def handle_call(self, request: Ask, caller: From, state: Waiting) -> Any:
        match request.way:
            case "at once":
                return Reply(request.number, state, request.then)
            case "slowly":
                await trio.sleep(0.3)
                return Reply(request.number, state, request.then)
            case "later":
                return NoReply(Waiting([*state.callers, (caller, request.number)]), request.then)
            case "never":
                return NoReply(state, request.then)
            case "crash":
                raise ValueError(request.number)
            case "stop":
                return Stop(NORMAL, state, request.number)
            case "stop without":
                return Stop(SHUTDOWN, state)
            case _:
                exit(self_(), KILL)
                await trio.sleep_forever()
                return NoReply(state)

    async def handle_cast(self, message: object, state: Waiting) -> NoReply[Waiting]:
        for caller, number in state.callers:
            reply(caller, number)
            reply(caller, -1)  # a second answer is nobody's
        return NoReply(Waiting(), HIBERNATE)

    async def handle_continue(self, message: object, state: Waiting) -> NoReply[Waiting]:
        return NoReply(state)

    async def handle_info(self, message: object, state: Waiting) -> NoReply[Waiting]:
        return NoReply(state, HIBERNATE)


thens = st.sampled_from([None, HIBERNATE, Timeout(0.2), Continue("on")])
calls = st.tuples(
    st.sampled_from(WAYS),
    thens,
    st.sampled_from([0.05, 0.5, 5.0]),  # the call's own timeout
    st.sampled_from([0.01, 0.4, 60.0]),  # when the caller is cancelled
    st.sampled_from([0.0, 0.0, 0.1, 1.0]),  # pause before the next
)


@mixed
@given(st.lists(calls, min_size=1, max_size=15), st.sampled_from([0.0, 0.25, 2.0]), st.sampled_from([0.0, 0.7]))
def test_every_call_ends_once_as_promised_and_leaves_nothing(
    plan: list[Any], answered_every: float, killed_every: float
) -> None:
    trio.run(play, plan, answered_every, killed_every, clock=MockClock(autojump_threshold=0))


async def play(plan: list[Any], answered_every: float, killed_every: float) -> None:
    ends: Counter[int] = Counter()
    wrong: list[object] = []

    async def caller(number: int, way: str, then: Then, timeout: float | None, patience: float) -> None:
        begun = trio.current_time()
        with trio.move_on_after(patience) as scope:
            try:
                answer = await call("server", Ask(number, way, then), timeout)
            except CallFailed as failure:
                if failure.reason not in REASONS and not isinstance(failure.reason, Crash):
                    wrong.append(failure.reason)
            else:
                if answer != number:
                    wrong.append((number, answer))
            ends[number] += 1
        ends[number] += scope.cancelled_caught
        if killed_every and trio.current_time() - begun > 2 * killed_every:
            wrong.append((number, "heard of the server's end too late"))

    async def answerer() -> None:
        while True:
            await trio.sleep(answered_every)
            cast("server", "answer")

    async def killer() -> None:
        while True:
            await trio.sleep(killed_every)
            if (server := whereis("server")) is not None:
                exit(server, KILL)

    async with Node.open(report=lambda _: None) as node:
        await Supervisor.start_link([worker(Server, id="server", name="server")], intensity=1000, name="root")
        async with trio.open_nursery() as others:
            if answered_every:
                others.start_soon(answerer)
            if killed_every:
                others.start_soon(killer)
            async with trio.open_nursery() as nursery:
                for number, (way, then, limit, patience, pause) in enumerate(plan):
                    # Who waits for ever hears of the server's end, asleep or not.
                    timeout = None if killed_every and limit == 5.0 else limit
                    nursery.start_soon(caller, number, way, then, timeout, patience)
                    if pause:
                        await trio.sleep(pause)
            others.cancel_scope.cancel()
        await trio.sleep(30)  # what callers gave up on is still handled
        assert wrong == []
        assert ends == Counter(range(len(plan)))
        nothing_is_left(node)
        await stop("root", SHUTDOWN)
        assert list(processes()) == []


def nothing_is_left(node: Node) -> None:
    """No caller is still being watched for, and nothing waits in a mailbox."""
    server = node.peek("server")
    assert server is not None
    assert whereis("server") == server.pid
    assert not server.watchers
    assert not server.queue
