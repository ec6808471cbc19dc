"""Every trouble of the database is waited out or told apart: nothing is refused for what was not its own fault.

The troubles are PostgreSQL's own, made by triggers that raise them, kill their own backend, or by locks held elsewhere.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from uuid import uuid4

import psycopg
import pytest
import trio

from engine.jobs.job import Cancel, JobChange, NewJob
from engine.ports import Buffered, Committed, Entry, PredictionChange, Receipt, StorageDown
from engine.tasks.events import Output
from persistence import outage
from persistence.connection import TrioConnection
from persistence.journal.journal import PATIENCE, PostgresJournal
from persistence.pool import Pool
from persistence.store import PostgresTaskStore
from tests.persistence.entries import Completed, OutputStored, Responded, Story

Fault = Callable[..., AbstractAsyncContextManager[None]]
KILL = "PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(1)"


@pytest.fixture
def fault(conninfo: str, database: Pool) -> Fault:
    """Lets writing to a table go wrong, `times` times in all, for rows that meet a condition."""

    @asynccontextmanager
    async def fault(
        table: str, body: str, times: int = 1, when: str = "true", at_commit: bool = False
    ) -> AsyncIterator[None]:
        # a sequence counts what is rolled back, too
        make = f"""
            CREATE SEQUENCE faults;
            CREATE FUNCTION go_wrong() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF ({when}) AND nextval('faults') <= {times} THEN {body}; END IF; RETURN NEW;
            END $$;
            CREATE {"CONSTRAINT" if at_commit else ""} TRIGGER fault {"AFTER" if at_commit else "BEFORE"}
                INSERT OR UPDATE ON {table} {"DEFERRABLE INITIALLY DEFERRED" if at_commit else ""}
                FOR EACH ROW EXECUTE FUNCTION go_wrong()
        """
        unmake = f"DROP TRIGGER fault ON {table}; DROP FUNCTION go_wrong; DROP SEQUENCE faults"
        with psycopg.connect(conninfo, autocommit=True) as admin:
            admin.execute(make.encode())
            try:
                yield
            finally:
                admin.execute("SET lock_timeout = '5s'")
                admin.execute(unmake.encode())

    return fault


class Told(list[Receipt]):
    async def until(self, number: int, seconds: float = 20.0) -> None:
        with trio.fail_after(seconds):
            while len(self) < number:  # noqa: ASYNC110
                await trio.sleep(0.005)


def raises(code: str) -> str:
    return f"RAISE EXCEPTION 'made for a test' USING ERRCODE = '{code}'"


# --- errors that are nobody's fault -----------------------------------------------------------------------

CLASHES = {"serialization": "40001", "deadlock": "40P01", "timeout": "57014"}
AWAY = {
    "disk full": "53100",
    "too many connections": "53300",
    "read-only": "25006",
    "shutdown": "57P01",
    "input and output": "58030",
    "internal": "XX000",
    "not permitted": "42501",
    "no such table": "42P01",
    "plan out of date": "0A000",
}


@pytest.mark.parametrize("code", CLASHES.values(), ids=CLASHES)
async def test_a_clash_is_tried_again_and_nobody_hears_of_it(code: str, journal: PostgresJournal, fault: Fault) -> None:
    told, stories = Told(), [Story() for _ in range(20)]
    async with fault("tasks", raises(code), times=2):
        for story in stories:
            journal.submit(story.begin(), told.append)
        await told.until(20)
    assert told == [Committed()] * 20
    assert journal.health().up


@pytest.mark.parametrize("code", AWAY.values(), ids=AWAY)
async def test_a_database_that_refuses_everything_is_waited_out(
    code: str, journal: PostgresJournal, store: PostgresTaskStore, fault: Fault
) -> None:
    told, stories = Told(), [Story() for _ in range(20)]
    async with fault("task_events", raises(code), times=1_000_000):
        for story in stories:
            journal.submit(story.begin(), told.append)
        await told.until(20)
        assert told == [Buffered()] * 20
        assert not journal.health().up
    await told.until(40)
    assert told[20:] == [Committed()] * 20
    assert journal.health().up
    for story in stories:
        assert await store.load(story.task_id) == story.state


async def test_an_entry_that_alone_makes_the_server_fail_waits_and_its_neighbours_do_not(
    journal: PostgresJournal, store: PostgresTaskStore, fault: Fault
) -> None:
    told, unlucky, story = Told(), Told(), Story()
    async with fault("tasks", raises("XX000"), times=1_000_000, when="NEW.idempotency_key = 'cursed'"):
        for number in range(40):
            journal.submit(Story().begin(), told.append)
            if number == 20:
                journal.submit(story.begin(idempotency_key="cursed"), unlucky.append)
        with trio.fail_after(40):
            while told.count(Committed()) < 40:  # noqa: ASYNC110
                await trio.sleep(0.01)
        await unlucky.until(1)
        assert unlucky == [Buffered()]
        assert await journal.write(Story().begin()) == Committed()
    await unlucky.until(2)
    assert unlucky == [Buffered(), Committed()]
    assert await store.load(story.task_id) == story.state


# --- backends that die ------------------------------------------------------------------------------------


def tale() -> tuple[Story, tuple[Entry, ...]]:
    """A task with its job, an attempt's row, an output and its end."""
    story = Story()
    output = Output(0, "image", "png", "https://x/y.png", "image/png", 3, "ab" * 32)
    attempt = PredictionChange(uuid4(), story.task_id, 1, "simulate", "intent")
    return story, (
        story.begin(job=NewJob(uuid4(), "task", task_id=story.task_id, user="ada")),
        story.then(OutputStored(output), outputs=(output,), predictions=(attempt,)),
        story.then(Completed(1.0)),
    )


