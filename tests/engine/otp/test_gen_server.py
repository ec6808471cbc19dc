"""GenServer: cases 72 to 91."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from engine.otp import (
    CALLING_SELF,
    HIBERNATE,
    KILL,
    KILLED,
    NOPROC,
    NORMAL,
    OVERLOADED,
    SHUTDOWN,
    TIMEOUT,
    BadReturn,
    CallFailed,
    CallFailure,
    Continue,
    Crash,
    Exit,
    From,
    GenServer,
    Node,
    NoReply,
    Ok,
    Pid,
    Reason,
    Reply,
    Shutdown,
    Stop,
    Throw,
    Timeout,
    call,
    cast,
    exit,
    get_state,
    introspect,
    monitor,
    receive,
    replace_state,
    reply,
    resume,
    self_,
    send,
    spawn,
    stop,
    suspend,
    trace_messages,
    whereis,
)
from engine.otp.reports import CrashReport
from tests.engine.otp.servers import Diary, Do, Get, Inbox, Plain, Witness, boom, settle


@pytest.fixture
def diary() -> Diary:
    return Diary()


@pytest.fixture
def crashes(node: Node) -> list[CrashReport]:
    """Crash reports of the test's node."""
    found: list[CrashReport] = []
    node.on_report = lambda report: found.append(report) if isinstance(report, CrashReport) else None
    return found


async def parent_of(server: type[Witness], diary: Diary) -> Pid:
    """A process that has started a server with the name of its class, and ends with the reason it is sent."""

    async def parent() -> None:
        await server.start_link(diary, "s", name="s")
        raise Exit(await receive())

    pid = await spawn(parent)
    await settle()
    diary.take()
    return pid


async def ended(pid: Pid, act: Any) -> Reason:
    """The reason with which `pid` ends after `act()`."""
    inbox = Inbox()

    async def watch() -> None:
        monitor(pid)
        await inbox.run()

    await spawn(watch)
    await settle()
    act()
    await settle()
    return inbox.messages[0].reason


async def test_case_72_without_trapping_the_end_of_the_parent_ends_it_without_terminate(
    node: Node, diary: Diary
) -> None:
    parent = await parent_of(Plain, diary)
    send(parent, SHUTDOWN)
    await settle()
    assert whereis("s") is None
    assert diary.events == []


async def test_case_73_trapping_it_handles_what_came_before_and_terminates_and_nothing_after(
    node: Node, diary: Diary
) -> None:
    parent = await parent_of(Witness, diary)
    server = whereis("s")
    assert server is not None
    cast(server, "one")
    cast(server, "two")
    process = node.peek(server)
    assert process is not None
    process.signal(parent, SHUTDOWN)
    cast(server, "three")
    await settle()
    assert diary.events == ["cast one", "cast two", "stop s"]


async def test_case_74_after_a_crash_terminate_gets_the_last_good_state_even_when_not_trapping(
    node: Node, diary: Diary, crashes: list[CrashReport]
) -> None:
    states: list[Any] = []

    class Keeping(Plain):
        async def terminate(self, reason: Reason, state: Any) -> None:
            assert isinstance(reason, Crash)
            states.append(state)

    pid = await Keeping.start(diary, "s", 1)
    cast(pid, lambda _: NoReply(2))
    cast(pid, boom)
    await settle()
    assert states == [2]
    assert len(crashes) == 1


async def test_case_75_exit_normal_in_a_callback_terminates_without_a_report(
    node: Node, diary: Diary, crashes: list[CrashReport]
) -> None:
    def leave(_: Any) -> Any:
        raise Exit(NORMAL)

    pid = await Plain.start(diary, "s")
    assert await ended(pid, lambda: cast(pid, leave)) is NORMAL
    assert diary.events == ["init s", "stop s"]
    assert crashes == []


async def test_case_76_a_crash_in_terminate_becomes_the_reason_and_is_reported(
    node: Node, diary: Diary, crashes: list[CrashReport]
) -> None:
    class Clumsy(Plain):
        async def terminate(self, reason: Reason, state: Any) -> None:
            raise ValueError("in terminate")

    pid = await Clumsy.start(diary, "s")
    reason = await ended(pid, lambda: cast(pid, lambda _: Stop(NORMAL)))
    assert isinstance(reason, Crash)
    assert str(reason.error) == "in terminate"
    assert [report.reason for report in crashes] == [reason]


