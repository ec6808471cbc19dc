"""Reports: cases 102 and 103; and trace events and introspection."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio

from engine.otp import (
    KILL,
    NORMAL,
    SHUTDOWN,
    TRANSIENT,
    UNIQUE,
    CallFailed,
    DynamicSupervisor,
    GenServer,
    Node,
    Ok,
    Pid,
    Registry,
    Shutdown,
    Stop,
    Supervisor,
    Via,
    call,
    cast,
    exit,
    introspect,
    link,
    receive,
    restart_child,
    spawn,
    start_child,
    stop,
    terminate_child,
    trace,
)
from engine.otp.reports import CrashReport, ProgressReport, SupervisorReport
from tests.engine.otp.servers import Diary, Do, Get, Plain, Witness, boom, child, settle


@pytest.fixture
def diary() -> Diary:
    return Diary()


@pytest.fixture
def reports(node: Node) -> list[Any]:
    found: list[Any] = []
    node.on_report = found.append
    return found


class Secretive(Plain):
    def format_status(self, state: Any) -> object:
        return "<redacted>"


async def test_case_102_a_crash_report_says_who_what_where_and_for_whom(
    node: Node, diary: Diary, reports: list[Any]
) -> None:
    async def calling() -> None:
        await call("server", Do(boom))

    async def parent() -> None:
        await Secretive.start_link(diary, "s", "secret", name="server")
        await receive()

    parent_pid = await spawn(parent)
    await settle()
    client = await spawn(calling)
    await settle()
    report = next(r for r in reports if isinstance(r, CrashReport) and r.names == ("server",))
    assert report.kind == "Secretive"
    assert report.ancestors == (parent_pid,)
    assert report.links == (parent_pid,)
    assert report.mailbox == 0
    assert "boom" in report.last_message
    assert report.state == "'<redacted>'"
    assert report.client == client
    assert "calling" in report.client_stack
    text = str(report)
    assert "ValueError: boom" in text
    assert "secret" not in text.replace("Secretive", "").replace("secretive", "")


@pytest.mark.parametrize(
    ("reason", "reported"), [(NORMAL, False), (SHUTDOWN, False), (Shutdown(1), False), ("other", True)]
)
async def test_case_102_only_reasons_that_are_not_clean_are_crashes(
    node: Node, diary: Diary, reports: list[Any], reason: Any, reported: bool
) -> None:
    pid = await Plain.start(diary, "a")
    cast(pid, lambda _: Stop(reason))
    await settle()
    assert any(isinstance(r, CrashReport) for r in reports) is reported


async def test_case_103_supervisors_report_starts_ends_failed_starts_and_giving_up(
    node: Node, diary: Diary, reports: list[Any]
) -> None:
    sup = await Supervisor.start_link([child(diary, "a")], intensity=1)
    diary.faults["a"] = 9
    cast("a", boom)
    await settle()
    assert not sup.alive
    assert [r.child for r in reports if isinstance(r, ProgressReport)] == ["a"]
    assert [r.what for r in reports if isinstance(r, SupervisorReport)] == [
        "child_terminated", "start_error", "shutdown",
    ]  # fmt: skip


async def test_case_103_reports_are_structured_log_records_and_survive_a_bad_repr(
    node: Node, diary: Diary, caplog: pytest.LogCaptureFixture
) -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    pid = await Plain.start(diary, "a", Hostile())
    cast(pid, boom)
    await settle()
    records = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert [type(r.report) for r in records] == [CrashReport]  # type: ignore[attr-defined]
    assert "repr failed" in records[0].getMessage()


async def test_a_handler_that_fails_does_not_hurt_who_is_reported_on(
    node: Node, diary: Diary, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(report: object) -> None:
        raise ValueError("handler")

    node.on_report = failing
    await Supervisor.start_link([child(diary, "a")])
    cast("a", boom)
    await settle()
    assert diary.events == ["init a", "stop a", "init a"]


# --- trace ------------------------------------------------------------------------------------------------------


async def test_trace_tells_of_spawns_ends_restarts_and_call_timeouts_until_it_is_detached(
    autojump_clock: trio.testing.MockClock, node: Node, diary: Diary, reports: list[Any]
) -> None:
    events: list[Any] = []
    detach = trace.attach(events.append)
    assert node.tracer.on
    sup = await Supervisor.start_link([child(diary, "a", server=Witness)])
    cast("a", boom)
    await settle()
    pid = await spawn(trio.sleep_forever)
    with pytest.raises(CallFailed):
        await call(pid, Get(), timeout=1)
    detach()
    assert not node.tracer.on
    await stop(sup, SHUTDOWN)
    names = [type(event).__name__ for event in events]
    assert names == ["Spawned", "Spawned", "Exited", "Spawned", "Restarted", "Spawned", "CallTimedOut"]
    restarted = next(event for event in events if isinstance(event, trace.Restarted))
    assert (restarted.supervisor, restarted.id) == (sup, "a")


async def test_a_listener_that_fails_is_logged_and_the_others_hear_it(
    node: Node, diary: Diary, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Any] = []

    def failing(event: object) -> None:
        raise ValueError("listener")

    trace.attach(failing, [trace.Spawned])
    trace.attach(heard.append, [trace.Spawned])
    await Plain.start(diary, "a")
    assert len(heard) == 1
    assert "a trace handler failed" in caplog.text


# --- introspection ----------------------------------------------------------------------------------------------


async def test_the_tree_shows_every_process_with_its_state_and_counts(node: Node, diary: Diary) -> None:
    registry = Registry(UNIQUE, "names")
    root = await Supervisor.start_link(
        [registry.spec(), DynamicSupervisor.spec(name="many"), child(diary, "a")], name="root"
    )
    for number in range(5):
        await Plain.start(diary, str(number))
        await start_child("many", child(diary, f"c{number}"))
    tree = introspect.tree("root", limit=2)
    assert tree is not None
    assert (tree.pid, tree.kind, tree.strategy, tree.names) == (root, "Supervisor", "one_for_one", ("root",))
    assert [branch.id for branch in tree.children] == ["names", "many", "a"]
    many = tree.children[1]
    assert (many.count, len(many.children)) == (5, 2)
    page = introspect.children("many", offset=3, limit=10)
    assert [branch.names for branch in page] == [("c3",), ("c4",)]


async def test_a_child_that_ended_as_it_was_to_is_shown_as_done_and_one_that_was_stopped_as_down(
    node: Node, diary: Diary
) -> None:
    root = await Supervisor.start_link([child(diary, "a", restart=TRANSIENT), child(diary, "b", restart=TRANSIENT)])

    def statuses() -> list[str]:
        tree = introspect.tree(root)
        assert tree is not None
        return [branch.status for branch in tree.children]

    await stop("a")
    await terminate_child(root, "b")
    await settle()
    assert statuses() == ["done", "down"]
    await restart_child(root, "a")
    assert statuses() == ["waiting", "down"]


async def test_info_tells_all_about_one_process(node: Node, diary: Diary) -> None:
    registry = Registry(UNIQUE, "names")
    await Supervisor.start_link([registry.spec()])
    pid = await Plain.start(diary, "a", 5, name=Via(registry, ("task", 1)))

    async def friend() -> None:
        link(pid)
        await receive()

    friend_pid = await spawn(friend)
    for _ in range(3):
        await call(pid, Get())
    await settle()
    shown = introspect.info(pid)
    assert shown is not None
    assert (shown.kind, shown.status, shown.names, shown.state) == ("Plain", "waiting", (("task", 1),), "5")
    assert (shown.handled, shown.mailbox, shown.mailbox_peak, shown.links) == (3, 0, 1, (friend_pid,))
    assert shown.last_message == "Get()"
    assert 0 < shown.busy < 1
    assert "wait_task_rescheduled" in shown.stack
    assert Pid.parse(str(pid)) == pid
    exit(pid, KILL)
    await settle()
    assert introspect.info(pid) is None


# --- interrupts from outside --------------------------------------------------------------------------------------


class Quitting(GenServer[None]):
    async def init(self) -> Ok[None]:
        return Ok(None)

    async def handle_cast(self, message: Any, state: None) -> Any:
        raise message


async def test_a_keyboard_interrupt_inside_a_process_ends_the_node_in_order(diary: Diary) -> None:
    async def running() -> None:
        async with Node.open(report=lambda report: None):
            await Witness.start(diary, "a")
            cast(await Quitting.start(), KeyboardInterrupt())
            await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        await running()
    assert diary.events == ["init a", "stop a"]
