"""The journal writes all of an entry or nothing, in order, in groups, and says what became of it."""

from __future__ import annotations

import pytest
import trio

from engine.ports import Committed, Refused
from persistence.journal.journal import PostgresJournal
from persistence.pool import Pool
from persistence.store import PostgresTaskStore
from tests.persistence.entries import Story


@pytest.fixture
async def journal(database: Pool, nursery: trio.Nursery) -> PostgresJournal:
    journal = PostgresJournal(database)
    nursery.start_soon(journal.flush)
    return journal


async def test_a_committed_task_is_read_back_as_it_was(database: Pool, journal: PostgresJournal) -> None:
    story = Story()
    assert await journal.write(story.begin()) == Committed()
    assert await journal.write(story.start()) == Committed()
    assert await journal.write(story.complete()) == Committed()
    assert await PostgresTaskStore(database).load(story.task_id) == story.state


async def test_the_first_terminal_outcome_wins(journal: PostgresJournal) -> None:
    story = Story()
    await journal.write(story.begin())
    await journal.write(story.start())
    zombie = Story(story.state, story.task_id)
    assert await journal.write(story.complete()) == Committed()
    assert await journal.write(zombie.complete()) == Refused("terminal")
