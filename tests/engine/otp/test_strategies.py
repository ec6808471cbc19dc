"""Strategies and restart types: cases 17 to 28."""

from __future__ import annotations

from typing import Any

import pytest

from engine.otp import (
    KILL,
    NORMAL,
    ONE_FOR_ALL,
    ONE_FOR_ONE,
    PERMANENT,
    REST_FOR_ONE,
    SHUTDOWN,
    TEMPORARY,
    TRANSIENT,
    ChildSpec,
    Crash,
    ExitSignal,
    Node,
    Pid,
    Reason,
    Shutdown,
    Start,
    Stop,
    Supervisor,
    cast,
    exit,
    send,
    start_child,
    terminate_child,
    whereis,
    which_children,
)
from engine.otp.reports import SupervisorReport, UnexpectedMessage
from tests.engine.otp.servers import Diary, Witness, boom, child, settle


@pytest.fixture
def diary() -> Diary:
    return Diary()


def here(name: str) -> Pid:
    pid = whereis(name)
    assert pid is not None
    return pid


async def family(diary: Diary, ids: str = "abd", **options: Any) -> Pid:
    """A supervisor of witnesses, each with its id as name; the diary is empty afterwards."""
    pid = await Supervisor.start_link([child(diary, id, server=Witness) for id in ids], **options)
    diary.take()
    return pid


async def kill(name: str) -> None:
    exit(here(name), KILL)
    await settle()


async def test_case_17_one_for_one_leaves_the_siblings_alone(node: Node, diary: Diary) -> None:
    await family(diary, strategy=ONE_FOR_ONE)
    before = here("a"), here("d")
    await kill("b")
    assert diary.events == ["init b"]
    assert (here("a"), here("d")) == before


async def test_case_18_one_for_all_stops_the_others_in_reverse_and_starts_all_in_order(
    node: Node, diary: Diary
) -> None:
    await family(diary, "abdt", strategy=ONE_FOR_ALL)
    await kill("b")
    assert diary.events == ["stop t", "stop d", "stop a", "init a", "init b", "init d", "init t"]


async def test_case_19_rest_for_one_restarts_the_victim_and_those_after_it(node: Node, diary: Diary) -> None:
    await family(diary, "abcd", strategy=REST_FOR_ONE)
    before = here("a")
    await kill("b")
    assert diary.events == ["stop d", "stop c", "init b", "init c", "init d"]
    assert here("a") == before


async def test_case_20_a_temporary_sibling_stopped_by_a_group_restart_is_removed(node: Node, diary: Diary) -> None:
    specs = [child(diary, "a", server=Witness), child(diary, "t", TEMPORARY, server=Witness), child(diary, "b")]
    sup = await Supervisor.start_link(specs, strategy=ONE_FOR_ALL)
    diary.take()
    await kill("a")
    assert "stop t" in diary.events
    assert [info.id for info in await which_children(sup)] == ["a", "b"]
    assert whereis("t") is None


async def test_case_21_children_that_die_at_once_under_one_for_all_count_as_one_restart(
    node: Node, diary: Diary
) -> None:
    sup = await family(diary, "abd", strategy=ONE_FOR_ALL, intensity=1)
    for name in "abd":
        exit(here(name), KILL)
    await settle()
    assert sup.alive
    assert diary.events == ["init a", "init b", "init d"]


async def test_case_22_siblings_stopped_for_a_group_restart_never_count(node: Node, diary: Diary) -> None:
    sup = await family(diary, "abcdefgh", strategy=ONE_FOR_ALL, intensity=2)
    await kill("a")
    await kill("h")
    assert sup.alive
    assert len(await which_children(sup)) == 8


async def test_case_23_a_group_restart_that_fails_begins_anew_with_everyone_under_one_for_all(
    node: Node, diary: Diary
) -> None:
    await family(diary, "abd", strategy=ONE_FOR_ALL)
    diary.faults["b"] = 1
    await kill("d")
    assert diary.events == [
        "stop b", "stop a", "init a", "init b failed", "stop a", "init a", "init b", "init d",
    ]  # fmt: skip


