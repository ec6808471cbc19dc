"""Deleting: a task leaves no row but a note of its files and the sum of what it used; outputs end when they expire."""

from __future__ import annotations

import time
from datetime import date
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import trio

from engine.jobs.job import Cancel, JobChange, NewJob
from engine.ports import PredictionChange, Refused
from engine.tasks.events import Completed, Failed, Output, Requeued, Usage
from persistence.journal.journal import PostgresJournal
from persistence.pool import Pool
from persistence.removal import Removal
from persistence.retention import Retention
from persistence.store import PostgresTaskStore
from persistence.usage import UsageStore
from persistence.webhooks import Delivery, WebhookStore
from tests.persistence.entries import Cancelled, OutputStored, Story

TABLES = ("tasks", "task_events", "task_snapshots", "predictions", "outputs", "jobs")


async def rows(pool: Pool, query: str, *values: object) -> list[Any]:
    async with pool.connection() as connection:
        cursor = await connection.execute(query, values)
        return await cursor.fetchall()


def output(story: Story, index: int, attempt: int = 1, **more: Any) -> Output:
    name = f"{story.task_id}/{attempt}/{index}/abc.png"
    return Output(index, "image", "png", f"/artifacts/{name}", "image/png", 10, "abc", name, **more)


async def with_outputs(journal: PostgresJournal, *outputs: Output, story: Story | None = None) -> Story:
    """A running task with these outputs and one attempt that is under way at the provider as `ext-…`."""
    story = story or Story()
    await journal.write(story.begin(job=NewJob(uuid4(), "task", task_id=story.task_id)))
    await journal.write(story.start())
    for each in outputs:
        await journal.write(story.then(OutputStored(each), outputs=(each,)))
    return story


def attempt(story: Story, **more: Any) -> PredictionChange:
    now = time.time()
    return PredictionChange(
        uuid4(),
        story.task_id,
        1,
        "replicate",
        "succeeded",
        external_id=f"ext-{story.task_id}",
        completed_at=now,
        **more,
    )


async def test_a_task_that_is_over_goes_with_all_its_rows_and_its_files_are_noted(
    database: Pool, journal: PostgresJournal, store: PostgresTaskStore
) -> None:
    story = Story()
    first, second, void = output(story, 0, 2), output(story, 1, 2), output(story, 0, 1)
    await with_outputs(journal, void, first, second, story=story)  # an attempt that failed had stored one, too
    await journal.write(story.then(Completed(1.0), predictions=(attempt(story),)))
    names = await Removal(database).delete(story.task_id)
    assert names == tuple(sorted((void.object_name, first.object_name, second.object_name)))
    assert sorted(await Removal(database).due()) == list(names)
    assert await store.load(story.task_id) is None
    for table in TABLES[:-1]:
        assert await rows(database, f"SELECT 1 FROM {table}") == []


async def test_its_job_goes_when_that_is_over(database: Pool, journal: PostgresJournal) -> None:
    story, job = Story(), uuid4()
    await journal.write(story.begin(job=NewJob(job, "task", task_id=story.task_id), job_id=job))
    await journal.write(story.then(Cancelled(), job=JobChange(job, Cancel())))
    assert await rows(database, "SELECT state FROM jobs") == [("cancelled",)]
    assert await Removal(database).delete(story.task_id) == ()
    assert await rows(database, "SELECT 1 FROM jobs") == []


async def test_a_task_under_way_is_not_deleted_nor_one_that_is_tried_again(
    database: Pool, journal: PostgresJournal, store: PostgresTaskStore
) -> None:
    story, removal = await with_outputs(journal), Removal(database)
    assert await removal.delete(story.task_id) is None
    await journal.write(story.then(Failed("broken", "It broke.", "Try again.", retryable=True)))
    await Retention(database).archive(older_than=0)
    await journal.write(story.then(Requeued(uuid4())))
    assert await removal.delete(story.task_id) is None
    assert await removal.delete_archived(archived_for=0) == 0
    assert await store.load(story.task_id) == story.state
    assert await removal.delete(uuid4()) is None
    assert await removal.due() == ()


async def test_who_comes_too_late_to_try_it_again_is_refused(database: Pool, journal: PostgresJournal) -> None:
    story = await with_outputs(journal)
    await journal.write(story.then(Failed("broken", "It broke.", "Try again.", retryable=True)))
    await Removal(database).delete(story.task_id)
    assert isinstance(await journal.write(story.then(Requeued(uuid4()))), Refused)
    assert await rows(database, "SELECT 1 FROM tasks") == []


