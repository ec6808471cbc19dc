"""The line keeps the order of each task, whoever takes from it, and forgets nothing."""

from __future__ import annotations

import random
from uuid import UUID

import trio

from engine.tasks.events import Responded
from persistence.journal.line import BATCH_ENTRIES, Line
from persistence.journal.rows import Pending, prepare
from tests.persistence.entries import Story


def pending(story: Story) -> Pending:
    return prepare(story.then(Responded("x")) if story.state else story.begin(), lambda receipt: None)


def put(line: Line, entry: Pending) -> None:
    line.enter(entry)
    line.join(entry)


def settle(line: Line, entry: Pending) -> None:
    entry.settled = True
    line.leave(entry)
    line.done(entry)


async def test_a_batch_holds_one_entry_of_a_task_and_each_comes_in_its_order() -> None:
    dice, line = random.Random(1), Line()
    stories = [Story() for _ in range(5)]
    for _ in range(100):
        put(line, pending(dice.choice(stories)))
    seen: dict[UUID, list[int]] = {story.task_id: [] for story in stories}
    while line.count:
        batch = await line.take(0)
        assert len({entry.task_id for entry in batch}) == len(batch)
        for entry in batch:
            if dice.random() < 0.7:  # the others are put back
                seen[entry.task_id].append(entry.entry.events[0].seq)
                settle(line, entry)
        line.put_back(0)
    assert all(seqs == list(range(1, len(seqs) + 1)) for seqs in seen.values())
    assert sum(map(len, seen.values())) == 100
    assert line.bytes == 0


async def test_every_lane_that_sleeps_is_woken() -> None:
    line, took = Line(), list[int]()
    async with trio.open_nursery() as nursery:

        async def lane(number: int) -> None:
            for entry in await line.take(number):
                settle(line, entry)
            took.append(number)
            line.put_back(number)

        for number in range(3):
            nursery.start_soon(lane, number)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            put(line, pending(Story()))
            await trio.testing.wait_all_tasks_blocked()
    assert sorted(took) == [0, 1, 2]


async def test_what_was_settled_while_it_waited_is_not_taken() -> None:
    line = Line()
    first, second = pending(Story()), pending(Story())
    put(line, first)
    put(line, second)
    settle(line, first)
    assert await line.take(0) == [second]


async def test_a_batch_is_bounded() -> None:
    line = Line()
    for _ in range(BATCH_ENTRIES + 1):
        put(line, pending(Story()))
    assert len(await line.take(0)) == BATCH_ENTRIES
    assert len(await line.take(1)) == 1


async def test_everybody_who_waits_for_the_end_is_told() -> None:
    line, entry = Line(), pending(Story())
    put(line, entry)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.emptied)
        nursery.start_soon(line.emptied)
        await trio.testing.wait_all_tasks_blocked()
        await line.take(0)
        settle(line, entry)
