"""The files of finished predictions, through a whole server, on bad days: stores that refuse, links that expire, and
kill -9 at the worst instants. Whatever happens, the bill shows each of them once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import trio
from typed_settings.types import SecretStr

from engine.tasks.patience import Patience
from scripts.http_client import HttpClient, http_client
from scripts.server import ServerProcess, launch
from tests.engine.providers import fake_replicate
from tests.engine.providers.fake_replicate import Service
from tests.persistence.artifacts import fake_gcs
from tests.real import file_server
from tests.real.file_server import Files, cut_off, held, status
from tests.real.test_outputs import PICTURE, create, data_url, fetch, payloads, story
from web.application import Application
from web.serve import running
from web.settings import Settings

UPLOAD = r"^POST /upload.* \S+\.png"
SHA256 = hashlib.sha256(PICTURE).hexdigest()


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of this process wait less between their tries."""

    def patience(in_place: float) -> Patience:
        return Patience(first=0.05, longest=0.2, in_place=in_place, aside=0.3)

    monkeypatch.setattr("web.application.Patience", patience)


@pytest.fixture
def gcs() -> Iterator[fake_gcs.Service]:
    with fake_gcs.serving() as service:
        yield service


@asynccontextmanager
async def studio(
    data_dir: Path, service: Service, files: Files | None = None, **more: Any
) -> AsyncIterator[tuple[Application, HttpClient]]:
    settings = Settings(
        port=0,
        data_dir=data_dir,
        local_model=False,
        preempt_budget=0,
        store_patience=0.1,
        replicate_api_token=SecretStr(fake_replicate.TOKEN),
        replicate_base_url=service.url,
        replicate_output_hosts=files.origin if files else "",
        **more,
    )
    async with running(settings) as application, http_client(application.endpoint.urls[0], 2) as http:
        yield application, http


async def until(condition: Any, within: float = 30.0) -> None:
    with trio.fail_after(within):
        while not condition():  # noqa: ASYNC110 - threads and other processes tell nobody
            await trio.sleep(0.01)


async def bill(http: HttpClient, service: Service) -> None:
    """What we say was used is what the service bills."""
    _, report = await http.get("/api/usage")
    billed = [run.metrics["predict_time"] for run in service.runs.values()]
    assert report["total"]["attempts"] == len(billed)
    assert report["total"]["predict_seconds"] == pytest.approx(sum(billed))


# --- kill -9 ------------------------------------------------------------------------------------------------


async def started(
    nursery: trio.Nursery, data_dir: Path, service: Service, files: Files | None, gcs: fake_gcs.Service | None
) -> ServerProcess:
    environment = {
        "ELWIFT_LOCAL_MODEL": "false",
        "ELWIFT_REPLICATE_API_TOKEN": fake_replicate.TOKEN,
        "ELWIFT_REPLICATE_BASE_URL": service.url,
        "ELWIFT_REPLICATE_OUTPUT_HOSTS": files.origin if files else "",
        "ELWIFT_STORE_PATIENCE": "60",
    }
    if gcs is not None:
        environment |= {"ELWIFT_GCS_BUCKET": "bucket", "STORAGE_EMULATOR_HOST": gcs.url}
    return await launch(nursery, data_dir, environment=environment)


