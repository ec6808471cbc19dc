"""What chaos calls a broken promise: each complaint is made for what it is meant for, and for nothing else."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
from attrs import evolve

from scripts.havoc import judge
from scripts.havoc.record import Ack, Order, Said, Timeline, Told, Wish
from scripts.havoc.sight import Sight

TASK = UUID(int=1)
WISH = Wish("key", {}, text="Every task", outputs=("aa",))
DURABLE, MEMORY = Said(1, 10.0, True), Said(1, 10.0, False)
ALIVE, DEAD = Timeline(), Timeline(ended={1: 20.0})


def row(seq: int, kind: str, attempt: int = 0, **payload: Any) -> dict[str, Any]:
    return {"seq": seq, "type": kind, "at": 100.0 + seq, "attempt": attempt, "payload": payload}


LOG = [
    row(1, "created"),
    row(2, "started", 1),
    row(3, "output_stored", 1, output={"sha256": "aa"}),
    row(4, "responded", 1, text="Every task"),
    row(5, "completed", 1),
]
DONE = {"status": "completed", "response": "Every task", "outputs": [{"index": 0, "sha256": "aa"}], "error": None}


def numbered(*kinds: str) -> list[dict[str, Any]]:
    """A log of these types; attempts are counted as the server does."""
    attempt, rows = 0, []
    for seq, kind in enumerate(kinds, 1):
        attempt += kind == "started"
        rows.append(row(seq, kind, attempt))
    return rows


# --- logs -------------------------------------------------------------------------------------------------


def test_a_good_log_is_nothing_to_complain_of() -> None:
    assert not [*judge.of_log("completed", LOG), *judge.of_attempts(LOG)]


@pytest.mark.parametrize(
    ("log", "word"),
    [
        ([*LOG[:2], *LOG[3:]], "gaps"),
        (LOG[1:], "creation"),
        (LOG[:4], "terminal"),
        ([*LOG, row(6, "failed", 1)], "terminal"),
        ([*LOG[:4], {**LOG[4], "at": 1.0}], "go back"),
    ],
)
def test_a_log_that_is_broken_is_complained_of(log: list[dict[str, Any]], word: str) -> None:
    assert any(word in problem for problem in judge.of_log("completed", log))


@pytest.mark.parametrize(
    "kinds",
    [
        ("created", "started", "attempt_failed", "started", "completed"),
        ("created", "started", "attempt_failed", "reset", "started", "completed"),
        ("created", "started", "reset", "started", "reset", "started", "completed"),
        ("created", "cancelled"),
    ],
)
def test_attempts_that_follow_one_another_are_right(kinds: tuple[str, ...]) -> None:
    assert not list(judge.of_attempts(numbered(*kinds)))


@pytest.mark.parametrize(
    ("log", "word"),
    [
        (numbered("created", "started", "started", "completed"), "while"),
        (numbered("created", *("started", "attempt_failed") * 3, "started", "completed"), "tried again"),
        (numbered("created", *("started", "reset") * 60, "started", "completed"), "were made"),
        ([row(1, "created"), row(2, "started", 2), row(3, "completed", 2)], "numbered"),
    ],
)
def test_attempts_that_overlap_or_do_not_end_are_complained_of(log: list[dict[str, Any]], word: str) -> None:
    assert any(word in problem for problem in judge.of_attempts(log))


# --- outcomes ---------------------------------------------------------------------------------------------


def test_a_task_that_came_to_what_was_asked_for_is_right() -> None:
    assert not list(judge.of_outcome(WISH, DONE, False))


@pytest.mark.parametrize(
    "task",
    [
        {**DONE, "response": "Every"},
        {**DONE, "outputs": []},
        {**DONE, "outputs": [{"index": 0, "sha256": "bb"}]},
        {**DONE, "status": "cancelled"},
        {**DONE, "status": "failed", "error": {"code": "worker_lost"}},
        {**DONE, "status": "failed", "error": {"code": "store_failed"}},
    ],
)
def test_a_task_that_came_to_something_else_is_complained_of(task: dict[str, Any]) -> None:
    assert list(judge.of_outcome(WISH, task, False))


def test_a_full_disk_excuses_an_output_that_could_not_be_stored_and_nothing_else() -> None:
    def failed(code: str) -> dict[str, Any]:
        return {**DONE, "status": "failed", "error": {"code": code}}

    assert not list(judge.of_outcome(WISH, failed("store_failed"), True))
    assert list(judge.of_outcome(WISH, failed("worker_lost"), True))
    assert list(judge.of_outcome(evolve(WISH, outputs=()), failed("store_failed"), True))


def test_a_prediction_that_was_stopped_by_an_order_that_a_crash_undid_may_fail_its_task() -> None:
    stopped = {**DONE, "status": "failed", "error": {"code": "cancelled"}}
    assert list(judge.of_outcome(WISH, stopped, False))
    assert not list(judge.of_outcome(evolve(WISH, ends=WISH.ends | {"cancelled"}), stopped, False))


# --- acknowledgements -------------------------------------------------------------------------------------


def order(*acks: tuple[UUID, Said]) -> Order:
    return Order(WISH, [Ack(task_id, said) for task_id, said in acks])


def test_what_was_acknowledged_as_durable_has_no_excuse() -> None:
    assert list(judge.of_acks(order((TASK, DURABLE)), [], DEAD))
    assert not list(judge.of_acks(order((TASK, DURABLE)), [TASK], DEAD))


def test_what_was_in_memory_is_excused_by_the_death_of_its_process_alone() -> None:
    assert list(judge.of_acks(order((TASK, MEMORY)), [], ALIVE))
    assert not list(judge.of_acks(order((TASK, MEMORY)), [], DEAD))


def test_a_journal_that_was_seen_empty_before_the_death_takes_the_excuse_away() -> None:
    assert list(judge.of_acks(order((TASK, MEMORY)), [], Timeline({1: 20.0}, quiet={1: 15.0})))
    assert not list(judge.of_acks(order((TASK, MEMORY)), [], Timeline({1: 20.0}, quiet={1: 5.0})))


def test_an_old_key_used_again_in_an_outage_may_have_had_another_id_for_a_while() -> None:
    alias = uuid4()
    later = Said(2, 30.0, False)
    assert not list(judge.of_acks(order((TASK, DURABLE), (alias, later)), [TASK], DEAD))
    assert list(judge.of_acks(order((TASK, DURABLE), (alias, later)), [TASK, alias], DEAD))


def test_a_cancellation_that_was_confirmed_holds() -> None:
    cancelled = Order(WISH, [Ack(TASK, DURABLE)], cancelled=[DURABLE])
    assert list(judge.of_cancellation(cancelled, "completed", DEAD))
    assert not list(judge.of_cancellation(cancelled, "cancelled", DEAD))
    undone = Order(WISH, [Ack(TASK, DURABLE)], cancelled=[MEMORY])
    assert not list(judge.of_cancellation(undone, "completed", DEAD))


# --- watchers ---------------------------------------------------------------------------------------------


def saw(seq: int, event: str, said: Said = DURABLE, **payload: Any) -> Told:
    return Told(seq, event, {"at": 100.0 + seq, **payload}, said)


def sight(*told: Told, **more: Any) -> Sight:
    return Sight({each.seq: each for each in told}, seen=len(told), **more)


WHOLE = (
    saw(1, "task_created"),
    saw(2, "started", attempt=1),
    saw(3, "output_stored", attempt=1, output={"sha256": "aa"}),
    saw(4, "llm_response", text="Every task"),
    saw(5, "task_completed"),
)


def test_a_watcher_that_was_told_the_log_is_content() -> None:
    whole = sight(*WHOLE, durable_seq=5, status="completed")
    assert not list(judge.of_sight(whole, "completed", LOG, DEAD))


@pytest.mark.parametrize(
    "changed",
    [
        saw(4, "llm_response", text="Every other task"),
        saw(4, "error", code="x"),
        saw(3, "output_stored", attempt=1, output={"sha256": "bb"}),
        saw(2, "started", attempt=2),
        Told(2, "started", {"at": 99.0, "attempt": 1}, DURABLE),
        saw(6, "task_requeued"),
    ],
)
def test_a_watcher_that_was_told_something_else_complains(changed: Told) -> None:
    told = sight(*WHOLE, durable_seq=5, status="completed")
    told.told[changed.seq] = changed
    assert list(judge.of_sight(told, "completed", LOG, DEAD))


def test_what_a_watcher_was_told_from_memory_may_be_undone_until_it_has_seen_the_end() -> None:
    told = sight(saw(1, "task_created"), saw(2, "task_cancelled", MEMORY), durable_seq=1)
    assert not list(judge.of_sight(told, "completed", LOG, DEAD))
    assert list(judge.of_sight(told, "completed", LOG, ALIVE))
    assert not list(judge.of_vanished(sight(saw(1, "task_created", MEMORY)), DEAD))
    assert list(judge.of_vanished(sight(saw(1, "task_created")), DEAD))


def test_refusals_of_new_tasks_need_a_reason() -> None:
    assert judge.fair(503, "draining", False, "restart_in_order")
    assert not judge.fair(503, "draining", False, "kill_postgres")
    assert judge.fair(503, "storage_down", True, "kill_postgres")
    assert not judge.fair(503, "storage_down", False, "kill_postgres")
    assert not judge.fair(500, "internal_error", True, "kill_postgres")
    assert not judge.fair(503, "journal_full", False, "take_postgres_away")
