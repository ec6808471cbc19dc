"""Dynamic supervisors and partitions: cases 55 to 60."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from engine.otp import (
    BRUTAL_KILL,
    KILL,
    KILLED,
    MAX_CHILDREN,
    NOT_FOUND,
    PERMANENT,
    RESTARTING,
    TEMPORARY,
    TRANSIENT,
    Backoff,
    CallFailed,
    ChildError,
    ChildSpec,
    Counts,
    DynamicSupervisor,
    Ignored,
    InvalidSpec,
    Node,
    Partitions,
    Pid,
    Start,
    StartFailed,
    Stop,
    Supervisor,
    call,
    cast,
    count_children,
    exit,
    processes,
    resume,
    start_child,
    suspend,
    terminate_child,
    trace_messages,
    whereis,
    which_children,
)
from engine.otp.reports import SupervisorReport
from engine.otp.start import IGNORE
from tests.engine.otp.servers import Diary, Get, Plain, Witness, boom, child, gone, settle


@pytest.fixture
def diary() -> Diary:
    return Diary()


@pytest.fixture
async def sup(node: Node) -> Pid:
    return await DynamicSupervisor.start_link()


def nameless(diary: Diary, id: str, restart: Any = PERMANENT, server: Any = Plain, **options: Any) -> ChildSpec:
    return ChildSpec(id, Start.server(server, diary, id), restart, **options)


async def test_case_55_the_same_spec_twice_is_two_children_known_by_pid(sup: Pid, diary: Diary) -> None:
    spec = nameless(diary, "a")
    first, second = await start_child(sup, spec), await start_child(sup, spec)
    await terminate_child(sup, first)
    assert (first.alive, second.alive) == (False, True)
    with pytest.raises(ChildError) as caught:
        await terminate_child(sup, first)
    assert caught.value.reason is NOT_FOUND


async def test_case_56_max_children_refuses_without_starting_and_counts_those_being_restarted(
    mock_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    sup = await DynamicSupervisor.start_link(max_children=1)
    pid = await start_child(sup, nameless(diary, "a", backoff=Backoff(initial=10, jitter=0)))
    diary.take()
    for restarting in (False, True):
        with pytest.raises(StartFailed) as caught:
            await start_child(sup, nameless(diary, "b"))
        assert caught.value.reason is MAX_CHILDREN
        if not restarting:
            exit(pid, KILL)
            await settle()
            assert [info.pid for info in await which_children(sup)] == [RESTARTING]
    assert diary.events == []


async def test_case_56_children_that_are_still_starting_count_too(
    autojump_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    class Slow(Witness):
        async def init(self, diary: Diary, id: str, state: Any = 0) -> Any:
            await trio.sleep(1)
            return await super().init(diary, id)

    sup = await DynamicSupervisor.start_link(max_children=2)
    outcomes: list[object] = []

    async def starting(id: str) -> None:
        try:
            outcomes.append((await start_child(sup, nameless(diary, id, server=Slow))).alive)
        except StartFailed as failure:
            outcomes.append(failure.reason)

    before = trio.current_time()
    async with trio.open_nursery() as nursery:
        for id in "abc":
            nursery.start_soon(starting, id)
    assert sorted(map(str, outcomes)) == ["MAX_CHILDREN", "True", "True"]
    assert trio.current_time() - before < 1.5


async def ignoring() -> object:
    return IGNORE


async def test_case_57_ignore_or_a_failed_init_keeps_no_entry(sup: Pid, diary: Diary) -> None:
    with pytest.raises(Ignored):
        await start_child(sup, ChildSpec("i", Start.calling(ignoring)))
    diary.faults["a"] = 1
    with pytest.raises(StartFailed) as caught:
        await start_child(sup, nameless(diary, "a"))
    assert caught.value.reason == "no a"
    assert await count_children(sup) == Counts(0, 0, 0, 0)


async def test_case_58_extra_arguments_go_before_the_childs_own_also_on_restarts(node: Node, diary: Diary) -> None:
    sup = await DynamicSupervisor.start_link(extra_arguments=(diary,))
    pid = await start_child(sup, ChildSpec("a", Start.server(Plain, "a", name="a")))
    exit(pid, KILL)
    await settle()
    assert diary.events == ["init a", "init a"]


class Lingering(Witness):
    async def terminate(self, reason: Any, state: Any) -> None:
        await trio.sleep(0.1)
        await super().terminate(reason, state)


async def test_case_59_children_end_in_parallel_each_within_its_own_time(
    autojump_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    reports: list[Any] = []
    node.on_report = reports.append
    outer = await Supervisor.start_link([DynamicSupervisor.spec(name="dyn")])
    for id in "abcde":
        await start_child("dyn", nameless(diary, id, server=Lingering))
    await start_child("dyn", nameless(diary, "late", server=Lingering, shutdown=0.05))
    await start_child("dyn", nameless(diary, "brute", server=Lingering, shutdown=BRUTAL_KILL))
    before = trio.current_time()
    await terminate_child(outer, "dyn")
    assert 0.1 <= trio.current_time() - before < 0.25
    assert sorted(e for e in diary.events if e.startswith("stop")) == [f"stop {id}" for id in "abcde"]
    assert [r.child for r in reports if isinstance(r, SupervisorReport) and r.what == "shutdown_error"] == ["late"]


async def test_case_60_a_partition_supervisor_routes_by_key(node: Node, diary: Diary) -> None:
    partitions = Partitions("parts", 3)
    spec = ChildSpec("part", Start.server(Plain, diary))
    await Supervisor.start_link([partitions.spec(spec, arguments=lambda args, n: (*args, str(n), n))])
    assert [await call(partitions.via(n), Get()) for n in (0, 1, 2, 3, 4, -1, -5)] == [0, 1, 2, 0, 1, 1, 2]
    assert await call(partitions.via("alice"), Get()) == await call(partitions.via("alice"), Get())
    assert partitions.number(("any", "key")) in range(3)
    with pytest.raises(InvalidSpec):
        Partitions("none", 0)


async def test_case_60_a_restarted_partition_is_found_again(node: Node, diary: Diary) -> None:
    partitions = Partitions("parts", 2)
    spec = ChildSpec("part", Start.server(Plain, diary))
    await Supervisor.start_link([partitions.spec(spec, arguments=lambda args, n: (*args, str(n), n))])
    old = partitions.resolve(1)
    assert old is not None
    exit(old, KILL)
    await gone(old)
    await settle()
    assert await call(partitions.via(1), Get()) == 1
    assert partitions.resolve(1) != old


# --- restarts -----------------------------------------------------------------------------------------------


async def test_restart_types_are_those_of_a_supervisor(sup: Pid, diary: Diary) -> None:
    for id, restart in (("p", PERMANENT), ("t", TRANSIENT), ("x", TEMPORARY)):
        await start_child(sup, child(diary, id, restart))
    diary.take()
    for name in "ptx":
        cast(name, lambda _: Stop())
        await settle()
    assert diary.take() == ["stop p", "init p", "stop t", "stop x"]
    for id, restart in (("t", TRANSIENT), ("x", TEMPORARY)):
        await start_child(sup, child(diary, id, restart))
    diary.take()
    for name in "tx":
        cast(name, boom)
        await settle()
    assert diary.take() == ["stop t", "init t", "stop x"]
    assert (await count_children(sup)).specs == 2


async def test_a_child_that_is_being_retried_can_be_terminated_by_its_old_pid(
    mock_clock: trio.testing.MockClock, sup: Pid, diary: Diary
) -> None:
    pid = await start_child(sup, nameless(diary, "a", backoff=Backoff(initial=10, jitter=0)))
    exit(pid, KILL)
    await settle()
    await terminate_child(sup, pid)
    mock_clock.jump(60)
    await settle()
    assert diary.events == ["init a"]
    assert await count_children(sup) == Counts(0, 0, 0, 0)


async def test_a_child_that_dies_while_it_is_terminated_is_not_restarted(sup: Pid, diary: Diary) -> None:
    pid = await start_child(sup, child(diary, "a"))
    exit(pid, KILL)
    await terminate_child(sup, pid)
    await settle()
    assert whereis("a") is None
    assert sup.alive


async def test_supervisors_below_count_as_such(sup: Pid) -> None:
    pid = await start_child(sup, Supervisor.spec([], id="below"))
    assert await count_children(sup) == Counts(1, 1, 1, 0)
    await terminate_child(sup, pid)
    assert await count_children(sup) == Counts(0, 0, 0, 0)


async def test_a_restart_under_way_ends_when_its_child_is_terminated(
    autojump_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    class SlowTheSecondTime(Witness):
        async def init(self, diary: Diary, id: str, state: Any = 0) -> Any:
            if diary.events:
                await trio.sleep(5)
            return await super().init(diary, id)

    sup = await DynamicSupervisor.start_link()
    pid = await start_child(sup, nameless(diary, "a", server=SlowTheSecondTime))
    exit(pid, KILL)
    await trio.sleep(1)
    assert len(list(processes())) == 2
    await terminate_child(sup, pid)
    await trio.sleep(10)
    assert diary.events == ["init a"]
    assert list(processes()) == [sup]


# --- a start in the caller's turn -------------------------------------------------------------------------


async def test_a_suspended_supervisor_starts_nothing_until_it_is_resumed(sup: Pid, diary: Diary) -> None:
    await suspend(sup)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(start_child, sup, nameless(diary, "a"))
        await settle()
        assert diary.events == []
        await resume(sup)
    assert diary.events == ["init a"]


async def test_a_traced_supervisor_shows_each_start(sup: Pid, diary: Diary) -> None:
    shown: list[object] = []
    await trace_messages(sup, lambda handled: shown.append(type(handled.message).__name__))
    await start_child(sup, nameless(diary, "a"))
    await trace_messages(sup, None)
    await start_child(sup, nameless(diary, "b"))
    assert (shown, diary.events) == (["StartChild"], ["init a", "init b"])


async def test_a_caller_hears_when_the_supervisor_ends_under_its_start(sup: Pid, diary: Diary) -> None:
    class Stuck(Plain):
        async def init(self, *args: Any) -> Any:
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:

        async def starting() -> None:
            with pytest.raises(CallFailed) as failed:
                await start_child(sup, nameless(diary, "a", server=Stuck))
            assert failed.value.reason is KILLED

        nursery.start_soon(starting)
        await settle()
        exit(sup, KILL)
