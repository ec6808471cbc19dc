"""Managing children: cases 50 to 54."""

from __future__ import annotations

import pytest

from engine.otp import (
    NOT_FOUND,
    RUNNING,
    SUPERVISOR,
    TEMPORARY,
    AlreadyPresent,
    AlreadyStarted,
    ChildError,
    Counts,
    Node,
    Pid,
    StartFailed,
    Supervisor,
    count_children,
    delete_child,
    get_childspec,
    restart_child,
    start_child,
    terminate_child,
    whereis,
    which_children,
)
from tests.engine.otp.servers import Diary, child


@pytest.fixture
def diary() -> Diary:
    return Diary()


@pytest.fixture
async def sup(node: Node, diary: Diary) -> Pid:
    return await Supervisor.start_link([child(diary, "a")])


async def test_case_50_start_child_answers_who_runs_or_lies_under_the_id(sup: Pid, diary: Diary) -> None:
    with pytest.raises(StartFailed) as caught:
        await start_child(sup, child(diary, "a"))
    assert caught.value.reason == AlreadyStarted(whereis("a"))
    await terminate_child(sup, "a")
    with pytest.raises(StartFailed) as caught:
        await start_child(sup, child(diary, "a"))
    assert caught.value.reason == AlreadyPresent("a")


async def test_case_51_restart_and_delete_of_a_running_or_unknown_child_are_refused(sup: Pid) -> None:
    for request in (restart_child, delete_child):
        with pytest.raises(ChildError) as caught:
            await request(sup, "a")
        assert caught.value.reason is RUNNING
        with pytest.raises(ChildError) as caught:
            await request(sup, "nobody")
        assert caught.value.reason is NOT_FOUND


async def test_case_52_terminate_child_keeps_the_spec_except_a_temporary_one(sup: Pid, diary: Diary) -> None:
    await start_child(sup, child(diary, "t", TEMPORARY))
    await terminate_child(sup, "a")
    await terminate_child(sup, "a")
    await terminate_child(sup, "t")
    assert [(info.id, info.pid) for info in await which_children(sup)] == [("a", None)]
    pid = await restart_child(sup, "a")
    assert whereis("a") == pid
    await terminate_child(sup, "a")
    await delete_child(sup, "a")
    assert await which_children(sup) == []
    with pytest.raises(ChildError):
        await terminate_child(sup, "a")


async def test_case_53_count_children_counts_each_kind_for_itself(sup: Pid, diary: Diary) -> None:
    await start_child(sup, child(diary, "b"))
    await start_child(sup, Supervisor.spec([], id="below"))
    await terminate_child(sup, "b")
    assert await count_children(sup) == Counts(specs=3, active=2, supervisors=1, workers=2)


async def test_case_54_get_childspec_answers_every_field_with_its_default(sup: Pid, diary: Diary) -> None:
    spec = await get_childspec(sup, "a")
    assert (spec.id, spec.deadline, spec.start.args) == ("a", 5.0, (diary, "a"))
    await start_child(sup, Supervisor.spec([], id="below"))
    assert (await get_childspec(sup, "below")).type is SUPERVISOR
    with pytest.raises(ChildError):
        await get_childspec(sup, "nobody")
