"""Auto-shutdown and shutdown: cases 39 to 49, on a clock that the tests turn."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from engine.otp import (
    ALL_SIGNIFICANT,
    ANY_SIGNIFICANT,
    BRUTAL_KILL,
    KILL,
    KILLED,
    NORMAL,
    SHUTDOWN,
    TEMPORARY,
    TRANSIENT,
    ChildSpec,
    Node,
    Pid,
    Reason,
    Restart,
    Start,
    Stop,
    Supervisor,
    cast,
    exit,
    init_ack,
    monitor,
    receive,
    spawn,
    terminate_child,
    trap_exits,
    unlink,
    whereis,
)
from engine.otp.reports import SupervisorReport
from tests.engine.otp.servers import Diary, Inbox, Plain, Witness, boom, child, gone, settle


@pytest.fixture
def diary() -> Diary:
    return Diary()


async def ends(name: str, reason: Reason = NORMAL) -> None:
    cast(name, lambda _: Stop(reason))
    await settle()


def significant(diary: Diary, *ids: str, restart: Any = TRANSIENT) -> list[ChildSpec]:
    return [child(diary, id, restart, significant=True) for id in ids]


async def reason_of_end(pid: Pid, act: Any) -> Reason:
    """What `pid` ends with after `act()`."""
    inbox = Inbox()

    async def watch() -> None:
        monitor(pid)
        await inbox.run()

    await spawn(watch)
    await settle()
    act()
    await settle()
    return inbox.messages[0].reason


async def test_case_39_the_first_significant_child_that_ends_by_itself_ends_the_supervisor(
    node: Node, diary: Diary
) -> None:
    specs = significant(diary, "a", "b")
    sup = await Supervisor.start_link(specs, auto_shutdown=ANY_SIGNIFICANT)
    assert await reason_of_end(sup, lambda: cast("b", lambda _: Stop(NORMAL))) is SHUTDOWN
    assert whereis("a") is None


async def test_case_39_a_transient_one_must_end_well_a_temporary_one_ends_it_in_any_way(
    node: Node, diary: Diary
) -> None:
    sup = await Supervisor.start_link(significant(diary, "a"), auto_shutdown=ANY_SIGNIFICANT)
    cast("a", boom)
    await settle()
    assert sup.alive
    temporary = significant(diary, "t", restart=TEMPORARY)
    other = await Supervisor.start_link(temporary, auto_shutdown=ANY_SIGNIFICANT)
    cast("t", boom)
    await settle()
    assert not other.alive


async def test_case_40_all_significant_waits_for_the_last(node: Node, diary: Diary) -> None:
    specs = [*significant(diary, "a", "b"), child(diary, "other")]
    sup = await Supervisor.start_link(specs, auto_shutdown=ALL_SIGNIFICANT)
    await ends("a")
    assert sup.alive
    await ends("b")
    assert not sup.alive


async def test_case_41_terminate_child_does_not_trigger_it(node: Node, diary: Diary) -> None:
    sup = await Supervisor.start_link(significant(diary, "a", "b"), auto_shutdown=ANY_SIGNIFICANT)
    await terminate_child(sup, "a")
    await settle()
    assert sup.alive


class Lingering(Witness):
    """Takes a while to terminate: so many seconds as its state says."""

    async def terminate(self, reason: Reason, state: Any) -> None:
        self.diary.note(f"ending {self.id}")
        await trio.sleep(state)
        await super().terminate(reason, state)


def lingering(diary: Diary, id: str, seconds: float, **options: Any) -> ChildSpec:
    return ChildSpec(id, Start.server(Lingering, diary, id, seconds, name=id), **options)


class Owner:
    """A process that starts a supervisor, so that the supervisor has a parent, and ends when it is told to."""

    def __init__(self, specs: list[ChildSpec]) -> None:
        self.specs = specs
        self.supervisor: Pid

    async def run(self) -> None:
        self.supervisor = await Supervisor.start_link(self.specs)
        await receive()

    async def start(self) -> Pid:
        pid = await spawn(self.run)
        await settle()
        return pid


async def test_case_42_children_end_in_reverse_order_one_after_another(
    autojump_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    owner = Owner([lingering(diary, id, 0.04) for id in "abc"])
    pid = await owner.start()
    diary.take()
    before = trio.current_time()
    exit(pid, "over")
    await gone(owner.supervisor)
    assert diary.events == ["ending c", "stop c", "ending b", "stop b", "ending a", "stop a"]
    assert trio.current_time() - before >= 0.12


async def test_case_43_a_child_that_takes_too_long_is_killed(
    autojump_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    owner = Owner([child(diary, "a", server=Witness), lingering(diary, "slow", 60, shutdown=2.0)])
    pid = await owner.start()
    before = trio.current_time()
    exit(pid, "over")
    await gone(owner.supervisor)
    assert 2.0 <= trio.current_time() - before < 2.1
    assert diary.events[-2:] == ["ending slow", "stop a"]


async def test_case_44_brutal_kill_does_not_terminate(node: Node, diary: Diary) -> None:
    sup = await Supervisor.start_link([child(diary, "a", server=Witness, shutdown=BRUTAL_KILL)])
    await terminate_child(sup, "a")
    assert diary.events == ["init a"]
    assert whereis("a") is None


async def obstinate(reason: Reason) -> None:
    trap_exits()
    init_ack()
    await receive()
    if reason is not NORMAL:
        raise ValueError(reason)


@pytest.mark.parametrize(("restart", "reason", "reported"), [
    ("permanent", NORMAL, True), ("transient", NORMAL, False), ("permanent", "bad", True), ("temporary", "bad", True),
])  # fmt: skip
async def test_case_45_another_reason_than_was_asked_for_is_a_shutdown_error(
    node: Node, restart: str, reason: Reason, reported: bool
) -> None:
    reports: list[Any] = []
    node.on_report = reports.append
    sup = await Supervisor.start_link([ChildSpec("a", Start.process(obstinate, reason), Restart(restart))])
    await terminate_child(sup, "a")
    errors = [r for r in reports if isinstance(r, SupervisorReport) and r.what == "shutdown_error"]
    assert bool(errors) is reported


async def test_case_46_a_child_that_unlinked_itself_cannot_hang_its_supervisor(node: Node) -> None:
    async def loner(supervisor: list[Pid]) -> None:
        init_ack()
        await receive()
        unlink(supervisor[0])
        await receive()

    box: list[Pid] = []
    sup = await Supervisor.start_link([ChildSpec("a", Start.process(loner, box, name="loner"))])
    box.append(sup)
    pid = whereis("loner")
    assert pid is not None
    cast(pid, "unlink now")
    await settle()
    await terminate_child(sup, "a")
    assert not pid.alive


async def test_case_47_when_the_parent_ends_the_children_get_shutdown_and_the_supervisor_its_reason(
    node: Node, diary: Diary
) -> None:
    reasons: list[Reason] = []

    class Listening(Witness):
        async def terminate(self, reason: Reason, state: Any) -> None:
            reasons.append(reason)

    owner = Owner([child(diary, "a", server=Listening)])
    pid = await owner.start()
    assert await reason_of_end(owner.supervisor, lambda: exit(pid, "parent's reason")) == "parent's reason"
    assert reasons == [SHUTDOWN]


async def test_case_48_a_killed_supervisor_shuts_nothing_down_but_its_links_see_killed(
    node: Node, diary: Diary
) -> None:
    reasons: list[Reason] = []

    class Listening(Witness):
        async def terminate(self, reason: Reason, state: Any) -> None:
            reasons.append(reason)

    sup = await Supervisor.start_link([child(diary, "traps", server=Listening), child(diary, "plain", server=Plain)])
    exit(sup, KILL)
    await settle()
    assert reasons == [KILLED]
    assert whereis("traps") is None
    assert whereis("plain") is None
    assert "stop plain" not in diary.events


async def test_case_49_a_supervisor_without_children_stays_alive(node: Node, diary: Diary) -> None:
    sup = await Supervisor.start_link([child(diary, "t", TEMPORARY)])
    await ends("t")
    assert sup.alive


async def test_a_node_that_closes_shuts_its_trees_down_in_reverse_order(diary: Diary) -> None:
    async with Node.open():
        await Supervisor.start_link([child(diary, "a", server=Witness), child(diary, "b", server=Witness)])
        await Witness.start(diary, "c")
    assert diary.events[3:] == ["stop c", "stop b", "stop a"]


async def test_a_node_whose_block_is_cancelled_still_shuts_down_in_order(diary: Diary) -> None:
    with trio.CancelScope() as scope:
        async with Node.open():
            await Supervisor.start_link([child(diary, "a", server=Witness), child(diary, "b", server=Witness)])
            scope.cancel()
            await trio.sleep_forever()
    assert diary.events[2:] == ["stop b", "stop a"]


async def test_an_exception_of_the_block_comes_out_as_it_is(diary: Diary) -> None:
    async def failing() -> None:
        async with Node.open():
            await Witness.start(diary, "a")
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await failing()
    assert diary.events == ["init a", "stop a"]


async def test_what_does_not_end_in_time_is_killed_with_the_node(
    autojump_clock: trio.testing.MockClock, diary: Diary
) -> None:
    async with Node.open(shutdown=3.0):
        await Lingering.start(diary, "a", 1000.0)
        before = trio.current_time()
    assert diary.events == ["init a", "ending a"]
    assert trio.current_time() - before < 3.5
