"""Files that nobody recorded are found and deleted, in either store; what is recorded, fresh or another's never is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Client

from engine.outputs.links import Links
from engine.ports import ArtifactStore, Listed
from engine.tasks.events import Completed, Failed, Output, OutputStored, Requeued, TaskEvent
from persistence.artifacts import FolderStore, LinkSigner
from persistence.artifacts.bucket import BucketStore
from persistence.journal.journal import PostgresJournal
from persistence.pool import Pool
from persistence.removal import Removal
from persistence.store import PostgresTaskStore
from tests.persistence.artifacts import fake_gcs
from tests.persistence.entries import Story
from web.housekeeping import GRACE, Sweeper

SHA = "a" * 64


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ArtifactStore]:
    if request.param == "folder":
        yield FolderStore(tmp_path / "kept", LinkSigner(b"k" * 32))
        return
    with fake_gcs.serving() as service:
        client = Client("project", AnonymousCredentials(), client_options={"api_endpoint": service.url})
        yield BucketStore(client, "bucket")
        client.close()


def name_of(task: UUID, attempt: int = 1, index: int = 0) -> str:
    return f"{task}/{attempt}/{index}/{SHA}.png"


async def put(store: ArtifactStore, tmp_path: Path, *names: str) -> None:
    for name in names:
        source = tmp_path / uuid4().hex
        source.write_bytes(b"x")
        await store.put(name, source, "image/png")


async def names(store: ArtifactStore) -> set[str]:
    return {each.name for each in await store.list("", 999) if not each.name.startswith("owner/")}


def output(task: UUID, attempt: int = 1, index: int = 0) -> Output:
    return Output(index, "image", "png", "/x", "image/png", 1, SHA, name_of(task, attempt, index))


async def running(journal: PostgresJournal, *indices: int) -> Story:
    story = Story()
    await journal.write(story.begin())
    await journal.write(story.start())
    await stored(journal, story, *indices)
    return story


async def stored(journal: PostgresJournal, story: Story, *indices: int) -> None:
    for index in indices:
        each = output(story.task_id, story.state.attempt, index)
        await journal.write(story.then(OutputStored(each), outputs=(each,)))


async def test_what_nobody_recorded_goes_and_nothing_else_does(
    database: Pool, journal: PostgresJournal, store: ArtifactStore, tmp_path: Path
) -> None:
    done, working, unknown = await running(journal, 0), await running(journal), uuid4()
    await journal.write(done.then(Completed(1.0)))
    strange = {"notes.txt", f"{unknown}/readme.md", f"{unknown}/1/0/short.png"}
    kept = {name_of(done.task_id), name_of(working.task_id), *strange}
    orphans = {name_of(done.task_id, 1, 5), name_of(done.task_id, 2), name_of(unknown)}
    await put(store, tmp_path, *kept, *orphans)
    sweeper, now = Sweeper(Removal(database), store), time.time()
    assert await sweeper.sweep_orphans(now) == 0, "they are fresh"
    assert await names(store) == kept | orphans
    assert await sweeper.sweep_orphans(now + GRACE + 60) == 3
    assert await names(store) == kept
    assert await sweeper.removal.due() == ()


async def test_what_a_failed_attempt_stored_goes_once_the_task_is_over(
    database: Pool, journal: PostgresJournal, store: ArtifactStore, tmp_path: Path
) -> None:
    story = await running(journal, 0, 1)
    await journal.write(story.then(Failed("broken", "It broke.", "Wait.", retryable=True)))
    await put(store, tmp_path, name_of(story.task_id), name_of(story.task_id, 1, 1))
    sweeper, later = sweeper_of(database, store), soon()
    assert await sweeper.sweep_orphans(later) == 0, "a failed task shows what it has"
    await journal.write(story.then(Requeued(uuid4())))
    assert await sweeper.sweep_orphans(later) == 0, "it runs again"
    await journal.write(story.start())
    await stored(journal, story, 0)
    await put(store, tmp_path, name_of(story.task_id, 2))
    await journal.write(story.then(Completed(1.0)))
    (task,) = (await PostgresTaskStore(database).history("ada")).tasks
    assert [each.object_name for each in task.outputs] == [name_of(story.task_id, 2)], "void ones are not listed"
    assert await sweeper.sweep_orphans(later) == 2
    assert await names(store) == {name_of(story.task_id, 2)}


def sweeper_of(database: Pool, store: ArtifactStore) -> Sweeper:
    return Sweeper(Removal(database), store)


def soon() -> float:
    return time.time() + GRACE + 60


async def test_a_run_is_bounded_and_the_next_goes_on_where_it_was(
    database: Pool, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("web.housekeeping.PAGE", 4)
    await put(store, tmp_path, *(name_of(UUID(int=number)) for number in range(10)))
    sweeper = sweeper_of(database, store)
    counts = [await sweeper.sweep_orphans(soon(), pages=1) for _ in range(3)]
    assert (sum(counts), counts[:2], await sweeper.removal.reached()) == (10, [4, 4], "")


async def test_where_another_database_stores_too_nothing_is_swept(
    database: Pool, store: ArtifactStore, tmp_path: Path
) -> None:
    sweeper = sweeper_of(database, store)
    assert await sweeper.sweep_orphans(soon()) == 0
    await put(store, tmp_path, name_of(uuid4()), "owner/ffffffff-another")
    assert await sweeper.sweep_orphans(soon()) == 0
    assert len(await names(store)) == 1


# --- links ------------------------------------------------------------------------------------------------


class Signer:
    """A store that signs: each link names the moment at which it was asked for."""

    asked = 0

    async def url(self, name: str, expires_in: float) -> str:
        self.asked += 1
        return f"/{name}?{self.asked}&{expires_in:.0f}"

    async def list(self, after: str, limit: int) -> tuple[Listed, ...]:
        return ()


async def test_links_are_signed_anew_for_who_reads_later_and_end_with_their_outputs() -> None:
    story, signer = Story(), Signer()
    story.begin()
    story.start()
    lasting = output(story.task_id)
    brief = Output(1, "image", "png", "/y", "image/png", 1, SHA, name_of(story.task_id, 1, 1), expires_at=1e10)
    for each in (lasting, brief):
        story.then(OutputStored(each))
    story.then(Completed(1.0))
    links = Links(signer, 100.0)  # type: ignore[arg-type]
    task, at = story.state, story.state.completed_at or 0.0
    assert (await links.task(task, at)) == task, "they are fresh"
    shown = await links.task(task, at + 60)
    assert [each.content_url for each in shown.outputs] == [
        f"/{each.object_name}?{number}&100" for number, each in enumerate((lasting, brief), 1)
    ]
    assert await links.task(task, at + 70) == shown, "they are remembered"
    ended = await links.task(task, 1e10)
    assert [each.content_url for each in ended.outputs][1] == ""
    void = TaskEvent(story.task_id, 9, at, 1, "worker", OutputStored(output(story.task_id, 7)))  # type: ignore[arg-type]
    (event,) = await links.events(task, (void,), at)
    assert isinstance(event.body, OutputStored)
    assert event.body.output.content_url == "", "an attempt that failed had stored it"
