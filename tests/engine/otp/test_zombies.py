"""Zombies: coroutines that do not end when they are killed."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from engine.otp import (
    KILL,
    KILLED,
    UNIQUE,
    ChildSpec,
    From,
    Node,
    Registry,
    Request,
    Start,
    Supervisor,
    call,
    cast,
    exit,
    init_ack,
    introspect,
    receive,
    reply,
    restart_child,
    send,
    spawn,
    terminate_child,
    trace,
    whereis,
)
from engine.otp.process import Blueprint, run_plain
from engine.otp.reports import ZombieReport
from tests.engine.otp.servers import Diary, Inbox, Plain, gone, settle


class Undead:
    """A process that swallows every cancellation until it is let go."""

    def __init__(self) -> None:
        self.released = False
        self.after: list[Any] = []

    async def run(self, act: Any = None) -> None:
        init_ack()
        while not self.released:
            try:
                await trio.sleep(0.05)
            except trio.Cancelled:
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.05)
        if act is not None:
            try:
                act()
            except BaseException as error:
                self.after.append(error)
                raise


async def test_after_kill_and_grace_it_is_declared_dead_its_name_free_and_listed(
    autojump_clock: trio.testing.MockClock, node: Node
) -> None:
    reports: list[Any] = []
    events: list[Any] = []
    node.on_report = reports.append
    trace.attach(events.append, [trace.ZombieDeclared])
    undead = Undead()
    pid = await spawn(undead.run, name="undead")
    await trio.sleep(1)
    exit(pid, KILL)
    before = trio.current_time()
    assert await gone(pid) is KILLED
    assert trio.current_time() - before == pytest.approx(1.0, abs=0.2)
    assert (pid.alive, whereis("undead")) == (False, None)
    assert introspect.overview() == introspect.Overview(live=0, asleep=0, zombies=((pid, "Undead.run"),))
    assert [type(r) for r in reports] == [ZombieReport]
    assert "trio.sleep" in reports[0].stack
    assert events == [trace.ZombieDeclared(pid, "Undead.run")]
    undead.released = True
    await trio.sleep(1)
    assert not node.zombies


async def test_its_supervisor_goes_on_without_waiting_for_it(
    autojump_clock: trio.testing.MockClock, node: Node
) -> None:
    node.on_report = lambda report: None
    undead = Undead()
    spec = ChildSpec("u", Start.process(undead.run, name="u"), shutdown=2.0)
    sup = await Supervisor.start_link([spec])
    first = whereis("u")
    before = trio.current_time()
    await terminate_child(sup, "u")
    assert 3.0 <= trio.current_time() - before < 3.5
    second = await restart_child(sup, "u")
    assert whereis("u") == second != first
    undead.released = True
    await trio.sleep(1)


async def test_what_a_zombie_sends_calls_registers_or_starts_is_refused(
    autojump_clock: trio.testing.MockClock, node: Node
) -> None:
    node.on_report = lambda report: None
    registry = Registry(UNIQUE, "names")
    await Supervisor.start_link([registry.spec()])
    inbox = Inbox()
    target = await spawn(inbox.run)
    acts = [
        lambda: send(target, "x"),
        lambda: cast(target, "x"),
        lambda: exit(target, "x"),
        lambda: registry.register("x"),
        lambda: node.launch(Blueprint("x", run_plain, receive), (), ("x",), None),
    ]
    for act in acts:
        undead = Undead()
        pid = await spawn(undead.run, act)
        await trio.sleep(1)
        exit(pid, KILL)
        await gone(pid)
        undead.released = True
        await trio.sleep(1)
        assert [getattr(error, "reason", error) for error in undead.after] == [KILLED]
    assert inbox.messages == []
    assert registry.whereis("x") is None
    assert whereis("x") is None
    assert not node.zombies


class Ask(Request[Any]):
    pass


class Stuck(Plain):
    """Answers from a coroutine that did not end when it was killed."""

    async def handle_call(self, request: Any, caller: From, state: Undead) -> Any:
        await state.run(lambda: reply(caller, "from beyond"))


async def test_its_replies_do_not_count(autojump_clock: trio.testing.MockClock, node: Node) -> None:
    node.on_report = lambda report: None
    undead, reasons = Undead(), []
    pid = await Stuck.start(Diary(), "s", undead)

    async def calling() -> None:
        try:
            await call(pid, Ask(), timeout=None)
        except BaseException as error:
            reasons.append(getattr(error, "reason", error))
            raise

    await spawn(calling)
    await trio.sleep(1)
    exit(pid, KILL)
    await trio.sleep(3)
    assert reasons == [KILLED]
    undead.released = True
    await trio.sleep(1)
    assert not node.zombies


async def test_a_clean_up_that_takes_longer_than_its_grace_is_killed(
    autojump_clock: trio.testing.MockClock, node: Node
) -> None:
    async def tidy() -> None:
        try:
            await receive()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(3)

    for seconds, pid in ((3.0, await spawn(tidy)),):
        await settle()
        exit(pid, "please")
        before = trio.current_time()
        assert await gone(pid) == "please"
        assert trio.current_time() - before == pytest.approx(seconds, abs=0.1)
