"""The journal writes all of an entry or nothing, in order, in groups, and says what became of it."""

from __future__ import annotations

from uuid import UUID, uuid4

import psycopg
import pytest
import trio
from attrs import evolve

from engine.jobs.job import Cancel, Complete, Fence, JobChange, NewJob
from engine.ports import Buffered, Committed, Duplicate, Entry, JournalFull, PredictionChange, Receipt, Refused
from engine.tasks.events import Output
from persistence.connection import TrioConnection
from persistence.journal.batch import Writer
from persistence.journal.journal import CAUGHT_UP, PostgresJournal
from persistence.journal.rows import Pending, prepare
from persistence.pool import Pool
from persistence.store import PostgresTaskStore
from tests.persistence.entries import Completed, OutputStored, Requeued, Responded, Story
from tests.postgres import Outage


async def count(pool: Pool, query: str, *values: object) -> int:
    async with pool.connection() as connection:
        row = await (await connection.execute(query, values)).fetchone()  # type: ignore[arg-type]
    assert row
    return int(row[0])


class Receipts(list[Receipt]):
    """Collects what a submitter is told; `arrived` waits for the nth receipt."""

    async def arrived(self, number: int) -> None:
        with trio.fail_after(10):
            while len(self) < number:
                await trio.testing.wait_all_tasks_blocked(0.01)


def job_of(story: Story) -> NewJob:
    return NewJob(uuid4(), "task", task_id=story.task_id, user="ada")


# --- whole, or not at all ---------------------------------------------------------------------------------


async def test_a_committed_task_is_read_back_as_it_was(journal: PostgresJournal, store: PostgresTaskStore) -> None:
    story = Story()
    assert await journal.write(story.begin()) == Committed()
    assert await journal.write(story.start()) == Committed()
    assert await journal.write(story.complete()) == Committed()
    assert await store.load(story.task_id) == story.state
    assert await store.events(story.task_id) == tuple(story.events)


async def test_task_event_and_job_are_committed_together(database: Pool, journal: PostgresJournal) -> None:
    story = Story()
    assert await journal.write(story.begin(job=job_of(story))) == Committed()
    for table in ("task_events", "jobs"):
        assert await count(database, f"SELECT count(*) FROM {table} WHERE task_id = %s", story.task_id) == 1


async def test_entries_of_many_tasks_share_a_transaction(journal: PostgresJournal) -> None:
    receipts = Receipts()
    for _ in range(100):
        journal.submit(Story().begin(), receipts.append)
    await receipts.arrived(100)
    assert set(receipts) == {Committed()}
    assert journal.batches <= 2


async def test_entries_of_one_task_keep_their_order(journal: PostgresJournal, store: PostgresTaskStore) -> None:
    story, receipts = Story(), Receipts()
    for entry in (story.begin(), story.start(), story.complete()):
        journal.submit(entry, receipts.append)
    await receipts.arrived(3)
    assert set(receipts) == {Committed()}
    assert await store.load(story.task_id) == story.state


async def test_an_entry_after_a_gap_is_refused(journal: PostgresJournal) -> None:
    story = Story()
    await journal.write(story.begin())
    story.start()  # never submitted
    assert await journal.write(story.complete()) == Refused("conflict")


async def test_an_entry_of_a_task_that_is_not_there_is_refused(journal: PostgresJournal) -> None:
    story = Story()
    story.begin()
    assert await journal.write(story.start()) == Refused("conflict")


# --- one outcome ------------------------------------------------------------------------------------------


async def test_the_first_terminal_outcome_wins(journal: PostgresJournal, store: PostgresTaskStore) -> None:
    story = Story()
    await journal.write(story.begin())
    await journal.write(story.start())
    zombie = Story(story.state, story.task_id)
    assert await journal.write(story.complete()) == Committed()
    assert await journal.write(zombie.then(Completed(99.0))) == Refused("terminal")
    assert await store.load(story.task_id) == story.state


async def test_a_failed_task_can_be_reopened_by_hand(journal: PostgresJournal, store: PostgresTaskStore) -> None:
    story = Story()
    await journal.write(story.begin())
    await journal.write(story.then(Completed(1.0)))
    assert await journal.write(story.then(Requeued(uuid4()))) == Committed()
    assert await store.load(story.task_id) == story.state


async def test_the_log_of_another_writer_stands(journal: PostgresJournal, store: PostgresTaskStore) -> None:
    story = Story()
    await journal.write(story.begin())
    other = Story(story.state, story.task_id)
    await journal.write(story.start())
    assert await journal.write(other.then(Responded("mine"))) == Refused("conflict")
    assert await store.load(story.task_id) == story.state


