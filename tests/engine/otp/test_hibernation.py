"""Hibernation: a sleeper keeps everything that others have of it, and wakes for whatever concerns it."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from engine.otp import (
    HIBERNATE,
    KILL,
    KILLED,
    NOPROC,
    NORMAL,
    PERMANENT,
    UNIQUE,
    CallFailed,
    ChildSpec,
    DynamicSupervisor,
    ExitSignal,
    Node,
    NoReply,
    Ok,
    Pid,
    Registry,
    Start,
    Supervisor,
    Timeout,
    Via,
    call,
    cast,
    count_children,
    exit,
    introspect,
    link,
    monitor,
    processes,
    receive,
    send,
    spawn,
    start_child,
    terminate_child,
    trace,
    unlink,
    whereis,
)
from tests.engine.otp.servers import Diary, Get, Inbox, Plain, Witness, boom, settle


@pytest.fixture
def diary() -> Diary:
    return Diary()


def rest(state: Any) -> NoReply[Any]:
    return NoReply(state, HIBERNATE)


async def asleep(node: Node, pid: Pid) -> Pid:
    """Has a witness hibernate."""
    cast(pid, rest)
    await settle()
    assert pid in node.dormitory
    return pid


async def test_a_sleeper_has_no_task_and_keeps_its_pid_names_state_and_counts(node: Node, diary: Diary) -> None:
    registry = Registry(UNIQUE, "names")
    await Supervisor.start_link([registry.spec()])
    pid = await Plain.start(diary, "a", {"n": 1}, names=("a", Via(registry, "b")))
    await call(pid, Get())
    before = introspect.info(pid)
    await asleep(node, pid)
    after = introspect.info(pid)
    assert before is not None
    assert after is not None
    assert pid not in node.table
    assert (pid.alive, whereis("a"), registry.whereis("b")) == (True, pid, pid)
    assert pid in processes()
    assert (after.status, after.names, after.state) == ("hibernated", before.names, before.state)
    assert after.handled == before.handled + 1
    assert after.started_at == pytest.approx(before.started_at, abs=0.01)
    assert await call("a", Get()) == {"n": 1}
    assert registry.keys(pid) == ["b"]


async def test_every_kind_of_message_wakes_it(node: Node, diary: Diary) -> None:
    pid = await Plain.start(diary, "a")
    diary.take()
    for act in (lambda: cast(pid, "x"), lambda: send(pid, "x")):
        await asleep(node, pid)
        act()
        await settle()
        assert pid in node.table
    assert diary.take() == ["cast x", "info x"]


async def test_links_and_monitors_made_before_hold_while_it_sleeps(node: Node, diary: Diary) -> None:
    pid = await Plain.start(diary, "a")
    inbox = Inbox()

    async def friend() -> None:
        link(pid)
        monitor(pid)
        await inbox.run()

    friend_pid = await spawn(friend, trap_exit=True)
    await settle()
    await asleep(node, pid)
    assert inbox.messages == []
    exit(pid, "poked")
    await settle()
    assert [type(message).__name__ for message in inbox.messages] == ["ExitSignal", "Down"]
    assert {message.reason for message in inbox.messages} == {"poked"}
    assert friend_pid.alive


async def test_a_link_or_monitor_made_while_it_sleeps_wakes_it_only_for_a_moment(node: Node, diary: Diary) -> None:
    pid = await asleep(node, await Plain.start(diary, "a"))
    inbox = Inbox()

    async def friend() -> None:
        monitor(pid)
        link(pid)
        await inbox.run()

    friend_pid = await spawn(friend, trap_exit=True)
    await settle()
    assert pid in node.dormitory
    exit(friend_pid, KILL)
    await settle()
    assert not pid.alive


async def test_a_monitor_of_its_own_reaches_a_sleeper(node: Node, diary: Diary) -> None:
    other = await spawn(receive)

    def watch(state: Any) -> NoReply[Any]:
        monitor(other)
        return NoReply(state, HIBERNATE)

    pid = await Plain.start(diary, "a")
    cast(pid, watch)
    await settle()
    assert pid in node.dormitory
    exit(other, KILL)
    await settle()
    assert diary.events[-1].startswith("info Down")


async def test_a_trapping_sleeper_gets_its_exit_signals_and_a_plain_one_ends_without_waking(
    node: Node, diary: Diary
) -> None:
    events: list[Any] = []
    trapping = await asleep(node, await Witness.start(diary, "t"))
    plain = await asleep(node, await Plain.start(diary, "p", name="p"))
    trace.attach(events.append, [trace.Revived, trace.Exited])
    exit(trapping, "reason")
    exit(plain, NORMAL)
    await settle()
    assert diary.events[-1].startswith("info ExitSignal")
    assert plain.alive
    events.clear()
    exit(plain, "reason")
    assert not plain.alive
    assert whereis("p") is None
    assert [type(event).__name__ for event in events] == ["Exited"]


async def test_kill_ends_a_sleeper_and_its_partners_see_killed(node: Node, diary: Diary) -> None:
    pid = await Witness.start(diary, "a")
    inbox = Inbox()

    async def friend() -> None:
        link(pid)
        await inbox.run()

    await spawn(friend, trap_exit=True)
    await settle()
    await asleep(node, pid)
    exit(pid, KILL)
    await settle()
    assert inbox.messages == [ExitSignal(pid, KILLED)]
    assert "stop a" not in diary.events


async def test_a_sleeper_that_unlinked_itself_survives_its_supervisor(node: Node, diary: Diary) -> None:
    sup = await DynamicSupervisor.start_link()

    def leave(state: Any) -> NoReply[Any]:
        unlink(sup)
        return NoReply(state, HIBERNATE)

    stays, goes = [await start_child(sup, ChildSpec(id, Start.server(Plain, diary, id))) for id in "ab"]
    cast(stays, leave)
    cast(goes, rest)
    await settle()
    exit(sup, KILL)
    await settle()
    await trio.sleep(0.01)
    await settle()
    assert (stays.alive, goes.alive) == (True, False)


async def test_a_crash_after_waking_is_restarted_by_the_supervisor(node: Node, diary: Diary) -> None:
    node.on_report = lambda report: None
    sup = await DynamicSupervisor.start_link()
    pid = await start_child(sup, ChildSpec("a", Start.server(Plain, diary, "a", name="a"), PERMANENT))
    await asleep(node, pid)
    cast(pid, boom)
    await settle()
    assert diary.events == ["init a", "stop a", "init a"]
    assert whereis("a") not in (None, pid)


async def test_supervisors_end_sleeping_children_one_by_one_and_all_together(node: Node, diary: Diary) -> None:
    outer = await Supervisor.start_link([DynamicSupervisor.spec(name="many")])
    pids = [await start_child("many", ChildSpec(n, Start.server(Plain, diary, str(n)))) for n in range(20)]
    for pid in pids:
        await asleep(node, pid)
    await terminate_child("many", pids[0])
    assert not pids[0].alive
    assert (await count_children("many")).active == 19
    await terminate_child(outer, "many")
    assert not any(pid.alive for pid in pids)
    assert len(node.dormitory) == 0
    with pytest.raises(CallFailed) as caught:
        await call(pids[3], Get())
    assert caught.value.reason is NOPROC


class Packed(Plain):
    """Keeps its state as bytes while it sleeps, and has no attributes of its own."""

    async def init(self, number: int) -> Ok[int]:  # type: ignore[override]
        return Ok(number)

    async def terminate(self, reason: Any, state: Any) -> None:
        pass

    def pack(self, state: int) -> bytes:
        return str(state).encode()

    def unpack(self, packed: bytes) -> int:
        return int(packed)


async def test_the_state_is_packed_and_the_record_is_flat(node: Node) -> None:
    import gc

    registry = Registry(UNIQUE, "names")
    await Supervisor.start_link([registry.spec()])
    sup = await DynamicSupervisor.start_link()
    pid = await start_child(sup, ChildSpec("a", Start.server(Packed, 41, name=Via(registry, "a"))))
    await asleep(node, pid)
    gc.collect()
    record = node.dormitory._asleep[pid]
    assert not gc.is_tracked(record)
    assert b"41" in record
    assert await call(Via(registry, "a"), Get()) == 41


async def test_attributes_of_a_server_survive_its_sleep(node: Node, diary: Diary) -> None:
    pid = await asleep(node, await Plain.start(diary, "a"))
    cast(pid, "hello")
    await settle()
    assert diary.events == ["init a", "cast hello"]


async def test_a_message_that_comes_while_it_falls_asleep_is_not_lost(node: Node, diary: Diary) -> None:
    pid = await Plain.start(diary, "a")
    for number in range(100):
        cast(pid, rest)
        cast(pid, number)
        if number % 3 == 0:
            await trio.lowlevel.checkpoint()
    await settle()
    assert diary.events[1:] == [f"cast {number}" for number in range(100)]


async def test_trace_tells_of_falling_asleep_and_waking(node: Node, diary: Diary) -> None:
    events: list[Any] = []
    pid = await Plain.start(diary, "a")
    trace.attach(events.append, [trace.Hibernated, trace.Revived])
    await asleep(node, pid)
    await call(pid, Get())
    assert events == [trace.Hibernated(pid, "Plain"), trace.Revived(pid, "Plain")]


async def test_a_node_with_sleepers_closes_and_lets_the_trapping_ones_terminate(diary: Diary) -> None:
    async with Node.open() as node:
        await asleep(node, await Plain.start(diary, "p"))
        await asleep(node, await Witness.start(diary, "t"))
    assert diary.events == ["init p", "init t", "stop t"]


async def test_a_signal_that_comes_in_the_step_in_which_it_falls_asleep_is_not_lost(node: Node, diary: Diary) -> None:
    def end_and_rest(state: Any) -> NoReply[Any]:
        process = node.peek(pid)
        assert process is not None
        process.signal(None, "now")
        return rest(state)

    pid = await Plain.start(diary, "a")
    cast(pid, end_and_rest)
    await settle()
    assert not pid.alive


async def test_a_server_that_waits_for_a_timeout_is_not_put_to_sleep(
    mock_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    class Drowsy(Plain):
        hibernate_after = 10.0

    pid = await Drowsy.start(diary, "s")
    cast(pid, lambda state: NoReply(state, Timeout(35)))
    for _ in range(3):
        await settle()
        mock_clock.jump(10.1)
        await settle()
        assert pid in node.table
    mock_clock.jump(10)
    await settle()
    assert diary.events[-1] == "info TIMEOUT"


async def test_a_plain_process_is_never_sent_to_sleep(node: Node) -> None:
    inbox = Inbox()
    pid = await spawn(inbox.run)
    await settle()
    node.table[pid].hibernate()
    await settle()
    assert inbox.messages == []
