"""History, events and users read back: by pages, by index, and never an error for a strange question."""

from __future__ import annotations

from uuid import uuid4

import pytest
import trio

from engine.errors import UserError
from engine.ports import Model, NameTaken, StorageDown
from engine.tasks.state import Status
from persistence.journal.journal import PostgresJournal
from persistence.models import PostgresModelStore
from persistence.pool import Pool
from persistence.removal import Removal
from persistence.retention import Retention
from persistence.store import PostgresTaskStore, read_cursor, write_cursor
from persistence.users import PostgresUserStore
from tests.persistence.entries import Completed, Story
from tests.postgres import Outage

# --- history ----------------------------------------------------------------------------------------------


async def test_history_is_the_users_own_newest_first_page_by_page(
    journal: PostgresJournal, store: PostgresTaskStore
) -> None:
    stories = [Story() for _ in range(7)]
    for story in stories:
        await journal.write(story.begin("ada"))
    await journal.write(Story().begin("bob"))
    seen, cursor = [], None
    for size in (3, 3, 1):
        page = await store.history("ada", cursor=cursor, limit=3)
        assert len(page.tasks) == size
        seen += [task.id for task in page.tasks]
        cursor = page.cursor
    assert cursor is None
    assert seen == [story.task_id for story in reversed(stories)]


async def test_history_is_filtered_by_status_and_model(journal: PostgresJournal, store: PostgresTaskStore) -> None:
    done, waiting = Story(), Story()
    await journal.write(waiting.begin())
    await journal.write(done.begin())
    await journal.write(done.then(Completed(1.0)))
    assert [task.id for task in (await store.history("ada", Status.COMPLETED)).tasks] == [done.task_id]
    assert len((await store.history("ada", model="simulate")).tasks) == 2
    assert (await store.history("ada", model="another")).tasks == ()


@pytest.mark.parametrize("cursor", ["", "nonsense", "é", "AAAA", "=" * 40, "A" * 33])
async def test_a_cursor_that_is_not_ours_is_the_callers_mistake(cursor: str, store: PostgresTaskStore) -> None:
    with pytest.raises(UserError, match="invalid_cursor"):
        await store.history("ada", cursor=cursor)


def test_a_cursor_comes_back_as_it_went() -> None:
    place = (1_700_000_000_123_456, uuid4())
    assert read_cursor(write_cursor(*place)) == place


async def test_what_postgres_cannot_hold_is_not_found(store: PostgresTaskStore) -> None:
    assert (await store.history("a\0b")).tasks == ()
    assert (await store.history("ada", model="\ud800")).tasks == ()
    assert await store.by_idempotency_key("ada", "\0") is None


async def test_an_unknown_task_is_none(store: PostgresTaskStore) -> None:
    assert await store.load(uuid4()) is None
    assert await store.events(uuid4()) == ()


async def test_events_are_read_after_a_seq(journal: PostgresJournal, store: PostgresTaskStore) -> None:
    story = Story()
    for entry in (story.begin(), story.start(), story.complete()):
        await journal.write(entry)
    assert await store.events(story.task_id, after=1, limit=2) == tuple(story.events[1:3])


async def test_without_a_database_every_reader_is_told(store: PostgresTaskStore, outage: Outage) -> None:
    await trio.to_thread.run_sync(outage.begin)
    with pytest.raises(StorageDown):
        await store.load(uuid4())


# --- plans ------------------------------------------------------------------------------------------------

QUESTIONS = {
    "history": (
        "SELECT * FROM tasks WHERE user_id = '00000000-0000-0000-0000-000000000001' AND archived_at IS NULL "
        "ORDER BY created_at DESC, id DESC LIMIT 50",
        "tasks_history",
    ),
    "unfinished": (
        "SELECT * FROM tasks WHERE status IN ('queued', 'processing') ORDER BY priority, created_at, id LIMIT 500",
        "tasks_unfinished",
    ),
    "events": (
        "SELECT * FROM task_events WHERE task_id = '00000000-0000-0000-0000-000000000001' AND seq > 3 ORDER BY seq",
        "task_events_pkey",
    ),
    "model": ("SELECT * FROM tasks WHERE model_id = '00000000-0000-0000-0000-000000000007'", "tasks_model"),
    "idempotency": (
        "SELECT id FROM tasks WHERE user_id = '00000000-0000-0000-0000-000000000001' AND idempotency_key = 'k7'",
        "tasks_idempotency",
    ),
    "archival": (
        "SELECT id FROM tasks WHERE archived_at IS NULL AND completed_at IS NOT NULL "
        "AND completed_at < now() - interval '30 days' ORDER BY completed_at LIMIT 1000",
        "tasks_finished",
    ),
}
FILL = """
    INSERT INTO users (id, external_id)
    SELECT ('00000000-0000-0000-0000-' || lpad(to_hex(n), 12, '0'))::uuid, 'u' || n FROM generate_series(0, 99) n;
    INSERT INTO tasks (id, user_id, model_id, model, provider, status, priority, queue, input, progress, attempt,
                       max_attempts, version, idempotency_key, created_at, completed_at)
    SELECT gen_random_uuid(), ('00000000-0000-0000-0000-' || lpad(to_hex(n % 100), 12, '0'))::uuid,
           ('00000000-0000-0000-0000-' || lpad(to_hex(n % 50), 12, '0'))::uuid, 'm', 'p',
           CASE WHEN n % 7 = 0 THEN 'queued' ELSE 'completed' END, n % 10, 'q', '{}', 1, 1, 3, 1, 'k' || n,
           now() - n * interval '1 minute', CASE WHEN n % 7 = 0 THEN NULL ELSE now() - n * interval '1 minute' END
    FROM generate_series(1, 20000) n;
    INSERT INTO task_events (task_id, seq, type, attempt, actor, payload, at)
    SELECT id, s, 'created', 0, 'user', '{}', now() FROM tasks, generate_series(1, 2) s;
    ANALYZE
"""


