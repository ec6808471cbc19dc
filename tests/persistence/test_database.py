"""The whole of persistence under a supervisor: started in order, stopped in order, and never down with the database."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from engine.otp import Node, Pid, Supervisor, whereis
from engine.ports import Buffered, Committed, Receipt
from persistence.database import DatabaseUnreachable, Persistence, PersistenceSettings
from persistence.embedded import leftovers
from persistence.embedded.folder import FolderError, FolderInUse
from tests.persistence.entries import Story


@asynccontextmanager
async def running(settings: PersistenceSettings) -> AsyncIterator[Persistence]:
    persistence = Persistence(settings)
    await persistence.prepare()
    async with Node.open():
        await Supervisor.start_link([persistence.spec()], name="elwift")
        yield persistence
    persistence.release()


def process(name: str) -> Pid:
    pid = whereis(name)
    assert pid is not None
    return pid


async def test_it_starts_from_nothing_keeps_a_task_and_leaves_nothing_behind(data_dir: Path) -> None:
    story = Story()
    async with running(PersistenceSettings(data_dir)) as persistence:
        assert await persistence.journal.write(story.begin()) == Committed()
        persistence.snapshots.dirty(story.state)  # type: ignore[arg-type]
    assert leftovers.running_in(data_dir / "postgres") == []
    async with running(PersistenceSettings(data_dir)) as persistence:
        assert await persistence.store.load(story.task_id) == story.state
        assert persistence.snapshots.waiting == 0


async def test_postgres_killed_is_started_again_and_nothing_else_is(data_dir: Path) -> None:
    before, during, receipts = Story(), Story(), list[Receipt]()
    async with running(PersistenceSettings(data_dir)) as persistence:
        await persistence.journal.write(before.begin())
        assert persistence.server
        assert persistence.server.pid
        pids = [process(name) for name in ("postgres", "pool", "journal", "snapshots")]
        os.kill(persistence.server.pid, signal.SIGKILL)
        persistence.journal.submit(during.begin(), receipts.append)
        with trio.fail_after(20):
            while not receipts or receipts[-1] != Committed():
                await trio.testing.wait_all_tasks_blocked(0.01)
        assert receipts in ([Committed()], [Buffered(), Committed()])
        assert pids == [process(name) for name in ("postgres", "pool", "journal", "snapshots")]
        assert persistence.server.starts == 2
        assert await persistence.store.load(before.task_id) == before.state
        assert await persistence.store.load(during.task_id) == during.state


async def test_what_waits_at_the_end_is_still_written(conninfo: str, data_dir: Path) -> None:
    story = Story()
    async with running(PersistenceSettings(data_dir, conninfo)) as persistence:
        persistence.journal.submit(story.begin(), lambda receipt: None)
    async with running(PersistenceSettings(data_dir, conninfo)) as persistence:
        assert await persistence.store.load(story.task_id) == story.state


async def test_what_waits_at_the_end_is_written_also_when_postgres_has_just_been_killed(data_dir: Path) -> None:
    stories = [Story() for _ in range(10)]
    async with running(PersistenceSettings(data_dir)) as persistence:
        assert persistence.server
        assert persistence.server.pid
        os.kill(persistence.server.pid, signal.SIGKILL)
        for story in stories:
            persistence.journal.submit(story.begin(), lambda receipt: None)
        with trio.fail_after(20):
            while persistence.pool.up:
                await trio.testing.wait_all_tasks_blocked(0.01)
    async with running(PersistenceSettings(data_dir)) as persistence:
        for story in stories:
            assert await persistence.store.load(story.task_id) == story.state


async def test_a_second_server_on_the_same_folder_is_told_so(data_dir: Path) -> None:
    first, second = (Persistence(PersistenceSettings(data_dir)) for _ in range(2))
    await first.prepare()
    with pytest.raises(FolderInUse, match=str(os.getpid())):
        await second.prepare()
    first.release()
    await second.prepare()
    second.release()


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="--data-dir"):
        await Persistence(PersistenceSettings(tmp_path / "file" / "data")).prepare()


async def test_a_database_that_is_not_there_is_named_before_anything_starts(data_dir: Path) -> None:
    nowhere = PersistenceSettings(data_dir, f"host='{data_dir}' user=nobody connect_timeout=2")
    with pytest.raises(DatabaseUnreachable, match="cannot be reached"):
        await Persistence(nowhere).prepare()