async def test_the_same_entry_again_is_acknowledged_and_changes_nothing(
    database: Pool, journal: PostgresJournal
) -> None:
    story = Story()
    await journal.write(story.begin())
    entry = story.start()
    assert await journal.write(entry) == Committed()
    assert await journal.write(entry) == Committed()
    assert await count(database, "SELECT count(*) FROM task_events WHERE task_id = %s", story.task_id) == 2


async def test_memory_wins_over_a_row_changed_by_hand_and_the_conflict_is_kept(
    database: Pool, journal: PostgresJournal, store: PostgresTaskStore
) -> None:
    story = Story()
    await journal.write(story.begin())
    async with database.connection() as connection:
        await connection.execute("UPDATE tasks SET priority = 9, version = version + 5 WHERE id = %s", (story.task_id,))
    assert await journal.write(story.start()) == Committed()
    page = await store.history("ada")
    assert page.tasks[0].priority == 4
    found = "SELECT (found->>'priority')::int FROM task_conflicts WHERE task_id = %s AND expected_version = 1"
    assert await count(database, found, story.task_id) == 9


# --- fences -----------------------------------------------------------------------------------------------


async def test_a_stale_fence_refuses_the_whole_entry(
    database: Pool, journal: PostgresJournal, store: PostgresTaskStore
) -> None:
    story = Story()
    job = job_of(story)
    await journal.write(story.begin(job=job))
    before = story.state
    stale = JobChange(job.id, Complete(), Fence(job.id, 1, uuid4()))
    assert await journal.write(story.then(Completed(1.0), job=stale)) == Refused("stale_fence")
    assert await store.load(story.task_id) == before
    assert await count(database, "SELECT count(*) FROM jobs WHERE state = 'available'") == 1


async def test_a_refused_entry_leaves_its_job_untouched(database: Pool, journal: PostgresJournal) -> None:
    story = Story()
    job = job_of(story)
    await journal.write(story.begin(job=job))
    story.start()  # never submitted: the next entry does not follow
    cancel = story.then(Completed(1.0), job=JobChange(job.id, Cancel()))
    assert await journal.write(cancel) == Refused("conflict")
    assert await count(database, "SELECT count(*) FROM jobs WHERE state = 'available'") == 1


async def test_a_refused_entry_does_not_hold_up_its_neighbours(journal: PostgresJournal) -> None:
    finished = Story()
    await journal.write(finished.begin())
    late = Story(finished.state, finished.task_id)
    await journal.write(finished.then(Completed(1.0)))
    receipts, good = Receipts(), [Story() for _ in range(20)]
    for number, story in enumerate(good):
        journal.submit(story.begin(), receipts.append)
        if number == 10:
            journal.submit(late.then(Completed(2.0)), receipts.append)
    await receipts.arrived(21)
    assert receipts.count(Committed()) == 20
    assert receipts.count(Refused("terminal")) == 1


# --- idempotency keys -------------------------------------------------------------------------------------


async def test_a_key_that_is_taken_names_its_task(journal: PostgresJournal, store: PostgresTaskStore) -> None:
    first, second = Story(), Story()
    assert await journal.write(first.begin(idempotency_key="k")) == Committed()
    assert await journal.write(second.begin(idempotency_key="k")) == Duplicate(first.task_id)
    assert await store.load(second.task_id) is None
    assert await store.by_idempotency_key("ada", "k") == first.task_id


async def test_the_same_key_of_another_user_is_another_key(journal: PostgresJournal) -> None:
    assert await journal.write(Story().begin("ada", idempotency_key="k")) == Committed()
    assert await journal.write(Story().begin("bob", idempotency_key="k")) == Committed()


async def test_of_many_that_race_for_a_key_one_wins_and_the_others_learn_its_name(
    conninfo: str, database: Pool, journal: PostgresJournal, nursery: trio.Nursery
) -> None:
    other_server = PostgresJournal(database)  # knows nothing of the first one's memory
    nursery.start_soon(other_server.flush)
    stories = [Story() for _ in range(40)]
    receipts: dict[int, Receipt] = {}
    async with trio.open_nursery() as racers:
        for number, story in enumerate(stories):

            async def race(number: int, story: Story) -> None:
                door = (journal, other_server)[number % 2]
                receipts[number] = await door.write(story.begin(idempotency_key="race"))

            racers.start_soon(race, number, story)
    winners = [stories[number].task_id for number, receipt in receipts.items() if receipt == Committed()]
    assert len(winners) == 1
    assert list(receipts.values()).count(Duplicate(winners[0])) == 39
    assert await count(database, "SELECT count(*) FROM tasks") == 1


