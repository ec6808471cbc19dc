"""One client's view of one task: joining, asking, and what is told."""

from __future__ import annotations

from typing import Any

import pytest
from trio.testing import MockClock as Clock

from engine.otp import KILL, Crash, exit
from engine.tasks import lookup
from tests.web.channels.conftest import Device, Place, Refused
from web.channels.cursor import Cursor
from web.channels.task import TaskChannel


def names(events: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [name for name, _ in events]


def durable(events: list[tuple[str, dict[str, Any]]]) -> list[int]:
    return [payload["seq"] for name, payload in events if "seq" in payload and name != "durable"]


# --- joining --------------------------------------------------------------------------------------------


async def test_joining_a_task_answers_its_state(autojump_clock: Clock, place: Place, device: Device) -> None:
    task_id = await place.task(prompt="a prompt")
    answer = await device.join(f"task:{task_id}")
    assert answer["task"]["id"] == str(task_id)
    assert answer["task"]["input"]["prompt"] == "a prompt"
    assert answer["task"]["response"] == ""
    assert (answer["seq"], answer["events"], answer["has_more"], answer["reset"]) == (
        answer["task"]["seq"],
        [],
        False,
        False,
    )


async def test_joining_with_last_seq_answers_what_was_missed_as_the_pushes_it_would_have_been(
    autojump_clock: Clock, place: Place, device: Device
) -> None:
    task_id = await place.task(text=True)
    await place.server_gone(task_id)
    answer = await device.join(f"task:{task_id}", last_seq=1)
    assert [entry["event"] for entry in answer["events"]] == ["started", "llm_response", "task_completed"]
    assert [entry["payload"]["seq"] for entry in answer["events"]] == [2, 3, 4]
    assert answer["events"][-1]["payload"]["task_id"] == str(task_id)
    assert answer["reset"] is False


async def test_a_last_seq_from_the_future_resets(autojump_clock: Clock, place: Place, device: Device) -> None:
    answer = await device.join(f"task:{await place.task()}", last_seq=999)
    assert answer["reset"] is True


async def test_joining_an_unknown_task_answers_none(autojump_clock: Clock, device: Device, new_id: str) -> None:
    assert (await device.join(f"task:{new_id}"))["task"] is None


@pytest.mark.parametrize("topic", ["task:", "task:1", "task:nonsense", "task:../etc", "task:" + "0" * 32])
async def test_a_topic_without_a_uuid_is_refused(autojump_clock: Clock, device: Device, topic: str) -> None:
    with pytest.raises(Refused) as refused:
        await device.join(topic)
    assert refused.value.response["reason"] == "invalid_topic"


@pytest.mark.parametrize("last_seq", ["1", -1, 1.5, [], True])
async def test_join_params_that_are_wrong_are_refused(
    autojump_clock: Clock, device: Device, new_id: str, last_seq: Any
) -> None:
    with pytest.raises(Refused) as refused:
        await device.join(f"task:{new_id}", last_seq=last_seq)
    assert refused.value.response["reason"] == "invalid_payload"
    assert refused.value.response["details"][0]["where"] == "/last_seq"


async def test_another_users_task_is_refused_live_and_finished(autojump_clock: Clock, place: Place) -> None:
    task_id = await place.task("ada")
    async with place.device("bob") as bob, place.device("op") as operator:
        with pytest.raises(Refused) as refused:
            await bob.join(f"task:{task_id}")
        assert refused.value.response["reason"] == "unauthorized"
        assert (await operator.join(f"task:{task_id}"))["task"]["user"] == "ada"
        await place.server_gone(task_id)
        with pytest.raises(Refused):
            await bob.join(f"task:{task_id}")
        assert len(place.house.runtime.channels.lookup(("channel", task_id))) == 1


async def test_while_the_server_drains_nobody_joins(
    autojump_clock: Clock, place: Place, device: Device, new_id: str
) -> None:
    place.draining = True
    for topic in (f"task:{new_id}", "user:ada"):
        with pytest.raises(Refused) as refused:
            await device.join(topic)
        assert refused.value.response["reason"] == "draining"


async def test_while_the_database_is_away_what_is_not_in_memory_cannot_be_resumed(
    autojump_clock: Clock, place: Place, device: Device
) -> None:
    task_id = await place.task()
    await place.server_gone(task_id)
    place.house.storage.down = True
    with pytest.raises(Refused) as refused:
        await device.join(f"task:{task_id}", last_seq=1)
    assert refused.value.response["reason"] == "storage_down"
    assert refused.value.response["retry_after"] > 0


async def test_while_the_database_is_away_a_new_task_can_be_created_all_the_same(
    autojump_clock: Clock, place: Place, device: Device, new_id: str
) -> None:
    place.house.storage.down = True
    topic = f"task:{new_id}"
    answer = await device.join(topic)
    assert (answer["task"], answer["unverified"]) == (None, True)
    wish = {"input": {"steps": 1, "interval": 1.0}}
    assert (await device.push(topic, "llm_generate", wish))["durability"] == "memory"
    await device.until("task_completed", topic)
    place.house.storage.back()
    await device.until("phx_close", topic)


# --- what is told -----------------------------------------------------------------------------------------


async def test_a_task_is_told_from_its_start_to_its_end_and_the_channel_closes(
    autojump_clock: Clock, place: Place, device: Device
) -> None:
    place.house.queue.paused = True
    task_id = await place.task(text=True, steps=3)
    topic = f"task:{task_id}"
    await device.join(topic)
    place.house.queue.paused = False
    place.house.queue.go()
    events = await device.until("phx_close")
    assert [name for name in names(events) if name not in ("progress", "text_delta")] == [
        "started",
        "llm_response",
        "task_completed",
        "phx_close",
    ]
    assert durable(events) == [2, 3, 4]
    assert all(payload["task_id"] == str(task_id) and payload["at"] > 0 for _, payload in events[:-1])
    progress = [payload["progress"] for name, payload in events if name == "progress"]
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    deltas = [payload for name, payload in events if name == "text_delta"]
    text = ""
    for delta in deltas:
        assert delta["offset"] == len(text)
        text += delta["text"]
    response = next(payload for name, payload in events if name == "llm_response")
    assert response["text"] == text == "Every task is"
    completed = next(payload for name, payload in events if name == "task_completed")
    assert completed["outputs"] == []
    assert completed["duration_seconds"] == pytest.approx(3.0)


async def test_a_swift_client_in_capitals_is_answered_in_capitals(
    autojump_clock: Clock, place: Place, device: Device, new_id: str
) -> None:
    topic = f"task:{new_id.upper()}"
    await device.join(topic)
    await device.push(topic, "llm_generate", {"input": {"steps": 1, "interval": 0}})
    events = await device.until("task_completed", topic)
    assert events[0][1]["task_id"] == new_id


async def test_a_failed_attempt_is_told_with_what_was_shown_made_void(
    autojump_clock: Clock, place: Place, device: Device, new_id: str
) -> None:
    topic = f"task:{new_id}"
    await device.join(topic)
    given = {"steps": 3, "interval": 1.0, "text": True, "fail_at": 3, "fail_kind": "retryable", "fail_attempts": 1}
    await device.push(topic, "llm_generate", {"input": given})
    events = await device.until("task_completed", topic)
    told = [name for name in names(events) if name not in ("progress", "text_delta")]
    assert told == ["task_created", "started", "error", "reset", "started", "llm_response", "task_completed"]
    failure = next(payload for name, payload in events if name == "error")
    assert failure["retryable"] is True
    assert failure["will_retry_at"] > failure["at"]
    assert failure["action"]
    assert durable(events) == [1, 2, 3, 4, 5, 6, 7]
    again = events[names(events).index("reset") :]
    assert next(payload for name, payload in again if name == "text_delta")["offset"] == 0


async def test_a_failure_for_good_says_what_to_do_and_closes(
    autojump_clock: Clock, place: Place, device: Device
) -> None:
    task_id = await place.task(fail_at=2)
    await device.join(f"task:{task_id}")
    events = await device.until("phx_close")
    failure = next(payload for name, payload in events if name == "error")
    assert failure["code"] == "simulated_failure"
    assert failure["retryable"] is False
    assert failure["action"] == "Try it with another fail_at."
    assert "will_retry_at" not in failure


async def test_two_devices_see_the_same(autojump_clock: Clock, place: Place, device: Device) -> None:
    task_id = await place.task(text=True)
    async with place.device() as other:
        for joined in (device, other):
            await joined.join(f"task:{task_id}")
        ones = [event for event in await device.until("phx_close") if event[0] != "progress"]
        twos = [event for event in await other.until("phx_close") if event[0] != "progress"]
    assert ones == twos


async def test_a_channel_that_ends_leaves_its_task_running(autojump_clock: Clock, place: Place) -> None:
    task_id = await place.task()
    async with place.device() as device:
        await device.join(f"task:{task_id}")
    await place.server_gone(task_id)
    assert place.house.storage.tasks[task_id].status == "completed"


async def test_a_task_server_that_crashes_keeps_the_channel_and_loses_nothing(
    autojump_clock: Clock, place: Place, device: Device
) -> None:
    task_id = await place.task(text=True, steps=6, crash_at=3)
    await device.join(f"task:{task_id}")
    events = await device.until("phx_close")
    assert "phx_error" not in names(events)
    assert durable(events) == sorted(set(durable(events)))
    text = "".join(payload["text"] for name, payload in events if name == "text_delta")
    assert text == next(payload["text"] for name, payload in events if name == "llm_response")
    progress = [payload["progress"] for name, payload in events if name == "progress"]
    assert progress == sorted(progress)


@pytest.mark.parametrize("reason", [KILL, Crash(RuntimeError("told to"))])
async def test_a_task_server_killed_from_outside_is_followed_to_its_next_life(
    autojump_clock: Clock, place: Place, device: Device, reason: object
) -> None:
    task_id = await place.task(text=True, steps=6)
    await device.join(f"task:{task_id}")
    await device.until("text_delta")
    server = place.server(task_id)
    assert server is not None
    exit(server, reason)
    events = await device.until("phx_close")
    assert "phx_error" not in names(events)
    assert names(events).count("task_completed") == 1


async def test_a_task_accepted_in_memory_says_so_and_later_that_it_is_durable(
    autojump_clock: Clock, place: Place, device: Device, new_id: str
) -> None:
    topic = f"task:{new_id}"
    await device.join(topic)
    place.house.storage.down = True
    # An unknown id can be looked for only while the database is there; the join was before.
    place.house.queue.paused = True
    answer = await device.push(topic, "llm_generate", {"input": {"steps": 3, "interval": 1.0}})
    assert answer["durability"] == "memory"
    place.house.queue.paused = False
    place.house.queue.go()
    told = await device.until("started", topic)
    assert [payload["durability"] for name, payload in told if name == "started"] == ["memory"]
    place.house.storage.back()
    events = await device.until("phx_close", topic)
    assert "durable" in names(events)
    assert "task_completed" in names(events)


async def test_what_happens_while_a_page_of_the_past_is_fetched_comes_as_news(
    autojump_clock: Clock, place: Place, device: Device
) -> None:
    """The page goes on beyond the state that the client was given: what is beyond is not told with it, nor skipped."""
    task_id = await place.task(steps=1, interval=1.0)
    await place.server_gone(task_id)
    page = await lookup.view(place.house.runtime, task_id, 0)
    assert page is not None
    told: list[Any] = []
    channel = TaskChannel.__new__(TaskChannel)
    channel.push = lambda event, payload: told.append(payload["seq"])  # type: ignore[method-assign, assignment]
    channel.cursor = Cursor(2, 1, 0)
    assert channel._tell_events(page, upto=2) == 2
    assert (told, channel.cursor.seq, page.task.seq) == ([1, 2], 2, 3)


async def test_what_is_in_memory_only_says_so_to_whoever_joins_then(
    autojump_clock: Clock, place: Place, device: Device
) -> None:
    place.house.queue.paused = True
    task_id = await place.task(steps=1, interval=1.0)
    topic = f"task:{task_id}"
    place.house.storage.down = True
    assert await device.join(topic)
    assert (await device.push(topic, "cancel"))["durability"] == "memory"
    async with place.device("ada") as late:
        answer = await late.join(topic, last_seq=0)
        assert (answer["seq"], answer["durable_seq"]) == (2, 1)
        marked = [missed["payload"].get("durability") for missed in answer["events"]]
        assert marked == [None, "memory"]
        place.house.storage.back()
        await late.until("durable", topic)
        again = await late.push(topic, "get_state", {"last_seq": 0})
        assert (again["seq"], again["durable_seq"]) == (2, 2)
        assert not any("durability" in missed["payload"] for missed in again["events"])


# --- asking -----------------------------------------------------------------------------------------------


async def test_llm_generate_creates_the_task_under_the_topics_id(
    autojump_clock: Clock, place: Place, device: Device, new_id: str
) -> None:
    topic = f"task:{new_id}"
    await device.join(topic)
    answer = await device.push(topic, "llm_generate", {"prompt": "hello", "input": {"steps": 1, "interval": 1.0}})
    assert answer["task_id"] == new_id
    assert answer["topic"] == topic
    assert answer["durability"] == "durable"
    assert names(await device.until("phx_close", topic))[:2] == ["task_created", "started"]


async def test_llm_generate_said_twice_is_one_task(
    autojump_clock: Clock, place: Place, device: Device, new_id: str
) -> None:
    topic, wish = f"task:{new_id}", {"prompt": "hello", "input": {"steps": 2}}
    await device.join(topic)
    first = await device.push(topic, "llm_generate", wish)
    async with place.device() as other:
        await other.join(topic)
        assert (await other.push(topic, "llm_generate", wish))["task_id"] == first["task_id"]
        with pytest.raises(Refused) as refused:
            await other.push(topic, "llm_generate", {"prompt": "another"})
        assert refused.value.response["reason"] == "task_exists"


async def test_an_id_that_another_user_takes_stays_closed(
    autojump_clock: Clock, place: Place, device: Device, new_id: str
) -> None:
    """Bob waits on an id; Ada creates a task of that id; Bob learns nothing, not even after a crash."""
    topic = f"task:{new_id}"
    async with place.device("bob") as bob:
        assert (await bob.join(topic))["task"] is None
        await device.join(topic)
        given = {"steps": 4, "interval": 1.0, "crash_at": 2}
        await device.push(topic, "llm_generate", {"input": given})
        with pytest.raises(Refused) as refused:
            await bob.push(topic, "llm_generate", {"input": given})
        assert refused.value.response["reason"] == "unauthorized"
        with pytest.raises(Refused) as refused:
            await bob.push(topic, "get_state")
        assert refused.value.response["reason"] == "unauthorized"
        await device.until("phx_close", topic)
        assert await bob.push(topic, "ping", {"n": 1}) == {"n": 1}
        assert bob.news == []


@pytest.mark.parametrize(
    ("payload", "where"),
    [
        ({"prompt": 1}, "/prompt"),
        ({"prompt": "x", "priority": "high"}, "/priority"),
        ({"prompt": "x", "priority": 10}, "/priority"),
        ({"prompt": "x", "input": []}, "/input"),
        ({"prompt": "x", "idempotency_key": ""}, "/idempotency_key"),
        ({"prompt": "x", "model": 7}, "/model"),
    ],
)
async def test_a_wrong_wish_says_what_is_wrong(
    autojump_clock: Clock, device: Device, new_id: str, payload: Any, where: str
) -> None:
    topic = f"task:{new_id}"
    await device.join(topic)
    with pytest.raises(Refused) as refused:
        await device.push(topic, "llm_generate", payload)
    assert refused.value.response["reason"] == "invalid_payload"
    assert refused.value.response["details"][0]["where"] == where


@pytest.mark.parametrize("event", ["llm_generate", "cancel", "retry", "get_state", "ping"])
@pytest.mark.parametrize("payload", [[], 1, "text", True])
async def test_a_payload_that_is_no_object_hurts_nobody(
    autojump_clock: Clock, device: Device, new_id: str, event: str, payload: Any
) -> None:
    topic = f"task:{new_id}"
    await device.join(topic)
    with pytest.raises(Refused) as refused:
        await device.push(topic, event, payload)
    assert refused.value.response["reason"] == "invalid_payload"
    assert await device.push(topic, "ping", {"still": "here"}) == {"still": "here"}


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({"model": "no such model", "prompt": "x"}, "unknown_model"),
        ({"input": {"steps": 0}}, "invalid_input"),
        ({"prompt": "a\0b"}, "invalid_input"),
    ],
)
async def test_what_the_model_cannot_take_is_refused(
    autojump_clock: Clock, device: Device, new_id: str, payload: Any, reason: str
) -> None:
    topic = f"task:{new_id}"
    await device.join(topic)
    with pytest.raises(Refused) as refused:
        await device.push(topic, "llm_generate", payload)
    assert refused.value.response["reason"] == reason
    assert refused.value.response["message"]


