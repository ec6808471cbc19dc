"""When an expired lease proves something, and what is made at its hour."""

from __future__ import annotations

import pytest
import trio

from engine.jobs.clockwork import Heart, Pulse, beaten, due_slots, may_rescue, next_slot_in
from engine.jobs.config import Cron, Timing
from engine.jobs.cron import Every, parse
from engine.ports import StorageDown

TIMING = Timing(lease=30.0, heartbeat=10.0)


def pulse_after(*beats: float, took: float = 0.1) -> Pulse:
    pulse = Pulse()
    for at in beats:
        pulse = beaten(pulse, at - took, at, TIMING)
    return pulse


def test_nothing_is_rescued_in_the_first_lease_after_the_start() -> None:
    pulse = pulse_after(100.0, 110.0, 120.0)
    assert not may_rescue(pulse, 121.0, TIMING)
    assert may_rescue(beaten(pulse, 130.0, 130.1, TIMING), 130.5, TIMING)


def test_nothing_is_rescued_while_the_database_is_away() -> None:
    assert not may_rescue(Pulse(), 500.0, TIMING)


def test_nothing_is_rescued_while_the_database_is_slow() -> None:
    pulse = pulse_after(100.0, 110.0, 120.0, 130.0, took=3.0)
    assert not may_rescue(pulse, 131.0, TIMING)


def test_a_node_that_was_stopped_itself_waits_a_lease_before_it_judges_others() -> None:
    pulse = pulse_after(100.0, 110.0, 120.0, 130.0)
    assert not may_rescue(pulse, 200.0, TIMING)
    woken = beaten(pulse, 200.0, 200.1, TIMING)
    assert not may_rescue(woken, 201.0, TIMING)
    assert may_rescue(
        beaten(beaten(beaten(woken, 210, 210.1, TIMING), 220, 220.1, TIMING), 230, 230.2, TIMING), 231, TIMING
    )


async def test_a_heartbeat_that_fails_forgets_how_long_all_was_well() -> None:
    now = 100.0
    heart = Heart(TIMING, pulse_after(60.0, 70.0, 80.0, 90.0), monotonic=lambda: now)

    async def lost() -> None:
        raise StorageDown("away")

    assert heart.may_rescue
    with pytest.raises(StorageDown):
        await heart.beat(lost)
    assert not heart.may_rescue
    await heart.beat(trio.lowlevel.checkpoint)
    assert not heart.may_rescue


def test_a_heartbeat_must_be_well_inside_its_lease() -> None:
    with pytest.raises(ValueError, match="well inside"):
        Timing(lease=10.0, heartbeat=10.0)


def test_a_cron_makes_one_job_a_slot_with_the_same_id_on_every_node() -> None:
    crons = [Cron("sweep", Every(60.0), "sweep"), Cron("report", Every(3600.0), "report")]
    first = due_slots(crons, 7200.0, {})
    assert [slot.job.worker for slot in first] == ["sweep", "report"]
    made = {slot.name: slot.at for slot in first}
    assert due_slots(crons, 7230.0, made) == []
    assert [slot.job.worker for slot in due_slots(crons, 7260.0, made)] == ["sweep"]
    assert due_slots(crons, 7210.0, {}) == first


def test_the_next_slot_of_the_most_frequent_cron_comes_first() -> None:
    crons = [Cron("a", Every(60.0), "a"), Cron("b", Every(45.0), "b"), Cron("c", parse("@daily"), "c")]
    assert next_slot_in(crons, 7230.0) == 15.0
    assert next_slot_in([], 7230.0) is None
