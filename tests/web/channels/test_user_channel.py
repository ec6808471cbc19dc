"""One client's view of all its tasks."""

from __future__ import annotations

import pytest
from trio.testing import MockClock as Clock

from tests.web.channels.conftest import Device, Place, Refused


async def test_a_user_hears_of_births_and_changes_of_status_of_all_their_tasks(
    autojump_clock: Clock, place: Place, device: Device
) -> None:
    await device.join("user:ada")
    answer = await device.push("user:ada", "llm_generate", {"prompt": "x", "input": {"steps": 2, "text": True}})
    failing = await place.task(fail_at=1)
    seen: dict[str, list[str]] = {answer["task_id"]: [], str(failing): []}
    errors = []
    while any(not statuses or statuses[-1] not in ("completed", "failed") for statuses in seen.values()):
        name, payload = await device.next()
        assert name == ("task_updated" if seen[payload["task_id"]] else "task_created")
        seen[payload["task_id"]].append(payload["status"])
        errors += [payload["error"]["code"]] if "error" in payload else []
    assert seen[answer["task_id"]] == ["queued", "processing", "completed"]
    assert seen[str(failing)] == ["queued", "processing", "failed"]
    assert errors == ["simulated_failure"]


async def test_nobody_hears_of_anothers_tasks(autojump_clock: Clock, place: Place, device: Device) -> None:
    await device.join("user:ada")
    await place.server_gone(await place.task("bob"))
    assert await device.push("user:ada", "ping", {}) == {}
    assert device.news == []


async def test_another_users_topic_is_for_operators_only(autojump_clock: Clock, place: Place, device: Device) -> None:
    with pytest.raises(Refused) as refused:
        await device.join("user:bob")
    assert refused.value.response["reason"] == "unauthorized"
    async with place.device("op") as operator:
        await operator.join("user:bob")
        answer = await operator.push("user:bob", "llm_generate", {"input": {"steps": 1, "interval": 0}})
        await operator.until("task_updated")
    task = next(task for task in place.house.storage.tasks.values() if str(task.id) == answer["task_id"])
    assert task.user == "bob"


async def test_the_same_idempotency_key_is_the_same_task(autojump_clock: Clock, device: Device) -> None:
    await device.join("user:ada")
    wish = {"prompt": "x", "idempotency_key": "once"}
    first = await device.push("user:ada", "llm_generate", wish)
    assert (await device.push("user:ada", "llm_generate", wish))["task_id"] == first["task_id"]


async def test_a_topic_without_a_user_is_refused(autojump_clock: Clock, device: Device) -> None:
    with pytest.raises(Refused) as refused:
        await device.join("user:")
    assert refused.value.response["reason"] == "invalid_topic"


async def test_an_unknown_event_is_answered(autojump_clock: Clock, device: Device) -> None:
    await device.join("user:ada")
    with pytest.raises(Refused) as refused:
        await device.push("user:ada", "cancel")
    assert refused.value.response["reason"] == "unknown_event"
