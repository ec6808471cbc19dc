"""Starting: cases 9 to 16."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from engine.otp import (
    KILL,
    NORMAL,
    PERMANENT,
    TIMEOUT,
    AlreadyStarted,
    BadReturn,
    ChildSpec,
    Crash,
    ExitSignal,
    FailedToStartChild,
    GenServer,
    Ignored,
    Node,
    Ok,
    Plan,
    Shutdown,
    Start,
    StartFailed,
    Stop,
    Supervisor,
    call,
    exit,
    processes,
    spawn,
    spawn_link,
    start_child,
    trap_exits,
    whereis,
    which_children,
)
from engine.otp.start import IGNORE
from tests.engine.otp.servers import Diary, Get, Inbox, Plain, Witness, child, settle


@pytest.fixture
def diary() -> Diary:
    return Diary()


class Slow(Witness):
    """Takes its time in `init`."""

    async def init(self, diary: Diary, id: str, seconds: float = 1.0) -> Any:
        diary.note(f"begin {id}")
        await trio.sleep(seconds)
        return await super().init(diary, id)


async def test_case_09_children_start_in_order_each_after_the_init_of_the_one_before(
    autojump_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    await Supervisor.start_link([child(diary, "a", server=Slow), child(diary, "b", server=Slow)])
    assert diary.events == ["begin a", "init a", "begin b", "init b"]


async def test_case_10_when_the_third_fails_the_started_ones_end_in_reverse_order(node: Node, diary: Diary) -> None:
    diary.faults["c"] = 1
    specs = [child(diary, id, server=Witness) for id in "abcd"]
    with pytest.raises(StartFailed) as caught:
        await Supervisor.start_link(specs)
    assert caught.value.reason == Shutdown(FailedToStartChild("c", "no c"))
    assert diary.events == ["init a", "init b", "init c failed", "stop b", "stop a"]
    assert list(processes()) == []


async def test_case_11_start_link_returns_when_all_children_are_up(
    autojump_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    await Supervisor.start_link([child(diary, "a", server=Slow), child(diary, "b")])
    assert diary.events[-1] == "init b"
    assert await call("b", Get()) == 0


async def test_case_12_a_supervisor_may_be_ignored_and_a_bad_plan_is_a_bad_return(node: Node, diary: Diary) -> None:
    with pytest.raises(Ignored):
        await Supervisor.start_link(lambda: IGNORE)
    with pytest.raises(StartFailed) as caught:
        await Supervisor.start_link(lambda: "what?")
    assert caught.value.reason == BadReturn("what?")
    planned = await Supervisor.start_link(lambda: Plan((child(diary, "a"),)))
    assert [info.id for info in await which_children(planned)] == ["a"]


async def test_case_13_an_init_slower_than_its_timeout_is_killed_and_leaves_no_message(
    autojump_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    reasons: list[Any] = []
    inbox = Inbox()

    async def starter() -> None:
        trap_exits()
        try:
            await Slow.start_link(diary, "slow", 10.0, name="slow", timeout=1.0)
        except StartFailed as failure:
            reasons.append(failure.reason)
        await inbox.run()

    await spawn(starter)
    await trio.sleep(20)
    assert reasons == [TIMEOUT]
    assert diary.events == ["begin slow"]
    assert whereis("slow") is None
    assert inbox.messages == []


async def test_case_13_a_starter_that_is_cancelled_leaves_no_half_started_process(
    autojump_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    with trio.move_on_after(1):
        await Slow.start(diary, "slow", 10.0, name="slow")
    assert list(processes()) == []


async def test_case_14_a_failed_init_has_freed_its_name_before_the_starter_hears_of_it(
    node: Node, diary: Diary
) -> None:
    diary.faults["a"] = 100
    for _ in range(100):
        with pytest.raises(StartFailed) as caught:
            await Plain.start(diary, "a", name="a")
        assert caught.value.reason == "no a"
    assert await call(await Plain.start(diary, "a", name="a"), Get()) == 0


class Crashing(Witness):
    async def init(self, diary: Diary, id: str, state: Any = 0) -> Any:
        self.diary, self.id = diary, id
        raise ValueError("not today")


async def test_case_15_a_failed_init_does_not_terminate_and_a_linked_trapping_starter_gets_the_exit(
    node: Node, diary: Diary
) -> None:
    inbox = Inbox()

    async def starter() -> None:
        trap_exits()
        for server in (Crashing, Plain):
            diary.faults["x"] = 1
            with pytest.raises(StartFailed):
                await server.start_link(diary, "x")
        await inbox.run()

    await spawn(starter)
    await settle()
    assert [type(message) for message in inbox.messages] == [ExitSignal, ExitSignal]
    assert isinstance(inbox.exits()[0], Crash)
    assert inbox.exits()[1] == "no x"
    assert "stop x" not in diary.events


class Unwanted(GenServer[None]):
    async def init(self) -> Any:
        return IGNORE


async def test_case_16_ignore_ends_normally_with_the_name_freed_first(node: Node) -> None:
    inbox = Inbox()

    async def starter() -> None:
        trap_exits()
        with pytest.raises(Ignored):
            await Unwanted.start_link(name="unwanted")
        assert whereis("unwanted") is None
        await inbox.run()

    await spawn(starter)
    await settle()
    assert inbox.exits() == [NORMAL]


class Stopping(GenServer[None]):
    async def init(self, reason: Any) -> Any:
        return Stop(reason)


async def test_a_stop_in_init_is_the_reason_of_the_failed_start(node: Node) -> None:
    with pytest.raises(StartFailed) as caught:
        await Stopping.start("quiet")
    assert caught.value.reason == "quiet"


async def test_a_name_that_is_taken_names_its_owner(node: Node, diary: Diary) -> None:
    owner = await Plain.start(diary, "a", name="a")
    with pytest.raises(StartFailed) as caught:
        await Plain.start(diary, "b", name="a")
    assert caught.value.reason == AlreadyStarted(owner)
    assert diary.events == ["init a"]


async def test_a_process_that_ends_before_its_acknowledgement_did_not_start(node: Node) -> None:
    async def hasty() -> None:
        pass

    sup = await Supervisor.start_link([])
    with pytest.raises(StartFailed) as caught:
        await start_child(sup, ChildSpec("hasty", Start.process(hasty), PERMANENT))
    assert caught.value.reason is NORMAL
    assert await which_children(sup) == []


async def test_a_supervisor_that_is_killed_while_a_child_starts_takes_the_child_with_it(
    autojump_clock: trio.testing.MockClock, node: Node, diary: Diary
) -> None:
    async def starter() -> None:
        await Supervisor.start_link([child(diary, "slow", server=Slow)], name="sup")

    await spawn_link(starter)
    await settle()
    supervisor = whereis("sup")
    assert supervisor is not None
    exit(supervisor, KILL)
    await trio.sleep(3)
    assert list(processes()) == []
    assert "init slow" not in diary.events


class Plainly(GenServer[int]):
    async def init(self) -> Ok[int]:
        return Ok(1)


async def test_outside_of_processes_start_link_links_to_nobody(node: Node) -> None:
    pid = await Plainly.start_link()
    exit(pid, KILL)
    await settle()
    assert not pid.alive