async def test_what_deleted_tasks_used_stays_counted(database: Pool, journal: PostgresJournal) -> None:
    usage = UsageStore(database)
    for used in (Usage(1, 2, None, 0.5), Usage(predict_seconds=3.0, cost=0.25), None, Usage(10, 20, 1.0, 1.0)):
        story = await with_outputs(journal)
        await journal.write(story.then(Completed(1.0), predictions=(attempt(story, usage=used),)))
    before = await usage.since("ada", date.min)
    assert [(day.tasks, day.attempts, day.cost) for day in before] == [(4, 4, 1.75)]
    for (task_id,) in (await rows(database, "SELECT id FROM tasks"))[:3]:
        await Removal(database).delete(task_id)
        assert await usage.since("ada", date.min) == before
    await Retention(database).archive(older_than=0)
    assert await Removal(database).delete_archived(archived_for=0) == 1
    assert await usage.since("ada", date.min) == before
    assert await rows(database, "SELECT 1 FROM predictions") == []


async def test_its_deliveries_are_emptied_and_still_known_again(
    database: Pool, journal: PostgresJournal, nursery: trio.Nursery
) -> None:
    story, webhooks = await with_outputs(journal), WebhookStore(database)
    nursery.start_soon(webhooks.run)
    await journal.write(story.then(Completed(1.0), predictions=(attempt(story),)))
    mine = Delivery("msg_1", story.task_id, f"ext-{story.task_id}", "completed", {"output": "a secret"})
    others = Delivery("msg_2", uuid4(), "ext-other", "completed", {"output": "another"})
    assert await webhooks.add(mine)
    assert await webhooks.add(others)
    await Removal(database).delete(story.task_id)
    assert await rows(database, "SELECT payload FROM webhook_events ORDER BY webhook_id") == [({},), (others.payload,)]
    assert not await webhooks.add(mine)
    assert await rows(database, "SELECT webhook_id FROM webhook_events WHERE NOT processed") == [("msg_2",)]


async def test_an_output_that_has_expired_goes_and_the_others_stay(
    database: Pool, journal: PostgresJournal, store: PostgresTaskStore
) -> None:
    story, now, removal = Story(), time.time(), Removal(database)
    old, new, lasting = output(story, 0, expires_at=now - 1), output(story, 1, expires_at=now + 60), output(story, 2)
    await with_outputs(journal, old, new, lasting, story=story)
    await journal.write(story.then(Completed(1.0)))
    assert await removal.expire() == 1
    assert await removal.expire() == 0
    assert await removal.due() == (old.object_name,)
    (task,) = (await store.history("ada")).tasks
    assert [each.index for each in task.outputs] == [0, 1, 2], "that there was one is still known"


async def test_a_file_that_is_put_off_is_due_later_and_one_crossed_off_never(
    database: Pool, journal: PostgresJournal
) -> None:
    story, removal = Story(), Removal(database)
    await with_outputs(journal, output(story, 0), output(story, 1), story=story)
    await journal.write(story.then(Completed(1.0)))
    one, other = await removal.delete(story.task_id) or ()
    await removal.cross_off([one])
    await removal.put_off([other])
    assert await removal.due() == ()
    kept = await rows(database, "SELECT name, failures, due_at - updated_at FROM objects_to_delete")
    assert [(name, failures, wait.total_seconds()) for name, failures, wait in kept] == [(other, 1, 120.0)]
    await rows(database, "UPDATE objects_to_delete SET failures = 1000, due_at = now() RETURNING 1")
    assert await removal.due() == (other,)
    await removal.put_off([other])
    assert await rows(database, "SELECT due_at - updated_at = interval '1 day' FROM objects_to_delete") == [(True,)]


async def test_nothing_is_noted_when_the_rows_cannot_be_deleted(
    database: Pool, journal: PostgresJournal, conninfo: str
) -> None:
    """The note and the deletion are one: what breaks the one undoes the other."""
    story = Story()
    await with_outputs(journal, output(story, 0), story=story)
    await journal.write(story.then(Completed(1.0), predictions=(attempt(story),)))
    with psycopg.connect(conninfo) as connection:
        connection.execute("CREATE TABLE keeper (task_id uuid REFERENCES tasks (id))")
        connection.execute("INSERT INTO keeper VALUES (%s)", (story.task_id,))
    try:
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            await Removal(database).delete(story.task_id)
        assert await Removal(database).due() == ()
        assert await rows(database, "SELECT 1 FROM usage_of_deleted") == []
    finally:
        with psycopg.connect(conninfo) as connection:
            connection.execute("DROP TABLE keeper")
