"""Exit signals, links and monitors: cases 61 to 71."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from engine.otp import (
    KILL,
    KILLED,
    NOPROC,
    NORMAL,
    SHUTDOWN,
    TIMEOUT,
    UNIQUE,
    CallFailed,
    Crash,
    Down,
    Exit,
    ExitSignal,
    Node,
    NoProcess,
    Pid,
    Registry,
    Shutdown,
    Supervisor,
    TaskResult,
    TaskSupervisor,
    Via,
    async_,
    async_nolink,
    await_,
    cast,
    demonitor,
    exit,
    link,
    monitor,
    receive,
    self_,
    send,
    send_after,
    spawn,
    spawn_link,
    spawn_monitor,
    start_task,
    trap_exits,
    unlink,
    whereis,
)
from tests.engine.otp.servers import Diary, Inbox, Plain, boom, settle


@pytest.fixture
def diary() -> Diary:
    return Diary()


async def forever() -> None:
    await receive()


async def partner_of(pid: Pid, inbox: Inbox) -> Pid:
    """A trapping process linked to `pid`."""

    async def run() -> None:
        trap_exits()
        link(pid)
        await inbox.run()

    partner = await spawn(run)
    await settle()
    return partner


async def monitor_of(pid: Pid, inbox: Inbox, times: int = 1) -> Pid:
    async def run() -> None:
        for _ in range(times):
            monitor(pid)
        await inbox.run()

    watcher = await spawn(run)
    await settle()
    return watcher


async def test_case_61_names_are_free_when_the_down_arrives(node: Node) -> None:
    registry = Registry(UNIQUE, "names")
    await Supervisor.start_link([registry.spec()])
    stale: list[object] = []

    async def looking() -> None:
        for _ in range(300):
            pid, _ = await spawn_monitor(forever, name="here")
            send("here", "end")
            await receive()
            stale.append(whereis("here"))
            pid, _ = await spawn_monitor(forever, name=Via(registry, "there"))
            send(pid, "end")
            await receive()
            stale.extend([registry.whereis("there"), *registry.lookup("there"), *registry.keys(pid)])
            stale.append(None if registry.count() == 0 else registry.count())

    await spawn(looking)
    await settle()
    assert len(stale) == 900
    assert set(stale) == {None}


async def test_case_62_a_normal_exit_from_another_is_ignored_unless_trapping_and_ends_oneself(node: Node) -> None:
    plain, inbox = await spawn(forever), Inbox()
    trapping = await spawn(inbox.run)
    await settle()
    exit(plain, NORMAL)
    exit(trapping, NORMAL)
    await settle()
    assert plain.alive
    assert inbox.exits() == [NORMAL]

    async def suicidal() -> None:
        exit(self_(), NORMAL)
        raise AssertionError("lives on")

    watcher = Inbox()
    await monitor_of(await spawn(suicidal), watcher)
    assert [message.reason for message in watcher.messages] in ([NORMAL], [NOPROC])


@pytest.mark.parametrize(
    ("reason", "survives"), [(NORMAL, True), (SHUTDOWN, False), (Shutdown(1), False), ("crash", False)]
)
async def test_case_63_a_linked_partner_survives_only_a_normal_end(node: Node, reason: Any, survives: bool) -> None:
    async def ends() -> None:
        await receive()
        raise Exit(reason)

    async def partner(pid: Pid) -> None:
        link(pid)
        await receive()

    victim = await spawn(ends)
    linked, inbox = await spawn(partner, victim), Inbox()
    await monitor_of(linked, inbox)
    trapped = Inbox()
    trapping = await partner_of(victim, trapped)
    send(victim, "end")
    await settle()
    assert linked.alive is survives
    assert [message.reason for message in inbox.messages] == ([] if survives else [reason])
    assert trapping.alive
    assert trapped.messages == [ExitSignal(victim, reason)]


async def test_case_64_kill_cannot_be_trapped_and_partners_see_killed_which_can(node: Node) -> None:
    inbox = Inbox()
    victim = await spawn(Inbox().run)
    await settle()
    partner = await partner_of(victim, inbox)
    exit(victim, KILL)
    await settle()
    assert not victim.alive
    assert partner.alive
    assert inbox.messages == [ExitSignal(victim, KILLED)]


async def test_case_65_links_are_mutual_and_single_and_unlink_takes_a_waiting_exit_back(node: Node) -> None:
    inbox = Inbox()
    victim = await spawn(forever)

    async def run() -> None:
        trap_exits()
        link(victim)
        link(victim)
        exit(victim, "first")
        while victim.alive:
            await trio.lowlevel.checkpoint()
        unlink(victim)
        await inbox.run()

    partner = await spawn(run)
    await settle()
    assert not victim.alive
    assert partner.alive
    assert inbox.messages == []
    # mutual: the other way round the end of the linking one is felt too
    other = await spawn(forever)
    linked = await partner_of(other, Inbox())
    exit(linked, KILL)
    await settle()
    assert not other.alive


async def test_case_66_linking_a_dead_pid_is_an_exit_noproc(node: Node) -> None:
    dead = await spawn(forever)
    exit(dead, KILL)
    await settle()
    inbox = Inbox()
    await partner_of(dead, inbox)
    assert inbox.messages == [ExitSignal(dead, NOPROC)]

    async def careless() -> None:
        link(dead)

    watcher = Inbox()

    async def watch() -> None:
        trap_exits()
        await spawn_link(careless)
        await watcher.run()

    await spawn(watch)
    await settle()
    assert watcher.exits() == [NOPROC]


async def test_case_67_monitoring_a_dead_pid_is_a_down_noproc_at_once(node: Node) -> None:
    dead = await spawn(forever)
    exit(dead, KILL)
    await settle()
    inbox = Inbox()
    await monitor_of(dead, inbox)
    assert [(message.pid, message.reason) for message in inbox.messages] == [(dead, NOPROC)]


async def test_case_68_two_monitors_are_two_downs_and_kill_nobody(node: Node) -> None:
    victim, inbox = await spawn(forever), Inbox()
    watcher = await monitor_of(victim, inbox, times=2)
    exit(victim, "crash")
    await settle()
    assert [message.reason for message in inbox.messages] == ["crash", "crash"]
    assert len({message.ref for message in inbox.messages}) == 2
    assert watcher.alive
    bystander = await spawn(forever)
    exit(await monitor_of(bystander, Inbox()), KILL)
    await settle()
    assert bystander.alive


async def test_case_69_demonitor_with_flush_takes_a_waiting_down_back(node: Node) -> None:
    found: list[list[object]] = []

    async def run(flush: bool) -> None:
        victim, ref = await spawn_monitor(forever)
        exit(victim, KILL)
        while victim.alive:
            await trio.lowlevel.checkpoint()
        demonitor(ref, flush=flush)
        try:
            found.append([type(await receive(timeout=0))])
        except Exit:
            found.append([])

    for flush in (False, True):
        await spawn(run, flush)
        await settle()
    assert found == [[Down], []]


async def test_case_69_a_monitor_that_ended_before_says_nothing(node: Node) -> None:
    inbox = Inbox()

    async def run() -> None:
        victim, ref = await spawn_monitor(forever)
        demonitor(ref)
        exit(victim, KILL)
        await inbox.run()

    await spawn(run)
    await settle()
    assert inbox.messages == []


async def test_case_70_each_link_and_monitor_gets_exactly_one_notice(node: Node) -> None:
    victim = await spawn(forever)
    links, monitors = [Inbox() for _ in range(3)], [Inbox() for _ in range(3)]
    for inbox in links:
        await partner_of(victim, inbox)
    for inbox in monitors:
        await monitor_of(victim, inbox)
    exit(victim, "crash")
    exit(victim, KILL)
    await settle()
    assert [[message.reason for message in inbox.messages] for inbox in links + monitors] == [["crash"]] * 6


# --- tasks --------------------------------------------------------------------------------------------------


async def double(number: int) -> int:
    return 2 * number


async def failing() -> None:
    raise ValueError("task")


async def test_case_71_the_crash_of_an_unlinked_task_arrives_as_a_down_and_the_caller_lives(node: Node) -> None:
    node.on_report = lambda report: None
    await TaskSupervisor.start_link(name="tasks")
    inbox = Inbox()

    async def caller() -> None:
        await async_nolink("tasks", failing)
        await inbox.run()

    pid = await spawn(caller)
    await settle()
    assert pid.alive
    assert [type(message) for message in inbox.messages] == [Down]
    assert isinstance(inbox.messages[0].reason, Crash)


async def test_case_71_success_is_a_reply_and_a_down_normal_unless_awaited(node: Node) -> None:
    await TaskSupervisor.start_link(name="tasks")
    inbox, answers = Inbox(), []

    async def caller() -> None:
        await async_nolink("tasks", double, 21)
        while len(inbox.messages) < 2:
            inbox.messages.append(await receive())
        answers.append(await await_(await async_nolink("tasks", double, 4)))
        await inbox.run()

    await spawn(caller)
    await settle()
    result, down = inbox.messages
    assert result == TaskResult(down.ref, 42)
    assert down.reason is NORMAL
    assert answers == [8]


async def test_a_linked_task_takes_its_owner_with_it_and_is_awaited(node: Node) -> None:
    node.on_report = lambda report: None
    answers: list[object] = []

    async def owner() -> None:
        answers.append(await await_(await async_(double, 5)))
        await async_(failing)
        await receive()

    pid = await spawn(owner)
    await settle()
    assert answers == [10]
    assert not pid.alive


async def test_tasks_may_be_awaited_outside_of_processes_and_time_out(
    autojump_clock: trio.testing.MockClock, node: Node
) -> None:
    node.on_report = lambda report: None
    await TaskSupervisor.start_link(name="tasks")
    assert await await_(await async_nolink("tasks", double, 3)) == 6
    with pytest.raises(CallFailed) as caught:
        await await_(await async_nolink("tasks", failing))
    assert isinstance(caught.value.reason, Crash)
    with pytest.raises(CallFailed) as caught:
        await await_(await async_nolink("tasks", trio.sleep, 100), timeout=1)
    assert caught.value.reason is TIMEOUT


async def test_a_task_started_for_its_effect_alone(node: Node) -> None:
    await TaskSupervisor.start_link(name="tasks")
    done = trio.Event()

    async def work(number: int) -> None:
        assert number == 7
        done.set()

    await start_task("tasks", work, 7)
    with trio.fail_after(5):
        await done.wait()


# --- messages -----------------------------------------------------------------------------------------------


async def test_receive_takes_the_first_that_matches_and_leaves_the_others(node: Node) -> None:
    got: list[object] = []

    async def reader() -> None:
        got.append(await receive(lambda m: m == "b"))
        got.append(await receive())
        got.append(await receive())
        try:
            await receive(timeout=0.001)
        except Exit as expired:
            got.append(expired.reason)

    pid = await spawn(reader)
    for message in "abc":
        send(pid, message)
    await settle()
    await trio.sleep(0.01)
    assert got == ["b", "a", "c", TIMEOUT]


async def test_send_after_arrives_in_time_unless_it_is_cancelled(
    mock_clock: trio.testing.MockClock, node: Node
) -> None:
    inbox = Inbox()
    pid = await spawn(inbox.run)
    send_after(10, pid, "late")
    cancelled = send_after(5, pid, "never")
    assert cancelled.cancel() is True
    assert cancelled.cancel() is False
    mock_clock.jump(9)
    await settle()
    assert inbox.messages == []
    mock_clock.jump(2)
    await settle()
    assert inbox.messages == ["late"]


async def test_outside_of_processes_there_is_nobody_to_link_to(node: Node, diary: Diary) -> None:
    pid = await Plain.start(diary, "a")
    for act in (lambda: link(pid), lambda: monitor(pid), self_):
        with pytest.raises(NoProcess):
            act()


async def test_a_process_that_ends_takes_its_monitors_of_others_with_it(node: Node, diary: Diary) -> None:
    node.on_report = lambda report: None
    pid = await Plain.start(diary, "a")
    watcher = await monitor_of(pid, Inbox())
    process = node.peek(pid)
    assert process is not None
    assert len(process.watchers or ()) == 1
    exit(watcher, KILL)
    await settle()
    assert len(process.watchers or ()) == 0
    cast(pid, boom)
    await settle()


async def test_a_process_that_swallows_the_signal_and_returns_has_still_ended_of_it(node: Node) -> None:
    async def swallowing() -> None:
        try:
            await receive()
        except trio.Cancelled:
            return

    victim, inbox = await spawn(swallowing), Inbox()
    await monitor_of(victim, inbox)
    exit(victim, "signal")
    await settle()
    assert [message.reason for message in inbox.messages] == ["signal"]
