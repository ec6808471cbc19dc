"""DELETE /api/tasks/<id> on a real server, down to the files; and the housekeeping job that does the rest."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
import trio
from attrs import define, field

from engine.ports import StorageDown, StoreFailed
from persistence.artifacts import FolderStore
from persistence.pool import Pool
from persistence.removal import Removal
from scripts.client import connect
from tests.postgres import *  # noqa: F403
from tests.real.conftest import data_dir as data_dir
from tests.web.http.test_api import LONG, QUICK, code, ended, made
from web.application import Application
from web.housekeeping import Sweeper, retention_handler
from web.serve import running
from web.settings import Settings

NOTE = "INSERT INTO objects_to_delete (name) SELECT unnest(%s::text[])"


def test_a_deleted_task_is_gone_and_its_key_is_free(alice: httpx.Client) -> None:
    key = {"Idempotency-Key": uuid4().hex}
    task_id = made(alice, QUICK, headers=key)
    ended(alice, task_id)
    assert alice.delete(f"/api/tasks/{task_id}").status_code == 204
    for call in (alice.get, alice.delete):
        assert code(call(f"/api/tasks/{task_id}")) == (404, "unknown_task")
    assert code(alice.get(f"/api/tasks/{task_id}/events")) == (404, "unknown_task")
    assert task_id not in {task["id"] for task in alice.get("/api/tasks?limit=200").json()["tasks"]}
    assert made(alice, QUICK, headers=key) != task_id


def test_a_task_under_way_is_cancelled_and_deleted(alice: httpx.Client) -> None:
    task_id = made(alice, LONG)
    assert alice.delete(f"/api/tasks/{task_id}").status_code == 204
    assert code(alice.get(f"/api/tasks/{task_id}")) == (404, "unknown_task")


def test_only_ones_own_is_deleted(alice: httpx.Client, bob: httpx.Client, olga: httpx.Client) -> None:
    task_id = made(alice, LONG)
    assert code(bob.delete(f"/api/tasks/{task_id}")) == (404, "unknown_task")
    assert olga.delete(f"/api/tasks/{task_id}").status_code == 204
    assert code(alice.get(f"/api/tasks/{task_id}")) == (404, "unknown_task")


OUTPUT = """
    INSERT INTO outputs
        (task_id, attempt, index, type, format, cloud_url, object_name, content_type, file_size_bytes, sha256)
    VALUES (%s, 1, 0, 'image', 'png', '', %s, 'image/png', 3, '')
"""


async def task_with_file(application: Application, http: httpx.AsyncClient, source: Path) -> tuple[UUID, str]:
    """A completed task, and the name of a stored file of its."""
    task_id = UUID((await http.post("/api/tasks", json=QUICK)).json()["task_id"])
    with trio.fail_after(20):
        async with connect(application.endpoint.urls[0]) as socket:
            channel = await socket.join(f"task:{task_id}", {"last_seq": 0})
            _ = [message async for message in channel]  # to its end
    name = f"{task_id}/1/0/abc.png"
    source.write_bytes(b"png")
    await application.runtime.artifacts.put(name, source, "image/png")
    async with application.persistence.pool.connection() as connection:
        await connection.execute(OUTPUT, (task_id, name))
    return task_id, name


async def test_its_files_go_at_once_or_with_the_housekeeping(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(port=0, data_dir=data_dir, local_model=False, preempt_budget=0)
    async with running(settings) as application:
        store = application.runtime.artifacts
        assert isinstance(store, FolderStore)
        async with httpx.AsyncClient(base_url=application.endpoint.urls[0], trust_env=False) as http:
            task_id, name = await task_with_file(application, http, tmp_path / "source")
            link = await store.url(name, 60)
            assert (await http.get(link)).status_code == 200
            assert (await http.delete(f"/api/tasks/{task_id}")).status_code == 204
            assert (await http.get(link)).status_code == 410
            assert not store.path(name).exists()
            assert await application.persistence.removal.due() == ()

            task_id, name = await task_with_file(application, http, tmp_path / "source")
            monkeypatch.setattr(Removal, "cross_off", _away)  # as if the server died, or the database, in between
            assert (await http.delete(f"/api/tasks/{task_id}")).status_code == 204
            monkeypatch.undo()
            assert (await http.get(f"/api/tasks/{task_id}")).status_code == 404
            assert await application.persistence.removal.due() == (name,)
            await application.sweeper.sweep_all()
            assert await application.persistence.removal.due() == ()


async def _away(self: Removal, names: object) -> None:
    raise StorageDown


@define
class Store:
    """An artifact store that refuses some names."""

    refused: frozenset[str]
    deleted: list[str] = field(factory=list)

    async def delete(self, name: str) -> None:
        await trio.lowlevel.checkpoint()
        if name in self.refused:
            raise StoreFailed("403 from the bucket")
        self.deleted.append(name)


async def test_a_file_that_cannot_be_deleted_keeps_no_other_from_it(database: Pool) -> None:
    store, removal = Store(frozenset({"b"})), Removal(database)
    async with database.connection() as connection:
        await connection.execute(NOTE, (["a", "b", "c"],))
    await Sweeper(removal, store).sweep_all()  # type: ignore[arg-type]
    assert sorted(store.deleted) == ["a", "c"]
    async with database.connection() as connection:
        cursor = await connection.execute("SELECT name, failures FROM objects_to_delete")
        assert await cursor.fetchall() == [("b", 1)]


async def test_what_was_archived_long_enough_ago_is_deleted_with_its_files_by_the_hourly_job(
    data_dir: Path, tmp_path: Path
) -> None:
    brief = 1e-9
    settings = Settings(port=0, data_dir=data_dir, local_model=False, retention_days=brief, delete_after_days=brief)
    async with running(settings) as application:
        store = application.runtime.artifacts
        assert isinstance(store, FolderStore)
        async with httpx.AsyncClient(base_url=application.endpoint.urls[0], trust_env=False) as http:
            task_id, name = await task_with_file(application, http, tmp_path / "source")
            job = retention_handler(application.persistence.retention, application.sweeper, settings)
            assert store.path(name).exists()
            for _ in range(2):  # archived at first, deleted the next time
                await job(None)  # type: ignore[arg-type]
            assert (await http.get(f"/api/tasks/{task_id}")).status_code == 404
        assert not store.path(name).exists()


async def test_without_ages_the_hourly_job_deletes_the_files_of_expired_outputs_alone(
    data_dir: Path, tmp_path: Path
) -> None:
    settings = Settings(port=0, data_dir=data_dir, local_model=False)
    async with running(settings) as application:
        store = application.runtime.artifacts
        assert isinstance(store, FolderStore)
        async with httpx.AsyncClient(base_url=application.endpoint.urls[0], trust_env=False) as http:
            _, kept = await task_with_file(application, http, tmp_path / "source")
            expired, name = await task_with_file(application, http, tmp_path / "source")
            async with application.persistence.pool.connection() as connection:
                await connection.execute("UPDATE outputs SET expires_at = now() WHERE task_id = %s", (expired,))
            job = retention_handler(application.persistence.retention, application.sweeper, settings)
            await job(None)  # type: ignore[arg-type]
            assert (await http.get(f"/api/tasks/{expired}")).status_code == 200
        assert (store.path(kept).exists(), store.path(name).exists()) == (True, False)
