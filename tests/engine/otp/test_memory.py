"""Memory watermarks: who hibernates and who ends is decided as data; the guard acts on it and reports."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from engine.otp import MemoryGuard, Node, Pid, Policy, Supervisor, call
from engine.otp.memory import Action, Candidate, choose, decide, resident_bytes
from engine.otp.reports import MemoryReport
from tests.engine.otp.servers import Diary, Get, Plain, Witness, settle

POLICY = Policy(hibernate_at=100, end_at=200, kinds={"Plain"}, min_age=60, batch=2, interval=5)


def candidate(number: int, age: float, *, kind: str = "Plain", idle: bool = True, asleep: bool = False) -> Candidate:
    return Candidate(Pid(number), kind, age, idle, asleep)


def test_below_the_watermarks_nothing_is_done() -> None:
    assert [decide(POLICY, used) for used in (99, 100, 199, 200)] == [
        None, Action.HIBERNATE, Action.HIBERNATE, Action.END,
    ]  # fmt: skip


def test_the_oldest_idle_ones_of_the_kinds_named_hibernate() -> None:
    everyone = [
        candidate(1, 5), candidate(2, 9, kind="Other"), candidate(3, 7, idle=False), candidate(4, 6),
        candidate(5, 8, asleep=True), candidate(6, 4),
    ]  # fmt: skip
    assert [c.pid for c in choose(POLICY, Action.HIBERNATE, everyone)] == [4, 1]


def test_those_old_enough_end_asleep_or_not() -> None:
    everyone = [candidate(1, 59), candidate(2, 61), candidate(3, 99, asleep=True), candidate(4, 70, idle=False)]
    assert [c.pid for c in choose(POLICY, Action.END, everyone)] == [3, 4]


def test_the_resident_size_is_that_of_this_process() -> None:
    assert resident_bytes() > 10_000_000


async def test_the_guard_hibernates_then_ends_and_reports_both(mock_clock: trio.testing.MockClock, node: Node) -> None:
    used = [150]
    reports: list[Any] = []
    node.on_report = lambda report: reports.append(report) if isinstance(report, MemoryReport) else None
    policy = Policy(100, 200, {"Plain"}, min_age=60, batch=2, interval=5, measure=lambda: used[0])
    await Supervisor.start_link([MemoryGuard.spec(policy)])
    plain = []
    for number in range(3):
        plain.append(await Plain.start(Diary(), str(number), number))
        mock_clock.jump(0.1)
    other = await Witness.start(Diary(), "w")
    await settle()
    mock_clock.jump(5.1)
    await settle()
    assert [pid in node.dormitory for pid in plain] == [True, True, False]
    assert await call(plain[0], Get()) == 0
    used[0] = 250
    mock_clock.jump(61)
    await settle()
    assert [pid.alive for pid in plain] == [False, False, True]
    assert other.alive
    assert [(r.action, r.kind, r.count) for r in reports] == [("hibernated", "Plain", 2), ("ended", "Plain", 2)]


@pytest.mark.parametrize("used", [0, 99])
async def test_the_guard_leaves_everybody_alone_while_there_is_room(
    mock_clock: trio.testing.MockClock, node: Node, used: int
) -> None:
    policy = Policy(100, 200, {"Plain"}, min_age=0, interval=5, measure=lambda: used)
    await Supervisor.start_link([MemoryGuard.spec(policy)])
    pid = await Plain.start(Diary(), "a")
    mock_clock.jump(20)
    await settle()
    assert pid in node.table
