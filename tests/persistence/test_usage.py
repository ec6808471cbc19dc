"""What users have used: by day and model, of attempts that ended, failed or still run, answered by an index."""

from __future__ import annotations

from datetime import date, timedelta
from uuid import uuid4

import psycopg
from attrs import evolve

from engine.ports import PredictionChange
from engine.tasks.events import Completed, Started, Usage
from persistence.journal.journal import PostgresJournal
from persistence.pool import Pool
from persistence.usage import BY_DAY, DayOfUse, UsageStore
from tests.persistence.entries import Story

DAY = date(2026, 3, 14)
NOON = 1_773_489_600.0  # 2026-03-14 12:00 UTC
HOURS = 3600.0


def attempt(story: Story, number: int, at: float, usage: Usage | None, ended: bool = True) -> PredictionChange:
    return PredictionChange(
        uuid4(), story.task_id, number, "simulate", "succeeded" if ended else "processing",
        usage=usage, started_at=at - 60, completed_at=at if ended else None,
    )  # fmt: skip


async def ran(journal: PostgresJournal, *attempts: tuple[float, Usage | None], user: str = "ada") -> Story:
    """A finished task of the user with one attempt for each end."""
    story = Story()
    await journal.write(story.begin(user))
    predictions = tuple(attempt(story, number, *told) for number, told in enumerate(attempts, 1))
    await journal.write(story.then(Completed(1.0), predictions=predictions))
    return story


async def test_attempts_are_summed_by_the_day_on_which_they_ended(database: Pool, journal: PostgresJournal) -> None:
    llm = Usage(input_tokens=10, output_tokens=20, cost=0.5)
    await ran(journal, (NOON - 24 * HOURS, llm), (NOON, llm))
    await ran(journal, (NOON + 11 * HOURS, Usage(predict_seconds=2.5, cost=0.25)))
    await ran(journal, (NOON, llm), user="bob")
    assert await UsageStore(database).since("ada", DAY - timedelta(days=1)) == (
        DayOfUse(DAY, "simulate", 2, 2, 10, 20, 2.5, 0.75),
        DayOfUse(DAY - timedelta(days=1), "simulate", 1, 1, 10, 20, None, 0.5),
    )


async def test_the_day_turns_at_midnight_utc_wherever_the_database_is(
    database: Pool, journal: PostgresJournal, conninfo: str
) -> None:
    async with database.connection() as connection:
        name = connection.info.dbname
        await connection.execute(f"ALTER DATABASE {name} SET timezone = 'Pacific/Auckland'")
    await ran(journal, (NOON - 12 * HOURS - 1, Usage(cost=1.0)), (NOON - 12 * HOURS, Usage(cost=2.0)))
    with psycopg.connect(conninfo) as connection:
        assert connection.execute("SHOW timezone").fetchone() == ("Pacific/Auckland",)
        rows = connection.execute(BY_DAY, {"user": "ada", "since": DAY}).fetchall()
    assert [(row[0], row[-1]) for row in rows] == [(DAY, 2.0)]


async def test_a_figure_that_nobody_told_is_none_and_a_running_attempt_counts(
    database: Pool, journal: PostgresJournal
) -> None:
    story = Story()
    await journal.write(story.begin())
    await journal.write(story.then(Started("p", "m"), attempt=1, predictions=(attempt(story, 1, NOON, None, False),)))
    assert await UsageStore(database).since("ada", DAY) == (DayOfUse(DAY, "simulate", 1, 1, None, None, None, None),)


async def test_an_attempt_that_was_written_before_the_call_takes_its_figures_at_its_end(
    database: Pool, journal: PostgresJournal
) -> None:
    story = Story()
    await journal.write(story.begin())
    intent = attempt(story, 1, NOON, None, ended=False)
    await journal.write(story.then(Started("p", "m"), attempt=1, predictions=(intent,)))
    end = evolve(intent, completed_at=NOON, usage=Usage(3, 4, 5.0, 6.0))
    await journal.write(story.then(Completed(1.0), predictions=(end,)))
    assert await UsageStore(database).since("ada", DAY) == (DayOfUse(DAY, "simulate", 1, 1, 3, 4, 5.0, 6.0),)
    assert await UsageStore(database).spent_on("ada", DAY) == 6.0
    assert await UsageStore(database).spent_on("ada", DAY - timedelta(days=1)) == 0.0


async def test_a_later_word_on_an_attempt_does_not_erase_what_it_used(database: Pool, journal: PostgresJournal) -> None:
    story = await ran(journal, (NOON, Usage(3, 4, 5.0, 6.0)))
    async with database.connection() as connection:
        cursor = await connection.execute("SELECT id FROM predictions")
        ((known,),) = await cursor.fetchall()
    late = PredictionChange(known, story.task_id, 1, "simulate", "succeeded", logs="late")
    await journal.write(story.then(predictions=(late,)))
    assert await UsageStore(database).since("ada", DAY) == (DayOfUse(DAY, "simulate", 1, 1, 3, 4, 5.0, 6.0),)


async def test_an_unknown_user_and_one_that_cannot_be_stored_have_used_nothing(database: Pool) -> None:
    assert await UsageStore(database).since("nobody", DAY) == ()
    assert await UsageStore(database).since("nul\0", DAY) == ()


FILL = """
    INSERT INTO users (id, external_id)
    SELECT ('00000000-0000-0000-0000-' || lpad(to_hex(n), 12, '0'))::uuid, 'u' || n FROM generate_series(0, 99) n;
    INSERT INTO tasks (id, user_id, model_id, model, provider, status, priority, queue, input, progress, attempt,
                       max_attempts, version, created_at, completed_at)
    SELECT gen_random_uuid(), ('00000000-0000-0000-0000-' || lpad(to_hex(n % 100), 12, '0'))::uuid,
           gen_random_uuid(), 'm', 'p', CASE WHEN n % 70 = 0 THEN 'queued' ELSE 'completed' END, 4, 'q', '{}',
           1, 1, 3, 1,
           now() - n * interval '10 minutes',
           CASE WHEN n % 70 = 0 THEN NULL ELSE now() - n * interval '10 minutes' END
    FROM generate_series(1, 20000) n;
    INSERT INTO predictions (id, task_id, attempt, provider, status)
    SELECT gen_random_uuid(), id, 1, 'p', 's' FROM tasks;
    ANALYZE
"""


async def test_a_users_usage_is_found_by_indices_alone(database: Pool) -> None:
    async with database.connection() as connection:
        await connection.execute(FILL)
        first = date.today() - timedelta(days=7)
        cursor = await connection.execute("EXPLAIN " + BY_DAY, {"user": "u7", "since": first})
        plan = "\n".join(row[0] for row in await cursor.fetchall())
    assert "tasks_of_user_by_end" in plan, plan
    assert "predictions_task" in plan, plan
    assert "Seq Scan on tasks" not in plan, plan
    assert "Seq Scan on predictions" not in plan, plan
