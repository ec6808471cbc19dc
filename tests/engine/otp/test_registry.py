"""The registry: cases 92 to 101."""

from __future__ import annotations

from typing import Any

import pytest

from engine.otp import (
    DUPLICATE,
    KILL,
    ONE_FOR_ONE,
    UNIQUE,
    AlreadyRegistered,
    AlreadyStarted,
    Node,
    Pid,
    Registered,
    Registry,
    RegistryClosed,
    StartFailed,
    Supervisor,
    Unregistered,
    Via,
    call,
    exit,
    receive,
    self_,
    send,
    spawn,
    whereis,
    which_children,
)
from tests.engine.otp.servers import Diary, Get, Inbox, Plain, settle


@pytest.fixture
def diary() -> Diary:
    return Diary()


@pytest.fixture
async def unique(node: Node) -> Registry:
    registry = Registry(UNIQUE, "unique", listeners=("listener",))
    await Supervisor.start_link([registry.spec()])
    return registry


@pytest.fixture
async def shared(node: Node) -> Registry:
    registry = Registry(DUPLICATE, "shared")
    await Supervisor.start_link([registry.spec()])
    return registry


async def owner(registry: Registry, *entries: tuple[Any, Any]) -> Pid:
    """A process that has registered these keys with these values, and then runs the functions it is sent."""

    async def run() -> None:
        for key, value in entries:
            registry.register(key, value)
        while True:
            function: Any = await receive()
            function()

    pid = await spawn(run)
    await settle()
    return pid