@pytest.mark.parametrize("at_commit", [False, True], ids=["in the statement", "at the commit"])
@pytest.mark.parametrize("table", ["users", "tasks", "task_events", "predictions", "outputs", "jobs"])
async def test_a_backend_that_is_killed_is_replaced_and_nobody_hears_of_it(
    table: str, at_commit: bool, database: Pool, journal: PostgresJournal, store: PostgresTaskStore, fault: Fault
) -> None:
    stories = [tale() for _ in range(5)]
    told: list[Receipt] = []
    async with fault(table, KILL, times=2, at_commit=at_commit):
        for _, entries in stories:
            for entry in entries:
                journal.submit(entry, told.append)
        with trio.fail_after(20):
            await journal.drained()
    # the second kill in a row makes it look like an outage, the first one does not
    assert [receipt for receipt in told if receipt != Buffered()] == [Committed()] * 15
    for story, _ in stories:
        assert await store.load(story.task_id) == story.state
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM outputs), (SELECT count(*) FROM predictions)"
        )
        assert await cursor.fetchone() == (5, 5, 5)


async def test_one_killed_backend_costs_nobody_durability(journal: PostgresJournal, fault: Fault) -> None:
    told = Told()
    async with fault("task_events", KILL):
        for _ in range(20):
            journal.submit(Story().begin(), told.append)
        await told.until(20)
    assert told == [Committed()] * 20


async def test_connections_that_were_killed_while_idle_are_not_handed_out(
    conninfo: str, database: Pool, journal: PostgresJournal, store: PostgresTaskStore
) -> None:
    async with database.connection(), database.connection(), database.connection():
        pass
    with psycopg.connect(conninfo, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                      " WHERE datname = current_database() AND pid <> pg_backend_pid()")  # fmt: skip
    await database.wait_up()
    assert await store.load(uuid4()) is None
    assert await journal.write(Story().begin()) == Committed()


