"""What a watcher of chaos notices over many sockets: gaps, doubles, changes, text that does not add up."""

from __future__ import annotations

from typing import Any

from scripts.havoc.record import Said, Timeline
from scripts.havoc.sight import Sight

LIFE = Said(1, 10.0, False)
NEXT = Said(2, 30.0, False)
ALIVE, DEAD = Timeline(), Timeline(ended={1: 20.0})


def answer(seq: int, *events: tuple[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    task = {"status": "processing", "attempt": 1, "response": ""} | more.pop("task", {})
    missed = [{"event": event, "payload": payload} for event, payload in events]
    return {"task": task, "seq": seq, "events": missed, "has_more": False, "reset": False} | more


def event(seq: int, **payload: Any) -> dict[str, Any]:
    return {"seq": seq, "at": 100.0 + seq, **payload}


def joined(sight: Sight, reply: dict[str, Any], said: Said = LIFE, timeline: Timeline = ALIVE) -> list[str]:
    return list(sight.joined(reply, said, timeline))


def pushed(sight: Sight, name: str, payload: dict[str, Any], said: Said = LIFE) -> list[str]:
    return list(sight.pushed(name, payload, said, ALIVE))


CREATED, STARTED = ("task_created", event(1)), ("started", event(2, attempt=1))


def test_a_task_followed_from_its_creation_to_its_end_is_nothing_to_complain_of() -> None:
    sight = Sight()
    assert not joined(sight, answer(1, CREATED, task={"status": "queued", "attempt": 0}))
    assert not pushed(sight, *STARTED)
    assert not pushed(sight, "text_delta", {"attempt": 1, "offset": 0, "text": "Every"})
    assert not pushed(sight, "text_delta", {"attempt": 1, "offset": 5, "text": " task"})
    assert not pushed(sight, "llm_response", event(3, text="Every task"))
    assert not pushed(sight, "task_completed", event(4))
    assert (sight.over, sight.status, sight.seen) == (True, "completed", 4)


def test_a_gap_and_a_double_are_noticed() -> None:
    for seq in (1, 3):
        sight = Sight()
        joined(sight, answer(1, CREATED))
        assert any("came after 1" in problem for problem in pushed(sight, "started", event(seq, attempt=1)))


def test_text_that_is_told_twice_leaves_a_hole_or_does_not_add_up_is_noticed() -> None:
    for offset in (0, 9):
        sight = Sight()
        joined(sight, answer(2, CREATED, STARTED, task={"response": "Every"}))
        assert pushed(sight, "text_delta", {"attempt": 1, "offset": offset, "text": " task"})
    assert any("pieces" in problem for problem in pushed(sight, "llm_response", event(3, text="Every job")))


def test_progress_that_falls_within_an_attempt_is_noticed() -> None:
    sight = Sight()
    joined(sight, answer(2, CREATED, STARTED))
    assert not pushed(sight, "progress", {"attempt": 1, "progress": 0.5})
    assert pushed(sight, "progress", {"attempt": 1, "progress": 0.4})


def test_a_client_resumes_from_what_no_crash_can_undo_and_takes_the_rest_anew() -> None:
    sight = Sight()
    joined(sight, answer(1, CREATED))
    assert not pushed(sight, "started", event(2, attempt=1, durability="memory"))
    assert sight.resume_from() == 1
    again = ("started", {**event(2, attempt=1), "at": 200.0})
    assert not joined(sight, answer(2, again), NEXT, DEAD)
    assert (sight.resume_from(), sight.told[2].payload["at"]) == (2, 200.0)


def test_what_was_told_from_memory_may_not_change_while_its_process_lives() -> None:
    sight = Sight()
    joined(sight, answer(1, CREATED))
    pushed(sight, "started", event(2, attempt=1, durability="memory"))
    again = ("started", {**event(2, attempt=1), "at": 200.0})
    assert any("event 2 was started" in problem for problem in joined(sight, answer(2, again)))


def test_what_was_told_as_stored_may_neither_change_nor_go() -> None:
    for reply in (answer(1), answer(0, reset=True), {**answer(0), "task": None}):
        sight = Sight()
        joined(sight, answer(2, CREATED, STARTED))
        assert any("was told" in problem for problem in joined(sight, reply, NEXT, DEAD))


def test_the_word_durable_and_a_later_stored_event_confirm_all_before() -> None:
    sight = Sight()
    joined(sight, answer(2, CREATED, ("started", event(2, attempt=1, durability="memory")), durable_seq=1))
    assert sight.resume_from() == 1
    pushed(sight, "durable", {"seq": 2})
    assert sight.resume_from() == 2


def test_a_task_has_not_ended_for_its_watcher_before_its_end_is_stored() -> None:
    sight = Sight()
    joined(sight, answer(2, CREATED, STARTED))
    pushed(sight, "task_completed", event(3, durability="memory"))
    assert not sight.over
    pushed(sight, "durable", {"seq": 3})
    assert sight.over


def test_a_server_that_cannot_look_does_not_say_that_a_task_is_gone() -> None:
    sight = Sight()
    joined(sight, answer(1, CREATED))
    assert not joined(sight, {**answer(0), "task": None, "unverified": True})
    assert not sight.gone