async def test_case_77_a_call_to_nobody_is_noproc_and_a_cast_is_silent(node: Node, diary: Diary) -> None:
    pid = await Plain.start(diary, "s")
    await stop(pid)
    for address in (pid, "nobody"):
        with pytest.raises(CallFailed) as caught:
            await call(address, Get())
        assert caught.value.reason is NOPROC
        cast(address, "hello")
        send(address, "hello")


async def test_case_78_a_server_that_crashes_midway_fails_the_call_with_its_reason(
    node: Node, diary: Diary, crashes: list[CrashReport]
) -> None:
    pid = await Plain.start(diary, "s")
    with pytest.raises(CallFailed) as caught:
        await call(pid, Do(boom))
    assert isinstance(caught.value.reason, Crash)
    assert caught.value.server == pid
    assert isinstance(caught.value.request, Do)


async def test_case_78_a_process_that_does_not_catch_it_ends_with_reason_and_call(
    node: Node, diary: Diary, crashes: list[CrashReport]
) -> None:
    async def caller() -> None:
        await receive()
        await call("nobody", Get())

    pid = await spawn(caller)
    assert await ended(pid, lambda: send(pid, "go")) == CallFailure(NOPROC, "nobody", Get())


@pytest.mark.parametrize("reason", [NORMAL, SHUTDOWN, Shutdown("x")])
async def test_case_79_a_server_that_stops_without_an_answer_fails_the_call_even_normally(
    node: Node, diary: Diary, reason: Reason
) -> None:
    pid = await Plain.start(diary, "s")
    with pytest.raises(CallFailed) as caught:
        await call(pid, Do(lambda state: Stop(reason, state)))
    assert caught.value.reason == reason