async def test_case_23_under_rest_for_one_only_those_from_the_failed_one_on_are_tried_again(
    node: Node, diary: Diary
) -> None:
    await family(diary, "abcd", strategy=REST_FOR_ONE)
    diary.faults["c"] = 1
    await kill("b")
    assert diary.events == ["stop d", "stop c", "init b", "init c failed", "init c", "init d"]


async def test_case_24_children_behind_the_failed_one_stay_down_until_it_succeeds(node: Node, diary: Diary) -> None:
    sup = await family(diary, "abcd", strategy=REST_FOR_ONE, intensity=2)
    diary.faults["c"] = 100
    await kill("b")
    assert not sup.alive
    assert "init d" not in diary.events


@pytest.mark.parametrize("reason", [NORMAL, SHUTDOWN, Shutdown("x"), "oops"])
async def test_case_25_permanent_restarts_after_any_reason_and_it_is_reported(
    node: Node, diary: Diary, reason: Reason
) -> None:
    reports: list[Any] = []
    node.on_report = reports.append
    await Supervisor.start_link([child(diary, "a")])
    cast("a", lambda _: Stop(reason))
    await settle()
    assert diary.events == ["init a", "stop a", "init a"]
    assert [r.reason for r in reports if isinstance(r, SupervisorReport)] == [reason]


@pytest.mark.parametrize("reason", [NORMAL, SHUTDOWN, Shutdown("x")])
async def test_case_26_transient_stays_down_after_a_clean_reason_and_keeps_its_spec(
    node: Node, diary: Diary, reason: Reason
) -> None:
    sup = await Supervisor.start_link([child(diary, "a", TRANSIENT)])
    cast("a", lambda _: Stop(reason))
    await settle()
    assert diary.events == ["init a", "stop a"]
    assert [(info.id, info.pid) for info in await which_children(sup)] == [("a", None)]


async def test_case_26_transient_restarts_after_a_crash(node: Node, diary: Diary) -> None:
    await Supervisor.start_link([child(diary, "a", TRANSIENT)])
    cast("a", boom)
    await settle()
    assert diary.events == ["init a", "stop a", "init a"]


@pytest.mark.parametrize("message", [boom, lambda _: Stop(NORMAL)])
async def test_case_27_temporary_never_restarts_and_its_spec_goes(node: Node, diary: Diary, message: Any) -> None:
    reports: list[Any] = []
    node.on_report = reports.append
    sup = await Supervisor.start_link([child(diary, "t", TEMPORARY), child(diary, "b")])
    sibling = here("b")
    cast("t", message)
    await settle()
    assert [info.id for info in await which_children(sup)] == ["b"]
    assert here("b") == sibling
    crashes = [r for r in reports if isinstance(r, SupervisorReport) and isinstance(r.reason, Crash)]
    assert len(crashes) == (message is boom)


async def test_case_28_an_exit_of_a_stranger_is_ignored_and_unknown_messages_are_reported(
    node: Node, diary: Diary
) -> None:
    reports: list[Any] = []
    node.on_report = reports.append
    sup = await family(diary)
    send(sup, ExitSignal(Pid(987654), "stranger"))
    send(sup, "what is this?")
    await settle()
    assert sup.alive
    assert diary.events == []
    assert [r.message for r in reports if isinstance(r, UnexpectedMessage)] == ["'what is this?'"]


async def test_a_group_restart_starts_also_children_that_had_ended_well(node: Node, diary: Diary) -> None:
    specs = [child(diary, "a"), child(diary, "t", TRANSIENT)]
    sup = await Supervisor.start_link(specs, strategy=ONE_FOR_ALL)
    await terminate_child(sup, "t")
    diary.take()
    await kill("a")
    assert diary.events == ["init a", "init t"]


async def test_a_child_added_later_is_the_last_in_order(node: Node, diary: Diary) -> None:
    sup = await family(diary, "ab", strategy=REST_FOR_ONE)
    await start_child(sup, ChildSpec("c", Start.server(Witness, diary, "c", name="c"), PERMANENT))
    diary.take()
    await kill("b")
    assert diary.events == ["stop c", "init b", "init c"]
