"""Files through a whole server: bought once, kept before the task is told to be over, fetched by their signed links.

The service is the fake Replicate, with files as data URLs: those of the real one are https and cannot be had here.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import trio
from PIL import Image
from typed_settings.types import SecretStr

from engine.jobs import backoff
from engine.jobs.backoff import Backoff
from engine.ports import StoredObject
from engine.tasks.patience import Patience
from persistence.artifacts import FolderStore
from scripts.client import Message, connect
from scripts.http_client import HttpClient, http_client
from scripts.server import ServerProcess, launch
from tests.engine.providers import fake_replicate
from tests.engine.providers.fake_replicate import Run, Service
from web.application import Application
from web.serve import running
from web.settings import Settings


def picture(width: int, height: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes, content_type: str = "image/png") -> str:
    return f"data:{content_type};base64,{base64.b64encode(data).decode()}"


PICTURE = picture(64, 48)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once."""
    monkeypatch.setattr(backoff, "QUICK", Backoff(floor=0.05, base=0.0))


@asynccontextmanager
async def server(data_dir: Path, service: Service, **more: Any) -> AsyncIterator[tuple[Application, HttpClient]]:
    token = SecretStr(fake_replicate.TOKEN)
    given = {"replicate_api_token": token, "replicate_base_url": service.url, **more}
    settings = Settings(port=0, data_dir=data_dir, local_model=False, preempt_budget=0, **given)
    async with running(settings) as running_server, http_client(running_server.endpoint.urls[0], 2) as http:
        yield running_server, http


async def create(http: HttpClient, **script: Any) -> UUID:
    body = {"prompt": "A teal wall", "model": "flux-schnell", "input": {"script": script}}
    status, answer = await http.post("/api/tasks", body)
    assert status == 202, answer
    return UUID(answer["task_id"])


async def story(url: str, task_id: UUID) -> list[Message]:
    """All that the task's channel tells, from its first event to its end."""
    with trio.fail_after(60):
        async with connect(url) as socket:
            channel = await socket.join(f"task:{task_id}", {"last_seq": 0})
            missed = [Message(each["event"], each["payload"]) for each in channel.response["events"]]
            if channel.response["task"]["status"] in ("completed", "failed", "cancelled"):
                return missed
            return missed + [message async for message in channel]


def payloads(told: list[Message], event: str) -> list[dict[str, Any]]:
    return [message.payload for message in told if message.event == event]


async def fetch(url: str, link: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        return await client.get(link)


def kept(data_dir: Path) -> list[bytes]:
    """The outputs that are stored (and not the mark of the database that stores here)."""
    files = [file for file in (data_dir / "artifacts").rglob("*") if file.is_file()]
    return [file.read_bytes() for file in files if file.parent.name != "owner"]


async def test_a_picture_is_stored_told_and_fetched_by_its_signed_link(data_dir: Path) -> None:
    async with fake_replicate.serving() as service, server(data_dir, service) as (running_server, http):
        url = running_server.endpoint.urls[0]
        told = await story(url, await create(http, output=[data_url(PICTURE)]))
        assert [message.event for message in told if "seq" in message.payload][-2:] == [
            "output_stored",
            "task_completed",
        ]
        (stored,) = payloads(told, "output_stored")
        output = stored["output"]
        assert (output["type"], output["content_type"], output["file_size_bytes"]) == (
            "image",
            "image/png",
            len(PICTURE),
        )
        assert output["dimensions"] == {"width": 64, "height": 48}
        assert output["sha256"] == hashlib.sha256(PICTURE).hexdigest()
        (completed,) = payloads(told, "task_completed")
        assert completed["content_url"] == output["content_url"]
        answer = await fetch(url, completed["content_url"])
        assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, "image/png", PICTURE)
        part = await fetch(url, completed["content_url"].replace("signature=", "signature=0"))
        assert part.status_code == 404
        assert kept(data_dir) == [PICTURE]
        assert service.creates() == 1


async def test_several_pictures_keep_their_order_and_a_page_with_script_is_only_a_download(data_dir: Path) -> None:
    page = b"<!doctype html><script>alert(1)</script>"
    async with fake_replicate.serving() as service, server(data_dir, service) as (running_server, http):
        url = running_server.endpoint.urls[0]
        output = [*(data_url(picture(8 + number, 8)) for number in range(4)), data_url(page)]
        told = await story(url, await create(http, output=output))
        (completed,) = payloads(told, "task_completed")
        *pictures, other = completed["outputs"]
        assert [each["dimensions"]["width"] for each in pictures] == [8, 9, 10, 11]
        assert [each["index"] for each in completed["outputs"]] == [0, 1, 2, 3, 4]
        answer = await fetch(url, other["content_url"])
        assert answer.content == page
        assert answer.headers["content-disposition"].startswith("attachment")
        assert "sandbox" in answer.headers["content-security-policy"]