async def test_readers_of_a_server_that_stands_still_are_told_so(
    database: Pool, conninfo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch has given the database up: whoever still waits for an answer hears it, too."""
    ended: list[str] = []

    async def read() -> None:
        with pytest.raises(StorageDown):
            async with database.connection() as connection:
                await connection.execute("SELECT pg_sleep(60)")
        ended.append("told")

    with trio.fail_after(10):
        async with trio.open_nursery() as readers:
            for _ in range(3):
                readers.start_soon(read)
            while database.health().open < 3:  # noqa: ASYNC110
                await trio.sleep(0.01)
            await trio.sleep(0.05)
            database._fall("it stands still")
    assert ended == ["told"] * 3


async def test_who_stands_still_in_a_transaction_loses_it(database: Pool, conninfo: str) -> None:
    """A server that is stopped must not hold its rows against the others for ever."""
    async with database.connection() as connection:
        cursor = await connection.execute("SHOW idle_in_transaction_session_timeout")
        assert await cursor.fetchone() == ("10s",)
    async with await TrioConnection.connect(conninfo) as stopped:
        await stopped.execute("SET idle_in_transaction_session_timeout = '50ms'; BEGIN")
        await stopped.dead()
        with pytest.raises(psycopg.Error) as lost:
            await stopped.execute("COMMIT")
    assert outage.is_outage(lost.value)


# --- locks held elsewhere ---------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["tasks", "jobs"])
async def test_a_row_that_somebody_keeps_locked_holds_up_its_own_task_alone(
    what: str, conninfo: str, journal: PostgresJournal, store: PostgresTaskStore
) -> None:
    held, told, others = Story(), Told(), Told()
    job = NewJob(uuid4(), "task", task_id=held.task_id, user="ada")
    assert await journal.write(held.begin(job=job)) == Committed()
    running = [Story() for _ in range(30)]
    for story in running:
        assert await journal.write(story.begin()) == Committed()
    async with await TrioConnection.connect(conninfo) as operator, operator.transaction():
        column = "task_id" if what == "jobs" else "id"
        await operator.execute(f"SELECT FROM {what} WHERE {column} = %s FOR UPDATE", (held.task_id,))  # type: ignore[arg-type]
        began = trio.current_time()
        for number, story in enumerate(running):
            journal.submit(story.start(), others.append)
            if number == 10:
                journal.submit(held.then(Responded("x"), job=JobChange(job.id, Cancel())), told.append)
                journal.submit(held.complete(), told.append)
        await others.until(30)
        assert others == [Committed()] * 30
        assert trio.current_time() - began < PATIENCE
        await told.until(1)
        assert told == [Buffered()]
        assert await journal.write(Story().begin()) == Committed()
        assert journal.health().up
    await told.until(3)
    assert told == [Buffered(), Committed(), Committed()]
    assert await store.load(held.task_id) == held.state


async def test_a_table_that_somebody_keeps_locked_is_an_outage_and_over_when_it_is_free(
    conninfo: str, journal: PostgresJournal
) -> None:
    told = Told()
    async with await TrioConnection.connect(conninfo) as operator, operator.transaction():
        await operator.execute("LOCK TABLE task_events")
        for _ in range(10):
            journal.submit(Story().begin(), told.append)
        await told.until(10)
        assert told == [Buffered()] * 10
    await told.until(20)
    assert told[10:] == [Committed()] * 10


async def test_servers_that_race_for_the_same_keys_in_other_orders_never_block_each_other(
    database: Pool, nursery: trio.Nursery, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever order a batch brings keys, they are taken in one: no circle of waiting, which costs a second."""
    failed: list[object] = []
    monkeypatch.setattr("persistence.journal.batch.Writer.count_failure", lambda writer: failed.append(writer) or 1)
    journals = PostgresJournal(database, lanes=1), PostgresJournal(database, lanes=1)
    for journal in journals:
        nursery.start_soon(journal.flush)
    async with fault("tasks", "PERFORM pg_sleep(0.004)", times=1_000_000):  # both are at it at the same time
        for race in range(3):
            told = Told(), Told()
            for number in range(20):
                for which, journal in enumerate(journals):
                    key = number if which else 19 - number
                    journal.submit(Story().begin("ada", idempotency_key=f"{race}-{key}"), told[which].append)
            for each in told:
                await each.until(20)
            assert sum(each.count(Committed()) for each in told) == 20
    assert not failed