# --- poison -----------------------------------------------------------------------------------------------


async def test_nul_and_lone_surrogates_are_made_storable(journal: PostgresJournal, store: PostgresTaskStore) -> None:
    story = Story()
    begin = story.begin(input={"prompt": "a\0b", "k\0": ["\ud800", "literal \\u0000"]})
    assert await journal.write(begin) == Committed()
    assert await journal.write(story.then(Responded("x\0y\udfff"), Completed(1.0))) == Committed()
    loaded = await store.load(story.task_id)
    assert loaded
    assert loaded.input == {"prompt": "a\ufffdb", "k\ufffd": ["\ufffd", "literal \\u0000"]}
    assert loaded.text == "x\ufffdy\ufffd"


async def test_a_row_that_cannot_be_stored_is_refused_alone(journal: PostgresJournal) -> None:
    receipts, poison = Receipts(), Story()
    bad = poison.begin(priority=77)  # the column takes 0-9
    for number in range(9):
        journal.submit(Story().begin(), receipts.append)
        if number == 4:
            journal.submit(bad, receipts.append)
    await receipts.arrived(10)
    assert receipts.count(Committed()) == 9
    assert receipts.count(Refused("poison")) == 1


async def test_an_entry_that_breaks_the_code_is_refused_alone(journal: PostgresJournal) -> None:
    receipts, poison = Receipts(), Story()
    job = NewJob(uuid4(), "task", args={"no": object()})
    journal.submit(poison.begin(job=job), receipts.append)
    for _ in range(5):
        journal.submit(Story().begin(), receipts.append)
    await receipts.arrived(6)
    assert receipts.count(Committed()) == 5
    assert receipts.count(Refused("poison")) == 1


async def test_an_entry_that_cannot_even_be_examined_is_refused_alone(journal: PostgresJournal) -> None:
    receipts, poison = Receipts(), Story()
    entry = poison.begin()
    beyond = evolve(entry, events=(evolve(entry.events[0], attempt=2**40),))
    journal.submit(beyond, receipts.append)
    for _ in range(5):
        journal.submit(Story().begin(), receipts.append)
    await receipts.arrived(6)
    assert receipts.count(Committed()) == 5
    assert receipts.count(Refused("poison")) == 1


async def test_an_entry_that_is_too_large_is_refused_at_the_door(journal: PostgresJournal) -> None:
    story = Story()
    assert await journal.write(story.begin(input={"prompt": "x" * 17_000_000})) == Refused("poison")
    assert journal.health().buffered == 0


async def test_an_entry_without_a_json_form_is_refused_at_the_door(journal: PostgresJournal) -> None:
    assert await journal.write(Story().begin(input={"prompt": object()})) == Refused("poison")


# --- predictions and outputs ------------------------------------------------------------------------------


async def test_a_later_change_of_a_prediction_erases_nothing(
    journal: PostgresJournal, store: PostgresTaskStore
) -> None:
    story = Story()
    await journal.write(story.begin())
    intent = PredictionChange(uuid4(), story.task_id, 1, "replicate", "intent", input={"a": 1}, started_at=1.0)
    await journal.write(Entry(story.state, predictions=(intent,)))  # type: ignore[arg-type]
    accepted = PredictionChange(intent.id, story.task_id, 1, "replicate", "starting", external_id="r8")
    await journal.write(Entry(story.state, predictions=(accepted,)))  # type: ignore[arg-type]
    found = await store.open_prediction(story.task_id)
    assert found == evolve(intent, status="starting", external_id="r8")
    done = PredictionChange(intent.id, story.task_id, 1, "replicate", "succeeded", completed_at=2.5)
    await journal.write(Entry(story.state, predictions=(done,)))  # type: ignore[arg-type]
    assert await store.open_prediction(story.task_id) is None


async def test_outputs_are_read_back_with_the_history(journal: PostgresJournal, store: PostgresTaskStore) -> None:
    story = Story()
    output = Output(0, "image", "png", "https://x/y.png", "image/png", 3, "ab" * 32, dimensions={"width": 1})
    await journal.write(story.begin())
    await journal.write(story.then(OutputStored(output), outputs=(output,)))
    await journal.write(story.then(Completed(1.0)))
    page = await store.history("ada")
    assert page.tasks == (story.state,)


# --- outages ----------------------------------------------------------------------------------------------