async def test_killed_in_the_middle_of_a_download_the_file_is_fetched_and_stored_once(data_dir: Path) -> None:
    async with fake_replicate.serving() as service, file_server.serving() as files, trio.open_nursery() as nursery:
        url = files.give("/a.png", held(files, PICTURE), PICTURE)
        first = await started(nursery, data_dir, service, files, None)
        async with http_client(first.url, 1) as http:
            task_id = await create(http, output=[url])
        with trio.fail_after(30):
            await files.at_work.wait()
        await first.kill()
        second = await started(nursery, data_dir, service, files, None)
        told = await story(second.url, task_id)
        (completed,) = payloads(told, "task_completed")
        assert (await fetch(second.url, completed["content_url"])).content == PICTURE
        stored = [path for path in (data_dir / "artifacts" / str(task_id)).rglob("*") if path.is_file()]
        assert [path.name for path in stored] == [f"{SHA256}.png"]
        assert service.creates() == 1
        async with http_client(second.url, 1) as http:
            await bill(http, service)
        assert await second.terminate() == 0
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("by_url", "stored"),
    [(False, True), (True, False)],
    ids=["data, after the object is stored", "a link that expires, in the middle of the upload"],
)
async def test_killed_while_it_stores_a_result_the_server_stores_it_once_and_buys_nothing(
    data_dir: Path, gcs: fake_gcs.Service, by_url: bool, stored: bool
) -> None:
    async with fake_replicate.serving() as service, file_server.serving() as files, trio.open_nursery() as nursery:
        output = files.give("/a.png", file_server.whole(PICTURE), status(403)) if by_url else data_url(PICTURE)
        # either the object is never sent whole, or it is stored and its answer lost, and the next try hangs
        gcs.faults += [(UPLOAD, "lost"), (UPLOAD, "hang")] if stored else [(UPLOAD, "hang")]
        first = await started(nursery, data_dir, service, files, gcs)
        async with http_client(first.url, 1) as http:
            task_id = await create(http, output=[output])
        await until(lambda: len([line for line in gcs.requests if re.search(UPLOAD, line)]) == 1 + stored)
        before = {name: each.generation for name, each in gcs.objects.items() if name.endswith(".png")}
        assert len(before) == stored
        await first.kill()
        second = await started(nursery, data_dir, service, files, gcs)
        told = await story(second.url, task_id)
        (completed,) = payloads(told, "task_completed")
        assert completed["outputs"][0]["sha256"] == SHA256
        gcs.released.set()
        mine = {name: each for name, each in gcs.objects.items() if name.startswith(str(task_id))}
        assert list(mine) == [f"{task_id}/1/0/{SHA256}.png"]
        assert [each.content for each in mine.values()] == [PICTURE]
        if stored:
            assert {name: each.generation for name, each in mine.items()} == before
        assert service.creates() == 1
        assert files.asked == (["/a.png"] if by_url else [])
        async with http_client(second.url, 1) as http:
            await bill(http, service)
        assert await second.terminate() == 0
        nursery.cancel_scope.cancel()


# --- stores and file servers that refuse ----------------------------------------------------------------------


@pytest.fixture
def bucket(gcs: fake_gcs.Service, monkeypatch: pytest.MonkeyPatch) -> fake_gcs.Service:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
    return gcs


async def test_a_bucket_over_its_quota_is_waited_for_and_nothing_is_bought_again(
    data_dir: Path, bucket: fake_gcs.Service
) -> None:
    bucket.faults += [(UPLOAD, code) for code in ("403", "412", "429", "500", "503", "lost")]
    async with fake_replicate.serving() as service, studio(data_dir, service, gcs_bucket="bucket") as (app, http):
        task_id = await create(http, output=[data_url(PICTURE)])
        told = await story(app.endpoint.urls[0], task_id)
        assert told[-1].event == "task_completed"
        assert {error["code"] for error in payloads(told, "error")} <= {"store_failed"}
        assert [each.content for name, each in bucket.objects.items() if name.startswith(str(task_id))] == [PICTURE]
        assert service.creates() == 1
        await bill(http, service)


async def test_a_file_server_on_its_bad_days_is_asked_again_and_a_dead_link_asked_for_anew(data_dir: Path) -> None:
    async with fake_replicate.serving() as service, file_server.serving() as files:
        days = {
            "/down.png": (status(503), status(500), status(429), PICTURE),
            "/broken.png": (cut_off(PICTURE[:50], len(PICTURE)), PICTURE),
            "/expired.png": (status(403), PICTURE),
            "/moved.png": (status(302, location="/new.png"),),
        }
        files.give("/new.png", PICTURE)
        async with studio(data_dir, service, files) as (app, http):
            tasks = [await create(http, output=[files.give(path, *answers)]) for path, answers in days.items()]
            for task_id in tasks:
                told = await story(app.endpoint.urls[0], task_id)
                (completed,) = payloads(told, "task_completed")
                assert completed["outputs"][0]["sha256"] == SHA256
            assert service.creates() == len(days)
            await bill(http, service)


