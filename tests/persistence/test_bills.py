"""What is in doubt at a provider is found while it is, settled once, and what was paid beside it is added once."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from engine.ports import Entry, PredictionChange
from engine.providers.settlement import Settled
from engine.tasks.events import Cancelled, Completed, Usage
from persistence.bills import Bills
from persistence.journal.journal import PostgresJournal
from persistence.pool import Pool
from tests.persistence.entries import Story

COST = Usage(predict_seconds=2.0, cost=0.5)


@pytest.fixture
def bills(database: Pool) -> Bills:
    return Bills(database)


async def bought(
    journal: PostgresJournal, story: Story, number: int = 1, external_id: str | None = "p1", **more: Any
) -> UUID:
    """A prediction of the task, open unless it says otherwise."""
    if story.state is None:
        await journal.write(story.begin())
    assert story.state is not None
    change = PredictionChange(
        uuid4(), story.task_id, number, "replicate", "processing", external_id=external_id, started_at=7.0, **more
    )
    await journal.write(Entry(story.state, predictions=(change,)))
    return change.id


async def doubts(bills: Bills) -> list[UUID]:
    return [doubt.id for doubt in await bills.in_doubt("replicate", 10)]


async def test_what_is_open_is_in_doubt_once_its_task_is_over(bills: Bills, journal: PostgresJournal) -> None:
    story = Story()
    attempt = await bought(journal, story)
    assert await doubts(bills) == []
    assert await bills.wanted(story.task_id)
    assert not await bills.settle(attempt, Settled("p1", "canceled", None, COST))  # it belongs to who runs it
    await journal.write(story.then(Cancelled()))
    (doubt,) = await bills.in_doubt("replicate", 10)
    assert (doubt.id, doubt.external_id, doubt.began_at, doubt.duplicates) == (attempt, "p1", 7.0, None)
    assert not await bills.wanted(story.task_id)
    assert await bills.in_doubt("openai", 10) == ()


async def test_a_doubt_is_settled_once(bills: Bills, journal: PostgresJournal) -> None:
    story = Story()
    attempt = await bought(journal, story, in_doubt=True, completed_at=9.0)
    await journal.write(story.then(Cancelled()))
    assert await bills.settle(attempt, Settled("p1", "canceled", {"predict_time": 2.0}, COST))
    assert not await bills.settle(attempt, Settled("p1", "canceled", None, Usage(cost=9.0)))
    assert await doubts(bills) == []
    (line,) = await bills.of_task(story.task_id)
    assert (line.status, line.cost, line.predict_seconds, line.open, line.completed_at) == (
        "canceled",
        0.5,
        2.0,
        False,
        9,
    )


async def test_an_attempt_that_was_left_for_another_is_in_doubt_while_its_task_goes_on(
    bills: Bills, journal: PostgresJournal
) -> None:
    story = Story()
    first = await bought(journal, story, 1, None, in_doubt=True)
    await bought(journal, story, 2, "p2")
    assert await doubts(bills) == [first]


async def test_what_was_paid_beside_a_prediction_is_added_once_and_survives_its_end(
    bills: Bills, journal: PostgresJournal
) -> None:
    story = Story()
    attempt = await bought(journal, story, duplicates=1, in_doubt=True)
    assert not await bills.add(attempt, "stray", COST)  # one had been reckoned with
    assert not await bills.add(attempt, "stray", COST)
    assert await bills.add(attempt, "another", Usage())  # a second one had not
    end = PredictionChange(attempt, story.task_id, 1, "replicate", "succeeded", usage=COST, completed_at=9.0)
    await journal.write(story.then(Completed(1.0), predictions=(end,)))
    (doubt,) = await bills.in_doubt("replicate", 10)
    assert doubt.beside == ["stray", "another"]
    late = Settled("p1", "failed", None, Usage(cost=9.0), True, ["stray"], COST)
    assert not await bills.settle(attempt, late)  # what was read is out of date
    assert await bills.settle(attempt, Settled("p1", "failed", None, Usage(cost=9.0), True, doubt.beside, COST))
    (line,) = await bills.of_task(story.task_id)
    assert (line.status, line.cost, line.predict_seconds, line.duplicates) == ("succeeded", 1.0, 4.0, 2)
    assert await bills.add(attempt, "third", COST)  # after all was settled: at once
    (line,) = await bills.of_task(story.task_id)
    assert (line.cost, line.duplicates, line.open) == (1.5, 3, False)


async def test_a_call_that_was_feared_to_be_paid_twice_and_was_not_is_forgiven(
    bills: Bills, journal: PostgresJournal
) -> None:
    story = Story()
    attempt = await bought(journal, story, in_doubt=True, duplicates=1, completed_at=9.0)
    await journal.write(story.then(Completed(1.0)))
    assert not await bills.settle(attempt, Settled("p1", "succeeded", None, COST))  # nobody has looked
    assert await bills.settle(attempt, Settled("p1", "succeeded", None, COST, searched=True))
    assert [line.duplicates for line in await bills.of_task(story.task_id)] == [0]


async def test_a_prediction_is_known_as_anothers_own_or_as_paid_beside_any(
    bills: Bills, journal: PostgresJournal
) -> None:
    mine, other = await bought(journal, Story(), external_id="mine"), uuid4()
    await bills.add(mine, "stray", Usage())
    assert await bills.known("replicate", "mine", other)
    assert not await bills.known("replicate", "mine", mine)
    assert await bills.known("replicate", "stray", mine)
    assert not await bills.known("openai", "mine", other)


async def test_an_id_that_another_attempt_has_is_not_written_down_twice(bills: Bills, journal: PostgresJournal) -> None:
    story = Story()
    await bought(journal, Story(), external_id="theirs")
    attempt = await bought(journal, story, external_id=None, in_doubt=True)
    await journal.write(story.then(Cancelled()))
    assert await bills.settle(attempt, Settled("theirs", "canceled", None, COST))
    assert [line.external_id for line in await bills.of_task(story.task_id)] == [None]