async def test_an_unknown_event_is_answered_and_hurts_nobody(
    autojump_clock: Clock, device: Device, new_id: str
) -> None:
    await device.join(f"task:{new_id}")
    with pytest.raises(Refused) as refused:
        await device.push(f"task:{new_id}", "dance")
    assert refused.value.response["reason"] == "unknown_event"
    assert await device.push(f"task:{new_id}", "ping", {"a": [1, None]}) == {"a": [1, None]}


async def test_cancel_stops_the_task_and_may_be_said_twice(autojump_clock: Clock, place: Place, device: Device) -> None:
    topic = f"task:{await place.task(steps=1000)}"
    await device.join(topic)
    assert await device.push(topic, "cancel") == {"status": "cancelled", "durability": "durable"}
    assert await device.push(topic, "cancel") == {"status": "cancelled", "durability": "durable"}
    assert names(await device.until("phx_close", topic))[-2] == "task_cancelled"


async def test_retry_gives_a_failed_task_another_life(autojump_clock: Clock, place: Place, device: Device) -> None:
    task_id = await place.task(fail_at=2)
    topic = f"task:{task_id}"
    await device.join(topic)
    await device.until("error", topic)
    assert (await device.push(topic, "retry"))["status"] in ("queued", "processing")
    events = await device.until("phx_close", topic)
    assert [name for name in names(events) if name != "progress"] == ["task_requeued", "started", "error", "phx_close"]