async def test_a_task_is_over_only_when_the_store_has_its_file(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storing, let = trio.Event(), trio.Event()
    put = FolderStore.put

    async def held(self: FolderStore, name: str, source: Path, content_type: str) -> StoredObject:
        storing.set()
        await let.wait()
        return await put(self, name, source, content_type)

    monkeypatch.setattr(FolderStore, "put", held)
    async with fake_replicate.serving() as service, server(data_dir, service) as (running_server, http):
        task_id = await create(http, output=[data_url(PICTURE)])
        with trio.fail_after(30):
            await storing.wait()
            (run,) = service.runs.values()
            await run.over.wait()
        _, task = await http.get(f"/api/tasks/{task_id}")
        assert (task["status"], task["outputs"]) == ("processing", [])
        let.set()
        told = await story(running_server.endpoint.urls[0], task_id)
        assert told[-1].event == "task_completed"


async def test_a_store_that_fails_sets_the_attempt_aside_and_nothing_is_bought_again(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("web.application.Patience", lambda in_place: Patience(first=0.05, in_place=in_place, aside=0.3))
    hasty = {"store_patience": 0.1}
    async with fake_replicate.serving() as service, server(data_dir, service, **hasty) as (running_server, http):
        folder = data_dir / "artifacts"
        folder.write_text("no folder can be made where this file is")
        url = running_server.endpoint.urls[0]
        task_id = await create(http, output=[data_url(PICTURE)])
        told: list[Message] = []
        async with connect(url) as socket:
            channel = await socket.join(f"task:{task_id}", {"last_seq": 0})
            told += [Message(each["event"], each["payload"]) for each in channel.response["events"]]
            with trio.fail_after(60):
                async for message in channel:
                    told.append(message)
                    if message.event == "error" and folder.is_file():
                        folder.unlink()
        (error,) = payloads(told, "error")
        assert (error["code"], error["retryable"], error["attempt"]) == ("store_failed", True, 1)
        (stored,) = payloads(told, "output_stored")
        assert stored["attempt"] == 2
        assert told[-1].event == "task_completed"
        assert service.creates() == 1
        status, report = await http.get("/api/usage")
        (run,) = service.runs.values()
        billed = run.metrics["predict_time"]
        assert (status, report["total"]["attempts"], report["total"]["predict_seconds"]) == (200, 1, billed)


REFUSED: list[tuple[Any, str, int]] = [
    (data_url(PICTURE * 20), "output_too_large", 1),
    (["data:image/png;base64,"], "empty_output", 1),
    ([data_url(PICTURE)] * 4, "too_many_outputs", 1),
    (["https://replicate.delivery.evil.example/x.png"], "forbidden_url", 1),
    (["http://169.254.169.254/latest/meta-data"], "forbidden_url", 1),
]
"""What the service gives, the code of the failure, and how many attempts are made at it."""


async def test_outputs_that_are_refused_fail_their_tasks_with_their_codes(data_dir: Path, impatient: None) -> None:
    limits = {"max_output_bytes": len(PICTURE) * 2, "max_outputs": 3}
    async with fake_replicate.serving() as service, server(data_dir, service, **limits) as (running_server, http):
        for output, code, attempts in REFUSED:
            service.runs.clear()
            told = await story(running_server.endpoint.urls[0], await create(http, output=output))
            assert not payloads(told, "task_completed")
            assert [error["code"] for error in payloads(told, "error")] == [code] * attempts
            assert service.creates() == attempts


# --- after a kill -9 ------------------------------------------------------------------------------------


async def started(nursery: trio.Nursery, data_dir: Path, service: Service) -> ServerProcess:
    environment = {
        "ELWIFT_LOCAL_MODEL": "false",
        "ELWIFT_REPLICATE_API_TOKEN": fake_replicate.TOKEN,
        "ELWIFT_REPLICATE_BASE_URL": service.url,
    }
    return await launch(nursery, data_dir, environment=environment)


async def asked_again(run: Run) -> None:
    """Until a server asks for the prediction; from a server that runs anew, that is adoption."""
    run.asked = trio.Event()
    with trio.fail_after(60):
        await run.asked.wait()


@pytest.mark.parametrize("lost", [False, True], ids=["followed", "before its id was known"])
async def test_after_kill_nine_the_same_prediction_is_adopted_and_nothing_is_bought_twice(
    data_dir: Path, lost: bool
) -> None:
    async with fake_replicate.serving() as service, trio.open_nursery() as nursery:
        if lost:  # the service takes the order, and its answer never comes
            service.faults.append(("^POST", "hang"))
        first = await started(nursery, data_dir, service)
        async with http_client(first.url, 1) as http:
            task_id = await create(http, output=[data_url(PICTURE)], held=True)
        with trio.fail_after(30):
            await service.created.wait()
        (run,) = service.runs.values()
        if not lost:
            await asked_again(run)
        await first.kill()
        second = await started(nursery, data_dir, service)
        await asked_again(run)
        run.finish.set()
        told = await story(second.url, task_id)
        (completed,) = payloads(told, "task_completed")
        assert (await fetch(second.url, completed["content_url"])).content == PICTURE
        assert run.status == "succeeded"
        assert service.creates() == 1
        assert [target for method, target in service.requests if method == "POST"] == [
            "/v1/models/black-forest-labs/flux-schnell/predictions"
        ]
        assert await second.terminate() == 0