async def test_case_80_the_answer_of_a_stop_goes_out_after_terminate(
    autojump_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    class Slow(Plain):
        async def terminate(self, reason: Reason, state: Any) -> None:
            await trio.sleep(0.04)
            await super().terminate(reason, state)

    pid = await Slow.start(diary, "s")
    before = trio.current_time()
    assert await call(pid, Do(lambda state: Stop(NORMAL, state, answer="bye"))) == "bye"
    assert trio.current_time() - before >= 0.04
    assert diary.events == ["init s", "stop s"]


class Patient(Witness):
    """Answers calls when it is told to."""

    async def handle_call(self, request: Any, caller: From, state: Any) -> Any:
        if isinstance(request, Get):
            return NoReply(caller)
        return await super().handle_call(request, caller, state)


async def test_case_81_a_timeout_ends_the_call_alone_and_the_late_reply_is_dropped(
    autojump_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    pid = await Patient.start(diary, "s", None)
    inbox = Inbox()

    async def caller() -> None:
        with pytest.raises(CallFailed) as caught:
            await call(pid, Get(), timeout=1)
        assert caught.value.reason is TIMEOUT
        late = await call(pid, Do(lambda state: state))
        reply(late, "too late")
        await inbox.run()

    caller_pid = await spawn(caller)
    await trio.sleep(5)
    assert pid.alive
    assert caller_pid.alive
    assert inbox.messages == []


async def test_case_82_a_call_to_oneself_fails_at_once(node: Node, diary: Diary) -> None:
    class Selfish(Plain):
        async def handle_call(self, request: Any, caller: From, state: Any) -> Any:
            with pytest.raises(CallFailed) as caught:
                await call(self_(), Get())
            return Reply(caught.value.reason, state)

    assert await call(await Selfish.start(diary, "s"), Get()) is CALLING_SELF


async def test_case_83_a_thrown_value_counts_as_the_return_and_a_bad_return_ends_it(
    node: Node, diary: Diary, crashes: list[CrashReport]
) -> None:
    def throw(state: Any) -> Any:
        raise Throw(Reply("thrown", state))

    pid = await Plain.start(diary, "s")
    assert await call(pid, Do(throw)) == "thrown"

    class Wrong(Plain):
        async def handle_cast(self, message: Any, state: Any) -> Any:
            return "what?"

    wrong = await Wrong.start(diary, "w")
    assert await ended(wrong, lambda: cast(wrong, "x")) == BadReturn("what?")
    assert diary.events[-1] == "stop w"


async def test_case_84_continue_runs_before_everything_queued_and_after_the_acknowledgement(node: Node) -> None:
    events: list[str] = []

    class Continuing(GenServer[int]):
        async def init(self) -> Ok[int]:
            send(self_(), "from init")
            return Ok(0, Continue("first"))

        async def handle_continue(self, message: Any, state: int) -> NoReply[int]:
            events.append(f"continue {message}")
            return NoReply(state + 1, Continue("second") if state == 0 else None)

        async def handle_info(self, message: Any, state: int) -> NoReply[int]:
            events.append(f"info {message}")
            return NoReply(state)

        async def handle_call(self, request: Any, caller: From, state: int) -> Reply[int]:
            return Reply(state, state)

    pid = await Continuing.start()
    events.append("started")
    assert await call(pid, Get()) == 2
    assert "started" in events
    assert [e for e in events if e != "started"] == ["continue first", "continue second", "info from init"]


async def test_case_85_a_timeout_arrives_as_info_unless_a_message_comes_first(
    mock_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    pid = await Plain.start(diary, "s")
    diary.take()
    cast(pid, lambda state: NoReply(state, Timeout(5)))
    await settle()
    mock_clock.jump(4.9)
    cast(pid, "message")
    await settle()
    mock_clock.jump(10)
    await settle()
    assert diary.take() == ["cast message"]
    cast(pid, lambda state: NoReply(state, Timeout(5)))
    await settle()
    mock_clock.jump(5.1)
    await settle()
    mock_clock.jump(50)
    await settle()
    assert diary.take() == ["info TIMEOUT"]


async def test_case_86_stop_waits_and_fails_for_the_dead_and_for_another_reason(node: Node, diary: Diary) -> None:
    class Contrary(Plain):
        async def terminate(self, reason: Reason, state: Any) -> None:
            raise Exit("contrary")

    pid = await Plain.start(diary, "s")
    await stop(pid)
    assert diary.events == ["init s", "stop s"]
    with pytest.raises(CallFailed) as caught:
        await stop(pid)
    assert caught.value.reason is NOPROC
    with pytest.raises(CallFailed) as caught:
        await stop(await Contrary.start(diary, "c"))
    assert caught.value.reason == "contrary"
    await stop(await Plain.start(diary, "x"), SHUTDOWN)


async def test_case_87_an_error_carries_its_traceback_and_an_exit_does_not(
    node: Node, diary: Diary, crashes: list[CrashReport]
) -> None:
    def leave(_: Any) -> Any:
        raise Exit("plain reason")

    first, second = await Plain.start(diary, "a"), await Plain.start(diary, "b")
    crash = await ended(first, lambda: cast(first, boom))
    assert isinstance(crash, Crash)
    assert "in boom" in crash.stack
    assert crash.stack.rstrip().endswith("ValueError: boom")
    assert crash.error.__traceback__ is None
    assert await ended(second, lambda: cast(second, leave)) == "plain reason"


async def test_case_88_messages_of_one_sender_keep_their_order(node: Node, diary: Diary) -> None:
    pid = await Plain.start(diary, "s")
    for number in range(200):
        (cast if number % 2 else send)(pid, number)
    await settle()
    assert [event.split()[1] for event in diary.events[1:]] == [str(number) for number in range(200)]


async def test_case_89_another_process_may_answer_and_a_second_answer_leaks_nowhere(node: Node, diary: Diary) -> None:
    pid, inbox, answers = await Patient.start(diary, "s", None), Inbox(), []

    async def caller() -> None:
        answers.append(await call(pid, Get()))
        await inbox.run()

    async def answering() -> None:
        waiting = await call(pid, Do(lambda state: state))
        reply(waiting, "first")
        reply(waiting, "second")

    await spawn(caller)
    await settle()
    await spawn(answering)
    await settle()
    assert answers == ["first"]
    assert inbox.messages == []


async def test_case_90_after_hibernation_the_state_is_kept_and_the_next_message_handled(
    node: Node, diary: Diary
) -> None:
    pid = await Plain.start(diary, "s", 7)
    cast(pid, lambda state: NoReply(state + 1, HIBERNATE))
    await settle()
    shown = introspect.info(pid)
    assert shown is not None
    assert shown.status == "hibernated"
    assert await call(pid, Get()) == 8


async def test_case_90_hibernate_after_puts_an_idle_server_to_sleep(
    mock_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    class Drowsy(Plain):
        hibernate_after = 10.0

    pid = await Drowsy.start(diary, "s", 7)
    asleep = []
    for _ in range(3):
        await settle()
        mock_clock.jump(10.1)
        await settle()
        asleep.append(pid in node.dormitory)
        if len(asleep) == 1:
            cast(pid, "still busy")
    assert asleep == [False, False, True]
    assert await call(pid, Get()) == 7


async def test_case_91_system_messages_read_replace_suspend_and_resume(node: Node, diary: Diary) -> None:
    pid = await Plain.start(diary, "s", 1)
    assert await get_state(pid) == 1
    assert await replace_state(pid, lambda state: state + 41) == 42
    with pytest.raises(ZeroDivisionError):
        await replace_state(pid, lambda state: state / 0)
    await suspend(pid)
    diary.take()
    cast(pid, "waits")
    send(pid, "waits too")
    await settle()
    assert diary.events == []
    assert await get_state(pid) == 42
    await resume(pid)
    await settle()
    assert diary.events == ["cast waits", "info waits too"]


async def test_case_91_a_suspended_server_still_ends_with_its_parent(node: Node, diary: Diary) -> None:
    parent = await parent_of(Witness, diary)
    await suspend("s")
    send(parent, SHUTDOWN)
    await settle()
    assert diary.events == ["stop s"]
    pid = await Witness.start(diary, "t")
    await suspend(pid)
    await stop(pid)
    assert diary.events[-1] == "stop t"


async def test_case_91_trace_shows_what_goes_through_a_server(node: Node, diary: Diary) -> None:
    seen: list[object] = []
    pid = await Plain.start(diary, "s", 1)
    await trace_messages(pid, seen.append)
    cast(pid, "x")
    assert await call(pid, Get()) == 1
    await trace_messages(pid, None)
    cast(pid, "y")
    await settle()
    assert [type(event).__name__ for event in seen] == ["Handled", "Handled"]
    assert [event.message for event in seen] == ["x", Get()]  # type: ignore[attr-defined]


# --- beyond the list ------------------------------------------------------------------------------------------


async def test_a_bounded_mailbox_refuses_calls_and_drops_casts_but_takes_signals(node: Node, diary: Diary) -> None:
    pid = await Witness.start(diary, "s", max_mailbox=3)
    await suspend(pid)
    for number in range(5):
        cast(pid, number)
    await settle()
    with pytest.raises(CallFailed) as caught:
        await call(pid, Get())
    assert caught.value.reason is OVERLOADED
    shown = introspect.info(pid)
    assert shown is not None
    assert (shown.mailbox, shown.refused) == (3, 3)
    await resume(pid)
    await settle()
    exit(pid, KILL)
    await settle()
    assert not pid.alive


async def test_a_crash_of_a_caller_leaves_nothing_at_the_server(node: Node, diary: Diary) -> None:
    pid = await Patient.start(diary, "s", None)

    async def caller() -> None:
        await call(pid, Get())

    caller_pid = await spawn(caller)
    await settle()
    process = node.peek(pid)
    assert process is not None
    assert len(process.watchers or ()) == 1
    exit(caller_pid, KILL)
    await settle()
    assert len(process.watchers or ()) == 0


async def test_a_long_backlog_does_not_keep_others_from_running(node: Node, diary: Diary) -> None:
    turns: list[str] = []

    def work(state: Any) -> Any:
        deadline = trio.lowlevel.current_clock().current_time() + 0.0005
        while trio.lowlevel.current_clock().current_time() < deadline:
            pass
        turns.append("work")
        return NoReply(state)

    pid = await Plain.start(diary, "s")
    for _ in range(60):
        cast(pid, work)
    for _ in range(5):
        await trio.lowlevel.checkpoint()
        turns.append("other")
    assert turns.count("work") < 60


async def test_a_kill_ends_a_server_in_the_middle_of_terminate(
    autojump_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    class Endless(Plain):
        async def terminate(self, reason: Reason, state: Any) -> None:
            await trio.sleep_forever()

    pid = await Endless.start(diary, "s")
    cast(pid, lambda _: Stop(NORMAL))
    await settle()
    assert await ended(pid, lambda: exit(pid, KILL)) is KILLED


async def test_an_exception_group_with_one_leaf_is_that_leaf(
    node: Node, diary: Diary, crashes: list[CrashReport]
) -> None:
    class Nursing(Plain):
        async def handle_cast(self, message: Any, state: Any) -> Any:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                raise KeyError("leaf")

    pid = await Nursing.start(diary, "s")
    reason = await ended(pid, lambda: cast(pid, "go"))
    assert isinstance(reason, Crash)
    assert isinstance(reason.error, KeyError)