async def test_while_the_database_is_away_entries_wait_in_memory_in_order(
    journal: PostgresJournal, store: PostgresTaskStore, outage: Outage
) -> None:
    story, receipts = Story(), Receipts()
    await journal.write(story.begin())
    await trio.to_thread.run_sync(outage.begin)
    entries = [story.start(), story.complete()]
    for entry in entries:
        journal.submit(entry, receipts.append)
    await receipts.arrived(2)
    assert receipts == [Buffered(), Buffered()]
    assert not journal.health().up
    assert journal.health().buffered == 2
    await trio.to_thread.run_sync(outage.end)
    await receipts.arrived(4)
    assert receipts[2:] == [Committed(), Committed()]
    assert journal.health().up
    assert await store.load(story.task_id) == story.state


async def test_an_outage_is_over_when_the_journal_has_caught_up(journal: PostgresJournal, outage: Outage) -> None:
    """Who comes before that waits behind all the others, and hears so at once."""
    await trio.to_thread.run_sync(outage.begin)
    waiting, seen = Receipts(), []

    def look(receipt: Receipt) -> None:
        waiting.append(receipt)
        if isinstance(receipt, Committed):
            seen.append((journal.health().buffered, journal.health().up))

    for _ in range(3 * CAUGHT_UP):
        journal.submit(Story().begin(), look)
    await waiting.arrived(3 * CAUGHT_UP)
    assert set(waiting) == {Buffered()}
    await trio.to_thread.run_sync(outage.end)
    await journal.drained()
    assert all(up == (buffered < CAUGHT_UP) for buffered, up in seen)
    assert journal.health().up


async def test_what_comes_during_an_outage_is_told_at_once(journal: PostgresJournal, outage: Outage) -> None:
    await trio.to_thread.run_sync(outage.begin)
    first = await journal.write(Story().begin(idempotency_key="k"))
    second = Story()
    assert first == Buffered()
    started = trio.current_time()
    repeated = Receipts()
    journal.submit(second.begin(idempotency_key="k"), repeated.append)
    assert [type(receipt) for receipt in repeated] == [Duplicate]  # and no word after it
    assert await journal.write(Story().begin()) == Buffered()
    assert trio.current_time() - started < 0.5
    await trio.to_thread.run_sync(outage.end)
    with trio.fail_after(10):
        await journal.drained()


async def test_a_key_used_just_before_an_outage_is_known_during_it(journal: PostgresJournal, outage: Outage) -> None:
    before = Story()
    assert await journal.write(before.begin(idempotency_key="k")) == Committed()
    await trio.to_thread.run_sync(outage.begin)
    assert await journal.write(Story().begin()) == Buffered()
    assert await journal.write(Story().begin(idempotency_key="k")) == Duplicate(before.task_id)
    await trio.to_thread.run_sync(outage.end)


async def test_the_buffer_is_bounded_for_new_tasks_and_wider_for_those_under_way(
    database: Pool, nursery: trio.Nursery, outage: Outage
) -> None:
    journal = PostgresJournal(database, bound=10)
    nursery.start_soon(journal.flush)
    running = Story()
    await journal.write(running.begin())
    await trio.to_thread.run_sync(outage.begin)
    for _ in range(10):
        assert journal.health().accepting
        assert await journal.write(Story().begin()) == Buffered()
    assert not journal.health().accepting
    with pytest.raises(JournalFull) as refusal:
        await journal.write(Story().begin())
    assert refusal.value.retry_after > 0
    assert await journal.write(running.start()) == Buffered()
    await trio.to_thread.run_sync(outage.end)
    with trio.fail_after(10):
        await journal.drained()
    assert await journal.write(Story().begin()) == Committed()


async def test_strict_takes_no_new_task_while_the_database_is_away(
    database: Pool, nursery: trio.Nursery, outage: Outage
) -> None:
    journal = PostgresJournal(database, strict=True)
    nursery.start_soon(journal.flush)
    running = Story()
    await journal.write(running.begin())
    await trio.to_thread.run_sync(outage.begin)
    assert await journal.write(running.start()) == Buffered()
    assert not journal.health().accepting
    with pytest.raises(JournalFull):
        await journal.write(Story().begin())
    await trio.to_thread.run_sync(outage.end)


async def test_strict_never_says_memory_to_tasks_that_an_outage_catches_on_their_way(
    database: Pool, store: PostgresTaskStore, outage: Outage
) -> None:
    journal, stories = PostgresJournal(database, strict=True), [Story() for _ in range(50)]
    receipts: dict[UUID, list[Receipt]] = {story.task_id: [] for story in stories}
    for story in stories:
        journal.submit(story.begin(), receipts[story.task_id].append)
    await trio.to_thread.run_sync(outage.begin)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.flush)
        with trio.fail_after(10):
            await journal.drained()
        nursery.cancel_scope.cancel()
    await trio.to_thread.run_sync(outage.end)
    await database.wait_up()
    for task_id, told in receipts.items():
        assert told == [Refused("unavailable")]
        assert await store.load(task_id) is None


