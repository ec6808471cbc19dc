"""Restart intensity: cases 29 to 38, on a clock that the tests turn."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from engine.otp import (
    KILL,
    ONE_FOR_ALL,
    PERMANENT,
    RESTARTING,
    SHUTDOWN,
    TRANSIENT,
    Backoff,
    ChildError,
    DynamicSupervisor,
    Node,
    Pid,
    Supervisor,
    cast,
    count_children,
    delete_child,
    exit,
    monitor,
    restart_child,
    spawn,
    start_child,
    terminate_child,
    whereis,
    which_children,
)
from engine.otp.reports import SupervisorReport
from tests.engine.otp.servers import Diary, Inbox, Plain, Witness, boom, child, settle


@pytest.fixture
def diary() -> Diary:
    return Diary()


async def kill(name: str) -> None:
    pid = whereis(name)
    assert pid is not None
    exit(pid, KILL)
    await settle()


async def watched(pid: Pid) -> Inbox:
    """A process that monitors `pid`."""
    inbox = Inbox()

    async def watch() -> None:
        monitor(pid)
        await inbox.run()

    await spawn(watch)
    await settle()
    return inbox


async def test_case_29_one_restart_too_many_stops_all_children_and_the_supervisor_with_shutdown(
    node: Node, diary: Diary
) -> None:
    sup = await Supervisor.start_link([child(diary, "a"), child(diary, "b", server=Witness)], intensity=2, period=5)
    inbox = await watched(sup)
    await kill("a")
    await kill("a")
    assert sup.alive
    await kill("a")
    assert not sup.alive
    assert diary.events[-1] == "stop b"
    assert [message.reason for message in inbox.messages] == [SHUTDOWN]


async def test_case_29_restarts_that_the_period_has_passed_do_not_count(
    mock_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    sup = await Supervisor.start_link([child(diary, "a")], intensity=1, period=5)
    for _ in range(4):
        await kill("a")
        mock_clock.jump(5.1)
    assert sup.alive


async def test_case_30_with_intensity_zero_the_first_crash_ends_it(node: Node, diary: Diary) -> None:
    sup = await Supervisor.start_link([child(diary, "a")], intensity=0)
    await kill("a")
    assert not sup.alive
    assert diary.events == ["init a"]


async def test_case_31_restarts_of_all_children_count_together(node: Node, diary: Diary) -> None:
    sup = await Supervisor.start_link([child(diary, id) for id in "abc"], intensity=2)
    for name in "abc":
        await kill(name)
    assert not sup.alive


async def test_case_32_a_failed_restart_counts_so_three_allowed_are_four_starts(node: Node, diary: Diary) -> None:
    sup = await Supervisor.start_link([child(diary, "a")], intensity=3)
    diary.faults["a"] = 100
    await kill("a")
    assert not sup.alive
    assert diary.events == ["init a"] + ["init a failed"] * 3


async def test_case_32_it_is_the_same_under_a_dynamic_supervisor(node: Node, diary: Diary) -> None:
    sup = await DynamicSupervisor.start_link(intensity=3)
    await start_child(sup, child(diary, "a"))
    diary.faults["a"] = 100
    await kill("a")
    assert not sup.alive
    assert diary.events == ["init a"] + ["init a failed"] * 3


async def test_case_33_a_failed_restart_is_tried_at_once_until_it_succeeds(node: Node, diary: Diary) -> None:
    sup = await Supervisor.start_link([child(diary, "a")], intensity=4)
    diary.faults["a"] = 3
    await kill("a")
    assert sup.alive
    assert diary.events == ["init a", "init a failed", "init a failed", "init a failed", "init a"]


async def test_case_33_a_shutdown_gets_in_between_two_attempts(node: Node, diary: Diary) -> None:
    sup = await Supervisor.start_link([child(diary, "a")], intensity=10_000_000)
    diary.faults["a"] = 10**9
    victim = whereis("a")
    assert victim is not None
    exit(victim, KILL)
    await trio.lowlevel.checkpoint()
    await terminate_child(sup, "a")
    tries = len(diary.events)
    await settle()
    assert sup.alive
    assert len(diary.events) == tries


async def test_case_34_while_it_is_retried_a_child_shows_as_restarting_and_terminate_cancels_that(
    mock_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    backoff = Backoff(initial=10, jitter=0)
    sup = await Supervisor.start_link([child(diary, "a", backoff=backoff)])
    await kill("a")
    assert [info.pid for info in await which_children(sup)] == [RESTARTING]
    for request in (restart_child, delete_child):
        with pytest.raises(ChildError) as caught:
            await request(sup, "a")
        assert caught.value.reason is RESTARTING
    await terminate_child(sup, "a")
    assert [info.pid for info in await which_children(sup)] == [None]
    mock_clock.jump(60)
    await settle()
    assert diary.events == ["init a"]


async def test_case_35_the_period_is_measured_in_exact_time(
    mock_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    sup = await Supervisor.start_link([child(diary, "a")], intensity=2, period=1)
    for _ in range(10):
        await kill("a")
        mock_clock.jump(0.7)
    assert sup.alive


async def test_case_36_manual_stops_and_starts_do_not_count(node: Node, diary: Diary) -> None:
    sup = await Supervisor.start_link([child(diary, "a")], intensity=1)
    for _ in range(5):
        await terminate_child(sup, "a")
        await restart_child(sup, "a")
    assert sup.alive
    assert diary.events.count("init a") == 6


def inner(diary: Diary, restart: Any) -> Any:
    return Supervisor.spec([child(diary, "a")], intensity=0, name="inner", restart=restart)


async def test_case_37_an_inner_supervisor_that_gives_up_is_restarted_by_the_outer_until_that_gives_up(
    node: Node, diary: Diary
) -> None:
    outer = await Supervisor.start_link([inner(diary, PERMANENT)], intensity=1)
    await kill("a")
    assert outer.alive
    assert diary.take() == ["init a", "init a"]
    await kill("a")
    assert not outer.alive
    assert diary.take() == []


async def test_case_37_a_transient_inner_supervisor_is_not_restarted(node: Node, diary: Diary) -> None:
    outer = await Supervisor.start_link([inner(diary, TRANSIENT)], intensity=1)
    await kill("a")
    assert outer.alive
    assert [(info.id, info.pid) for info in await which_children(outer)] == [("inner", None)]


async def test_case_38_the_report_of_giving_up_names_the_offender(node: Node, diary: Diary) -> None:
    reports: list[Any] = []
    node.on_report = reports.append
    await Supervisor.start_link([child(diary, "a"), child(diary, "b")], intensity=0)
    await kill("b")
    given_up = [r for r in reports if isinstance(r, SupervisorReport) and r.what == "shutdown"]
    assert [(r.child, r.reason) for r in given_up] == [("b", "reached_max_restart_intensity")]


# --- back-off ---------------------------------------------------------------------------------------------


async def test_a_backoff_delays_each_restart_more_than_the_one_before(
    mock_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    backoff = Backoff(initial=1, factor=2, jitter=0)
    await Supervisor.start_link([child(diary, "a", backoff=backoff)], intensity=10, period=100)
    for delay in (1, 2, 4):
        await kill("a")
        mock_clock.jump(delay - 0.01)
        await settle()
        assert whereis("a") is None
        mock_clock.jump(0.02)
        await settle()
        assert whereis("a") is not None


async def test_a_child_that_stayed_up_begins_its_backoff_anew(
    mock_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    backoff = Backoff(initial=1, factor=10, jitter=0, reset_after=60)
    for start in (Supervisor.start_link([]), DynamicSupervisor.start_link()):
        sup = await start
        await start_child(sup, child(diary, "a", backoff=backoff))
        for _ in range(3):
            mock_clock.jump(61)
            await kill("a")
            mock_clock.jump(1.01)
            await settle()
            assert whereis("a") is not None
        await kill("a")
        mock_clock.jump(1.01)
        await settle()
        assert whereis("a") is None
        mock_clock.jump(9)
        await settle()
        assert whereis("a") is not None
        exit(sup, KILL)
        await settle()


async def test_restarts_with_a_backoff_count_unless_it_says_otherwise(
    mock_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    for counted, lives in ((True, False), (False, True)):
        backoff = Backoff(initial=1, factor=1, jitter=0, counted=counted)
        sup = await Supervisor.start_link([child(diary, "a", backoff=backoff)], intensity=2, period=1000)
        for _ in range(3):
            await kill("a")
            mock_clock.jump(1.01)
            await settle()
        assert sup.alive is lives
        exit(sup, KILL)
        await settle()


async def test_with_a_backoff_under_one_for_all_the_siblings_wait_for_the_restart(
    mock_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    specs = [child(diary, "a", backoff=Backoff(initial=5, jitter=0)), child(diary, "b", server=Witness)]
    await Supervisor.start_link(specs, strategy=ONE_FOR_ALL)
    await kill("a")
    mock_clock.jump(5.01)
    await settle()
    assert diary.events == ["init a", "init b", "stop b", "init a", "init b"]


# --- counting under a dynamic supervisor --------------------------------------------------------------------


async def test_a_thousand_children_that_crash_at_once_are_all_restarted(node: Node, diary: Diary) -> None:
    node.on_report = lambda report: None
    sup = await DynamicSupervisor.start_link(intensity=1000)
    pids = [await start_child(sup, child(diary, str(n), server=Plain)) for n in range(1000)]
    for pid in pids:
        cast(pid, boom)
    await settle()
    assert (await count_children(sup)).active == 1000
    assert not any(pid.alive for pid in pids)


async def test_a_backoff_that_was_cancelled_does_not_cut_a_later_one_short(
    mock_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    sup = await Supervisor.start_link([child(diary, "a", backoff=Backoff(initial=10, factor=1, jitter=0))])
    await kill("a")
    mock_clock.jump(8)
    await restart_after_terminate(sup)
    await kill("a")
    mock_clock.jump(3)
    await settle()
    assert whereis("a") is None
    mock_clock.jump(7.5)
    await settle()
    assert whereis("a") is not None


async def restart_after_terminate(sup: Pid) -> None:
    await terminate_child(sup, "a")
    await restart_child(sup, "a")
