"""How much memory there is, and who goes first when it is used up."""

from __future__ import annotations

from pathlib import Path

from engine.otp.memory import Action, decide
from web.thrift import SHARE, available, guards, memory_limit


def test_a_container_with_a_limit_has_that_and_one_without_has_the_machine(tmp_path: Path) -> None:
    cgroup = tmp_path / "memory.max"
    machine = available(cgroup)
    cgroup.write_text("max\n")
    assert available(cgroup) == machine > 100_000_000
    cgroup.write_text("50000000\n")
    assert available(cgroup) == 50_000_000
    assert memory_limit(123) == 123
    assert memory_limit(0) == int(SHARE * available())


def test_tasks_that_wait_end_before_sockets_do() -> None:
    (tasks,), (sockets,) = (spec.start.args for spec in guards(1000))
    assert [decide(policy, 860) for policy in (tasks, sockets)] == [Action.END, Action.HIBERNATE]
    assert [decide(policy, 1000) for policy in (tasks, sockets)] == [Action.END, Action.END]
    assert (tasks.kinds, sockets.kinds) == ({"TaskServer"}, {"Socket"})