async def test_strict_refuses_only_what_is_not_being_written(
    database: Pool, conninfo: str, nursery: trio.Nursery, store: PostgresTaskStore
) -> None:
    """A database that takes longer than anybody waits: what is told then is true for ever."""
    journal = PostgresJournal(database, strict=True)
    stories, told = [Story() for _ in range(3)], [Receipts() for _ in range(3)]
    nursery.start_soon(journal.flush)
    async with await TrioConnection.connect(conninfo) as slow, slow.transaction():
        await slow.execute("LOCK TABLE tasks")
        with trio.fail_after(20):
            for story, receipts in zip(stories, told, strict=True):
                journal.submit(story.begin(), receipts.append)
                await trio.sleep(0.5)  # the lock is met, and given up for a moment, at another point of each one's wait
            while journal.health().up:  # noqa: ASYNC110
                await trio.sleep(0.05)
    for story, receipts in zip(stories, told, strict=True):
        await receipts.arrived(1)
        assert receipts in ([Committed()], [Refused("unavailable")])
        assert (await store.load(story.task_id) is not None) is (receipts == [Committed()])


async def test_strict_waits_for_the_truth_about_a_commit_without_an_answer(
    database: Pool, nursery: trio.Nursery, store: PostgresTaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_the_first_commit(monkeypatch)
    journal, story, told = PostgresJournal(database, strict=True), Story(), Receipts()
    nursery.start_soon(journal.flush)
    journal.submit(story.begin(), told.append)
    await told.arrived(1)
    assert told == [Committed()]
    assert await store.load(story.task_id) == story.state


async def test_a_journal_that_is_restarted_goes_on_with_what_it_held(
    database: Pool, store: PostgresTaskStore, outage: Outage
) -> None:
    journal = PostgresJournal(database)
    story = Story()
    await trio.to_thread.run_sync(outage.begin)
    async with trio.open_nursery() as first_life:
        first_life.start_soon(journal.flush)
        assert await journal.write(story.begin()) == Buffered()
        journal.submit(story.start(), lambda receipt: None)
        first_life.cancel_scope.cancel()
    await trio.to_thread.run_sync(outage.end)
    await database.wait_up()
    with trio.fail_after(10):
        await journal.finish()
    assert await store.load(story.task_id) == story.state


def lose_the_first_commit(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The first COMMIT reaches the server, its answer does not reach us."""
    execute = TrioConnection.execute
    lost: list[str] = []

    async def lose_the_answer(self: TrioConnection, query: object, *args: object, **options: object) -> object:
        cursor = await execute(self, query, *args, **options)  # type: ignore[call-overload]
        if query == "COMMIT" and not lost:
            lost.append("the answer")
            self.pgconn.finish()
            raise psycopg.OperationalError("the connection was lost")
        return cursor

    monkeypatch.setattr(TrioConnection, "execute", lose_the_answer)
    return lost


async def test_a_commit_whose_answer_was_lost_is_not_written_twice(
    database: Pool, journal: PostgresJournal, store: PostgresTaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = lose_the_first_commit(monkeypatch)
    story, receipts = Story(), Receipts()
    journal.submit(story.begin(job=job_of(story)), receipts.append)
    await receipts.arrived(1)
    assert lost
    assert receipts == [Committed()]
    assert await store.load(story.task_id) == story.state
    assert await count(database, "SELECT count(*) FROM jobs") == 1


async def test_the_number_of_a_lost_transaction_that_another_has_now_proves_nothing(
    database: Pool, store: PostgresTaskStore
) -> None:
    """PostgreSQL forgets in a crash which numbers it gave to transactions that had not reached its log."""
    story, told = Story(), list[Receipt]()
    pending = prepare(story.begin(), told.append)

    def settle(pending: Pending, receipt: Receipt) -> None:
        pending.settled = True
        told.append(receipt)

    async with database.connection() as connection:
        async with connection.transaction():
            row = await (await connection.execute("SELECT pg_current_xact_id()::text")).fetchone()
        assert row
        writer = Writer([pending], settle)
        writer._unsure = (row[0], [pending])
        assert await writer.write(connection)
    assert told == [Committed()]
    assert await store.load(story.task_id) == story.state


async def test_a_submitter_that_fails_on_its_receipt_harms_nobody(journal: PostgresJournal) -> None:
    def fail(receipt: Receipt) -> None:
        raise RuntimeError("a bug")

    journal.submit(Story().begin(), fail)
    assert await journal.write(Story().begin()) == Committed()