async def test_a_link_that_is_dead_for_good_says_so_and_the_user_decides(data_dir: Path) -> None:
    async with (
        fake_replicate.serving() as service,
        file_server.serving() as files,
        studio(data_dir, service, files) as (app, http),
    ):
        task_id = await create(http, output=[files.give("/gone.png", status(404))])
        told = await story(app.endpoint.urls[0], task_id)
        (error,) = payloads(told, "error")
        assert (error["code"], error["retryable"], "will_retry_at" in error) == ("output_expired", True, False)
        assert service.creates() == 1
        files.give("/gone.png", PICTURE)
        status_, _ = await http.post(f"/api/tasks/{task_id}/retry", {})
        assert status_ == 202
        told = await story(app.endpoint.urls[0], task_id)
        assert told[-1].event == "task_completed"
        assert service.creates() == 2
        await bill(http, service)


# --- deleting -------------------------------------------------------------------------------------------------


async def test_the_files_of_a_deleted_task_go_even_when_the_bucket_was_down(
    data_dir: Path, bucket: fake_gcs.Service
) -> None:
    async with fake_replicate.serving() as service, studio(data_dir, service, gcs_bucket="bucket") as (app, http):
        task_id = await create(http, output=[data_url(PICTURE), data_url(PICTURE[:-1] + b"!")])
        await story(app.endpoint.urls[0], task_id)
        bucket.faults += [("^DELETE", "503"), ("^DELETE", "lost")]
        assert await delete(app, task_id) == 204
        assert (await http.get(f"/api/tasks/{task_id}"))[0] == 404
        bucket.put({"name": f"{task_id}/1/9/{SHA256}.png"}, PICTURE, None)  # an upload that ended later
        await due_now(app)
        await app.sweeper.sweep_all()
        assert [name for name in bucket.objects if name.startswith(str(task_id))] == []


async def test_a_task_that_is_deleted_while_it_stores_leaves_nothing(data_dir: Path, bucket: fake_gcs.Service) -> None:
    bucket.faults.append((UPLOAD, "hang"))
    async with fake_replicate.serving() as service, studio(data_dir, service, gcs_bucket="bucket") as (app, http):
        task_id = await create(http, output=[data_url(PICTURE)])
        await until(lambda: any(re.search(UPLOAD, line) for line in bucket.requests))
        assert await delete(app, task_id) == 204
        bucket.released.set()
        await until(lambda: any(name.startswith(str(task_id)) for name in bucket.objects))
        await due_now(app)
        await app.sweeper.sweep_all()
        assert [name for name in bucket.objects if name.startswith(str(task_id))] == []


async def delete(app: Application, task_id: UUID) -> int:
    async with httpx.AsyncClient(base_url=app.endpoint.urls[0], trust_env=False) as http:
        return (await http.delete(f"/api/tasks/{task_id}")).status_code


async def due_now(app: Application) -> None:
    """As if the minutes had passed."""
    async with app.persistence.pool.connection() as connection:
        await connection.execute("UPDATE objects_to_delete SET due_at = now()")


# --- what has expired -----------------------------------------------------------------


async def test_an_output_whose_time_is_over_is_shown_everywhere_without_a_link(data_dir: Path) -> None:
    brief = 2.0 / 86_400
    async with fake_replicate.serving() as service, studio(data_dir, service, output_days=brief) as (app, http):
        url = app.endpoint.urls[0]
        task_id = await create(http, output=[data_url(PICTURE)])
        (completed,) = payloads(await story(url, task_id), "task_completed")
        link, expires = completed["content_url"], completed["outputs"][0]["expires_at"]
        assert (await fetch(url, link)).status_code == 200
        await trio.sleep(max(0.0, expires - app.runtime.clock()) + 1.1)  # links are told in whole seconds
        for _ in range(2):  # before its file is swept, and after
            assert (await fetch(url, link)).status_code == 410
            _, task = await http.get(f"/api/tasks/{task_id}")
            _, page = await http.get("/api/tasks")
            _, log = await http.get(f"/api/tasks/{task_id}/events")
            told = await story(url, task_id)
            stored = [each["payload"]["output"] for each in log["events"] if each["type"] == "output_stored"]
            pushed = [payloads(told, "output_stored")[0]["output"], payloads(told, "task_completed")[0]["outputs"][0]]
            for output in (*task["outputs"], *page["tasks"][0]["outputs"], *stored, *pushed):
                assert (output["expired"], "content_url" in output, output["sha256"]) == (True, False, SHA256)
            assert "content_url" not in payloads(told, "task_completed")[0]
            await app.persistence.removal.expire()
            await app.sweeper.sweep_all()
        assert not list((data_dir / "artifacts" / str(task_id)).rglob("*.png"))