async def test_retry_after_the_task_has_left_memory(autojump_clock: Clock, place: Place, device: Device) -> None:
    task_id = await place.task(fail_at=2)
    await place.server_gone(task_id)
    topic = f"task:{task_id}"
    assert (await device.join(topic))["task"]["status"] == "failed"
    await device.push(topic, "retry")
    events = await device.until("error", topic)
    assert [name for name in names(events) if name != "progress"] == ["task_requeued", "started", "error"]


@pytest.mark.parametrize("event", ["cancel", "retry"])
async def test_what_is_not_there_cannot_be_cancelled_or_retried(
    autojump_clock: Clock, device: Device, new_id: str, event: str
) -> None:
    await device.join(f"task:{new_id}")
    with pytest.raises(Refused) as refused:
        await device.push(f"task:{new_id}", event)
    assert refused.value.response["reason"] == "unknown_task"


async def test_retry_of_a_running_task_is_refused(autojump_clock: Clock, place: Place, device: Device) -> None:
    topic = f"task:{await place.task()}"
    await device.join(topic)
    with pytest.raises(Refused) as refused:
        await device.push(topic, "retry")
    assert refused.value.response["reason"] == "not_failed"


async def test_get_state_answers_as_a_join(autojump_clock: Clock, place: Place, device: Device) -> None:
    task_id = await place.task(text=True)
    topic = f"task:{task_id}"
    await device.join(topic)
    await device.until("task_completed", topic)
    answer = await device.push(topic, "get_state", {"last_seq": 2})
    assert answer["task"]["status"] == "completed"
    assert [entry["event"] for entry in answer["events"]] == ["llm_response", "task_completed"]


async def test_over_capacity_is_said_with_when_to_come_back(
    autojump_clock: Clock, place: Place, device: Device, new_id: str
) -> None:
    from engine.errors import UserError

    place.house.queue.refusal = UserError("over_capacity", "Too many wait.", retry_after=7.0)
    await device.join(f"task:{new_id}")
    with pytest.raises(Refused) as refused:
        await device.push(f"task:{new_id}", "llm_generate", {"prompt": "x"})
    assert refused.value.response == {"reason": "over_capacity", "message": "Too many wait.", "retry_after": 7.0}