async def does(pid: Pid, function: Any) -> Any:
    """Runs a function in a process and answers what it returned or raised."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(function())
        except (AlreadyRegistered, KeyError) as error:
            results.append(error)

    send(pid, run)
    await settle()
    return results[0]


async def test_case_92_a_second_owner_is_refused_and_so_is_the_same_process_again(unique: Registry) -> None:
    first = await owner(unique, ("k", 1))
    second = await owner(unique)
    for pid in (first, second):
        error = await does(pid, lambda: unique.register("k"))
        assert isinstance(error, AlreadyRegistered)
        assert error.pid == first


async def test_case_93_a_name_via_the_registry_with_and_without_a_value(unique: Registry, diary: Diary) -> None:
    pid = await Plain.start(diary, "a", 5, name=Via(unique, "a"))
    valued = await Plain.start(diary, "b", 6, name=Via(unique, "b", {"port": 1}))
    assert (unique.lookup("a"), unique.lookup("b")) == ([(pid, None)], [(valued, {"port": 1})])
    assert await call(Via(unique, "a"), Get()) == 5
    with pytest.raises(StartFailed) as caught:
        await Plain.start(diary, "c", name=Via(unique, "a"))
    assert caught.value.reason == AlreadyStarted(pid)
    two = await Plain.start(diary, "d", names=("d", Via(unique, "d")))
    assert (whereis("d"), unique.whereis("d")) == (two, two)


async def test_case_93_a_start_that_cannot_have_all_its_names_keeps_none(unique: Registry, diary: Diary) -> None:
    await Plain.start(diary, "a", name=Via(unique, "taken"))
    with pytest.raises(StartFailed):
        await Plain.start(diary, "b", names=("free", Via(unique, "free"), Via(unique, "taken")))
    assert (whereis("free"), unique.whereis("free")) == (None, None)


async def test_case_94_entries_go_with_their_owner_and_a_name_never_means_a_dead_process(
    node: Node, unique: Registry
) -> None:
    pid = await owner(unique, ("k", 1), ("l", 2))
    dead: list[object] = []
    process = node.peek(pid)
    assert process is not None
    process.watch("test", lambda reason: dead.extend([unique.whereis("k"), unique.count(), unique.keys(pid)]))
    exit(pid, KILL)
    await settle()
    assert dead == [None, 0, []]


async def test_case_95_only_own_entries_can_be_changed_and_anybodys_keys_be_listed(unique: Registry) -> None:
    mine, other = await owner(unique, ("k", 1), ("l", 2)), await owner(unique)
    assert isinstance(await does(other, lambda: unique.update_value("k", lambda v: v + 1)), KeyError)
    assert await does(other, lambda: unique.unregister("k")) is None
    assert await does(other, lambda: unique.unregister("nothing")) is None
    assert unique.lookup("k") == [(mine, 1)]
    assert await does(mine, lambda: unique.update_value("k", lambda v: v + 1)) == 2
    assert unique.keys(mine) == ["k", "l"]
    assert await does(mine, lambda: unique.unregister("k")) is None
    assert (unique.lookup("k"), unique.keys(mine)) == ([], ["l"])


async def test_case_96_listeners_hear_of_registering_and_unregistering_but_not_of_an_end(unique: Registry) -> None:
    inbox = Inbox()
    await spawn(inbox.run, name="listener")
    pid = await owner(unique, ("k", 1), ("l", 2))
    await does(pid, lambda: unique.unregister("k"))
    exit(pid, KILL)
    await settle()
    assert inbox.messages == [
        Registered("unique", "k", pid, 1), Registered("unique", "l", pid, 2), Unregistered("unique", "k", pid),
    ]  # fmt: skip


async def test_case_97_duplicate_keys_have_many_entries_matched_and_removed_by_value(shared: Registry) -> None:
    one, two = await owner(shared, ("k", 1), ("k", 2), ("k", 3)), await owner(shared, ("k", 4))
    assert shared.lookup("k") == [(one, 1), (one, 2), (one, 3), (two, 4)]
    assert shared.match("k", lambda value: value > 2) == [(one, 3), (two, 4)]
    assert shared.values("k", one) == [1, 2, 3]
    await does(one, lambda: shared.unregister_match("k", lambda value: value != 2))
    assert (shared.lookup("k"), shared.keys(one), shared.count()) == ([(one, 2), (two, 4)], ["k"], 2)
    exit(one, KILL)
    await settle()
    assert (shared.lookup("k"), shared.count()) == ([(two, 4)], 1)


async def test_case_98_dispatch_runs_in_the_caller_and_only_when_there_are_entries(shared: Registry) -> None:
    one = await owner(shared, ("k", 1))
    seen: list[Any] = []

    async def dispatching() -> None:
        async def show(entries: list[tuple[Pid, Any]]) -> None:
            seen.append((self_(), entries))

        await shared.dispatch("k", show)
        await shared.dispatch("nobody", show)

    caller = await spawn(dispatching)
    await settle()
    assert seen == [(caller, [(one, 1)])]


async def test_case_99_a_duplicate_registry_names_nobody(shared: Registry, diary: Diary) -> None:
    await owner(shared, ("k", 1))
    with pytest.raises(ValueError, match="duplicate"):
        await call(Via(shared, "k"), Get())
    with pytest.raises(ValueError, match="duplicate"):
        await Plain.start(diary, "a", name=Via(shared, "k"))


async def test_case_100_metadata_count_select_values_and_locks(unique: Registry) -> None:
    unique.put_meta("limit", 5)
    assert (unique.meta("limit"), unique.meta("other", 1)) == (5, 1)
    unique.delete_meta("limit")
    assert unique.meta("limit") is None
    pid = await owner(unique, ("a", 1), ("b", 2), ("c", 3))
    assert unique.count() == 3
    assert unique.select(lambda key, owner, value: value > 1) == [("b", pid, 2), ("c", pid, 3)]
    assert unique.values("b", pid) == [2]
    events: list[str] = []

    async def locked(name: str, key: str) -> None:
        async def work() -> None:
            events.append(f"{name} in")
            await receive(timeout=None)
            events.append(f"{name} out")

        await unique.lock(key, work)

    first, second, third = [await spawn(locked, *arguments) for arguments in (("x", "k"), ("y", "k"), ("z", "l"))]
    await settle()
    assert sorted(events) in (["x in", "z in"], ["y in", "z in"])
    for pid in (first, second, first, second, third):
        send(pid, "go")
    await settle()
    assert sorted(events) == sorted(f"{name} {way}" for name in "xyz" for way in ("in", "out"))


async def test_case_101_a_registry_is_one_table_whose_entries_and_owners_share_its_fate(
    node: Node, diary: Diary
) -> None:
    node.on_report = lambda report: None
    registry = Registry(UNIQUE, "r")
    sup = await Supervisor.start_link([registry.spec()], strategy=ONE_FOR_ONE)
    pid = await Plain.start(diary, "a", name=Via(registry, "a"))
    for info in await which_children(sup):
        assert isinstance(info.pid, Pid)
        exit(info.pid, KILL)
    await settle()
    assert not pid.alive
    assert registry.count() == 0
    again = await Plain.start(diary, "a", name=Via(registry, "a"))
    assert registry.whereis("a") == again


async def test_a_registry_that_is_not_running_takes_nobody(node: Node, diary: Diary) -> None:
    registry = Registry(UNIQUE, "closed")
    with pytest.raises(RegistryClosed):
        await Plain.start(diary, "a", name=Via(registry, "a"))
    assert registry.whereis("a") is None
    assert diary.events == []
