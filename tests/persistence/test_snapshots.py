"""Snapshots shorten the replay and change nothing: snapshot and tail are the fold of the whole log, at every prefix."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
import trio
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.ports import StorageDown
from engine.tasks import events as ev
from engine.tasks.events import EventBody, Output, Usage
from engine.tasks.state import TaskState
from persistence.journal.journal import PostgresJournal
from persistence.pool import Pool
from persistence.snapshots import BATCH, Snapshotter
from persistence.store import PostgresTaskStore, replay
from tests.persistence.entries import Completed, Story
from tests.postgres import Outage, opened


@pytest.fixture
def snapshots(database: Pool) -> Snapshotter:
    return Snapshotter(database)


async def rows(pool: Pool) -> dict[UUID, int]:
    async with pool.connection() as connection:
        cursor = await connection.execute("SELECT task_id, seq FROM task_snapshots")
        return dict(await cursor.fetchall())


async def started(journal: PostgresJournal) -> Story:
    story = Story()
    await journal.write(story.begin())
    await journal.write(story.start())
    return story


def live(story: Story) -> TaskState:
    """The state as a TaskServer has it in the middle of an attempt: with what is in no event."""
    assert story.state
    return evolve(story.state, progress=0.5, step="denoise", text="half a sen")


async def test_progress_and_text_survive_in_the_snapshot(
    journal: PostgresJournal, snapshots: Snapshotter, store: PostgresTaskStore
) -> None:
    story = await started(journal)
    snapshots.dirty(live(story))
    await snapshots.round()
    assert await store.load(story.task_id) == live(story)


async def test_only_the_newest_state_of_a_task_is_written(
    database: Pool, journal: PostgresJournal, snapshots: Snapshotter
) -> None:
    story = await started(journal)
    for percent in range(100):
        snapshots.dirty(evolve(live(story), progress=percent / 100))
    await snapshots.round()
    assert snapshots.saved == 1
    await snapshots.round()
    assert snapshots.saved == 1
    assert await rows(database) == {story.task_id: 2}


async def test_a_state_ahead_of_the_log_is_passed_over(
    database: Pool, journal: PostgresJournal, snapshots: Snapshotter, store: PostgresTaskStore
) -> None:
    story = await started(journal)
    logged = story.state
    story.complete()  # its entry has not been written
    snapshots.dirty(story.state)  # type: ignore[arg-type]
    await snapshots.round()
    assert await rows(database) == {}
    assert await store.load(story.task_id) == logged


async def test_a_late_snapshot_does_not_replace_a_newer_one(
    database: Pool, journal: PostgresJournal, snapshots: Snapshotter
) -> None:
    story = Story()
    await journal.write(story.begin())
    early = live(story)
    await journal.write(story.start())
    await snapshots.save([live(story)])
    await snapshots.save([early])
    assert await rows(database) == {story.task_id: 2}


async def test_a_finished_task_needs_none(database: Pool, journal: PostgresJournal, snapshots: Snapshotter) -> None:
    story = await started(journal)
    snapshots.dirty(live(story))
    await snapshots.round()
    await journal.write(story.complete())
    snapshots.dirty(live(story))
    snapshots.forget(story.task_id)
    await snapshots.round()
    assert await rows(database) == {}


async def test_more_than_one_batch_is_written(journal: PostgresJournal, snapshots: Snapshotter) -> None:
    stories = [Story() for _ in range(BATCH + 7)]
    async with trio.open_nursery() as nursery:
        for story in stories:
            nursery.start_soon(journal.write, story.begin())
    for story in stories:
        snapshots.dirty(live(story))
    await snapshots.round()
    assert snapshots.saved == BATCH + 7


async def test_what_could_not_be_written_stays_dirty(
    database: Pool, journal: PostgresJournal, snapshots: Snapshotter, outage: Outage
) -> None:
    story = await started(journal)
    gone = uuid4()
    await trio.to_thread.run_sync(outage.begin)
    snapshots.dirty(live(story))
    snapshots.forget(gone)
    with pytest.raises(StorageDown):
        await snapshots.round()
    assert snapshots.waiting == 1
    await trio.to_thread.run_sync(outage.end)
    await database.wait_up()
    await snapshots.round()
    assert await rows(database) == {story.task_id: 2}


DAMAGES = {
    "newer": "UPDATE task_snapshots SET schema_version = schema_version + 1",
    "corrupt": """UPDATE task_snapshots SET state = '{"id": 7}'""",
    "mixed up": "UPDATE task_snapshots SET seq = 1",
    "not an object": "UPDATE task_snapshots SET state = '[]'",
}


@pytest.mark.parametrize("damage", list(DAMAGES))
async def test_a_snapshot_that_cannot_be_trusted_falls_back_to_the_log(
    damage: str, database: Pool, journal: PostgresJournal, snapshots: Snapshotter, store: PostgresTaskStore
) -> None:
    story = await started(journal)
    await snapshots.save([live(story)])
    async with database.connection() as connection:
        await connection.execute(DAMAGES[damage])  # type: ignore[call-overload]
    assert await store.load(story.task_id) == story.state
    assert await store.unfinished(None, 10) == (story.state,)


async def test_recovery_brings_back_the_unfinished_by_priority_then_age_in_pages(
    journal: PostgresJournal, snapshots: Snapshotter, store: PostgresTaskStore
) -> None:
    stories = [Story() for _ in range(10)]
    for number, story in enumerate(stories):
        await journal.write(story.begin(priority=(4, 0, 9)[number % 3]))
    finished = stories.pop(5)
    await journal.write(finished.then(Completed(1.0)))
    await journal.write(stories[0].start())
    await snapshots.save([live(stories[0])])
    back: list[TaskState] = []
    after = None
    while page := await store.unfinished(after, 4):
        back += page
        after = (page[-1].priority, page[-1].created_at, page[-1].id)
    expected = sorted((s.state for s in stories if s.state), key=lambda s: (s.priority, s.created_at))
    assert [state.id for state in back] == [state.id for state in expected]
    assert back[[state.id for state in back].index(stories[0].task_id)] == live(stories[0])


async def test_a_task_that_cannot_be_read_does_not_stop_the_others(
    database: Pool, journal: PostgresJournal, store: PostgresTaskStore
) -> None:
    good, strange = await started(journal), await started(journal)
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE task_events SET type = 'from_the_future' WHERE task_id = %s", (strange.task_id,)
        )
    assert await store.unfinished(None, 10) == (good.state,)


# --- recovery equals replay -------------------------------------------------------------------------------

text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
output = st.builds(
    Output,
    index=st.integers(0, 3),
    type=st.just("image"),
    format=st.just("png"),
    content_url=text,
    content_type=text,
    file_size_bytes=st.integers(0, 2**40),
    sha256=text,
    metadata=st.none() | st.dictionaries(text, st.integers(-5, 5), max_size=2),
)
usage = st.none() | st.builds(Usage, input_tokens=st.none() | st.integers(0, 10**6), cost=st.none() | st.floats(0, 9))
running: st.SearchStrategy[EventBody] = st.one_of(
    st.builds(ev.Started, provider=text, model=text),
    st.builds(ev.AttemptFailed, code=text, message=text, action=text, will_retry_at=st.floats(0, 2e9)),
    st.builds(ev.Reset, reason=text),
    st.builds(ev.OutputStored, output=output),
    st.builds(ev.Responded, text=text, usage=usage),
    st.builds(ev.Requeued, job_id=st.none() | st.uuids()),
)
terminal: st.SearchStrategy[EventBody] = st.one_of(
    st.builds(ev.Completed, duration_seconds=st.floats(0, 9), usage=usage),
    st.builds(ev.Failed, code=text, message=text, action=text, retryable=st.booleans()),
    st.builds(ev.Cancelled, reason=text),
)


@given(bodies=st.lists(running, max_size=5), end=st.none() | terminal, cut=st.integers(0, 6))
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
async def test_snapshot_and_tail_equal_the_fold_of_the_log_for_every_prefix(
    bodies: list[EventBody], end: EventBody | None, cut: int, conninfo: str
) -> None:
    # every example is a run of trio of its own, so it opens what it needs itself
    async with opened(conninfo) as database, trio.open_nursery() as nursery:
        journal, store, snapshots = PostgresJournal(database), PostgresTaskStore(database), Snapshotter(database)
        nursery.start_soon(journal.flush)
        story = Story()
        await journal.write(story.begin())
        for number, body in enumerate([*bodies, *([end] if end else [])]):
            if number == cut and story.state:
                await snapshots.save([story.state])
            await journal.write(story.then(body))
            whole = replay(None, await store.events(story.task_id))
            assert await store.load(story.task_id) == whole
            assert whole == story.state
        nursery.cancel_scope.cancel()