async def test_every_question_is_answered_by_its_index(database: Pool) -> None:
    async with database.connection() as connection:
        await connection.execute(FILL)
        for query, index in QUESTIONS.values():
            cursor = await connection.execute("EXPLAIN " + query)  # type: ignore[arg-type]
            plan = "\n".join(row[0] for row in await cursor.fetchall())
            assert index in plan, plan
            assert "Seq Scan on task" not in plan, plan
            assert "Sort" not in plan or "Incremental" in plan, plan


# --- models, users, webhooks, retention -------------------------------------------------------------------


def model(**values: object) -> Model:
    made: dict[str, object] = {"id": uuid4(), "name": "m", "provider": "p", "slug": "s", "version": "1"}
    return Model(**made | {"category": "text", "price": {"second": 0.1}} | values)  # type: ignore[arg-type]


async def test_models_are_put_replaced_and_removed(database: Pool) -> None:
    models = PostgresModelStore(database)
    one = model(fallbacks=(uuid4(),), input_schema={"type": "object"})
    await models.put(one)
    assert await models.all() == (one,)
    await models.put(renamed := model(id=one.id, name="n"))
    assert await models.all() == (renamed,)
    assert await models.remove(one.id)
    assert not await models.remove(one.id)


@pytest.mark.parametrize("twin", [{"slug": "other"}, {"name": "other"}])
async def test_a_name_or_an_origin_is_taken_once(twin: dict[str, object], database: Pool) -> None:
    models = PostgresModelStore(database)
    await models.put(model())
    with pytest.raises(NameTaken):
        await models.put(model(**twin))


async def test_preferences_are_written_through_and_read_in_an_outage(database: Pool, outage: Outage) -> None:
    users = PostgresUserStore(database)
    assert await users.preferences("ada") == {}
    await users.put_preferences("ada", {"theme": "dark"})
    assert await PostgresUserStore(database).preferences("ada") == {"theme": "dark"}
    await trio.to_thread.run_sync(outage.begin)
    assert await users.preferences("ada") == {"theme": "dark"}
    with pytest.raises(StorageDown):
        await users.put_preferences("ada", {})
    assert await users.preferences("ada") == {"theme": "dark"}


async def test_preferences_changed_elsewhere_are_seen_after_a_while(database: Pool) -> None:
    now = 0.0
    here, elsewhere = PostgresUserStore(database, clock=lambda: now), PostgresUserStore(database)
    await here.put_preferences("ada", {"n": 1})
    await elsewhere.put_preferences("ada", {"n": 2})
    assert await here.preferences("ada") == {"n": 1}
    now = 61.0
    assert await here.preferences("ada") == {"n": 2}


async def test_old_tasks_are_archived_then_deleted_with_all_that_is_theirs(
    database: Pool, journal: PostgresJournal, store: PostgresTaskStore
) -> None:
    old, running = Story(), Story()
    await journal.write(old.begin())
    await journal.write(old.then(Completed(1.0)))
    await journal.write(running.begin())
    retention = Retention(database)
    assert await retention.archive(older_than=3600) == 0
    assert await retention.archive(older_than=0) == 1
    assert [task.id for task in (await store.history("ada")).tasks] == [running.task_id]
    assert await store.load(old.task_id) == old.state
    removal = Removal(database)
    assert await removal.delete_archived(archived_for=3600) == 0
    assert await removal.delete_archived(archived_for=0) == 1
    assert await store.events(old.task_id) == ()
