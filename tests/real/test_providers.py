"""Tasks of outside providers through a whole server: the services are the fakes that behave like them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import trio
from typed_settings.types import SecretStr

from engine.tasks import lookup
from engine.tasks.state import Status, TaskState
from scripts.client import ClientChannel, Message, connect
from scripts.http_client import HttpClient, http_client
from tests.engine.providers import fake_llm, fake_replicate
from tests.engine.providers.fake_llm import Plan
from web.application import Application
from web.serve import running
from web.settings import Settings


@asynccontextmanager
async def server(data_dir: Path, **settings: Any) -> AsyncIterator[tuple[Application, HttpClient]]:
    given = Settings(port=0, data_dir=data_dir, local_model=False, preempt_budget=0, **settings)
    async with running(given) as application, http_client(application.endpoint.urls[0], 2) as http:
        yield application, http


async def create(http: HttpClient, model: str, **input: Any) -> UUID:
    status, answer = await http.post("/api/tasks", {"prompt": "Say hello", "model": model, "input": input})
    assert status == 202, answer
    return UUID(answer["task_id"])


async def over(application: Application, task_id: UUID) -> TaskState:
    with trio.fail_after(30):
        while True:
            task = await lookup.find(application.runtime, task_id)
            assert task is not None
            if task.status.terminal:
                return task
            await trio.sleep(0.02)


async def told(channel: ClientChannel) -> list[Message]:
    return [message async for message in channel]


async def predictions(application: Application) -> list[tuple[Any, ...]]:
    async with application.persistence.pool.connection() as connection:
        cursor = await connection.execute("SELECT provider, status, attempt FROM predictions ORDER BY created_at")
        return await cursor.fetchall()


async def test_a_replicate_task_runs_and_leaves_its_prediction_on_record(data_dir: Path) -> None:
    async with fake_replicate.serving() as service:
        token = {"replicate_api_token": SecretStr(fake_replicate.TOKEN), "replicate_base_url": service.url}
        async with server(data_dir, **token) as (application, http):
            script = {"pieces": ["a ", "poem"], "cost": 0.5}
            task = await over(application, await create(http, "flux-schnell", script=script))
            assert (task.status, task.text, task.attempt) == (Status.COMPLETED, "a poem", 1)
            assert task.usage is not None
            assert task.usage.predict_seconds == 0.5
            assert await predictions(application) == [("replicate", "succeeded", 1)]
            assert service.creates() == 1


async def test_cancelling_a_task_cancels_its_prediction_at_replicate(data_dir: Path) -> None:
    async with fake_replicate.serving() as service:
        token = {"replicate_api_token": SecretStr(fake_replicate.TOKEN), "replicate_base_url": service.url}
        async with server(data_dir, **token) as (application, http):
            task_id = await create(http, "flux-schnell", script={"steps": 1000, "interval": 1.0})
            with trio.fail_after(10):
                await service.created.wait()
            status, answer = await http.post(f"/api/tasks/{task_id}/cancel", {})
            assert (status, answer["status"]) == (200, "cancelled")
            (run,) = service.runs.values()
            with trio.fail_after(10):
                await run.over.wait()
            assert run.status == "canceled"
            assert (await over(application, task_id)).status is Status.CANCELLED


async def test_throttling_burns_no_attempt(data_dir: Path) -> None:
    async with fake_replicate.serving() as service:
        token = {"replicate_api_token": SecretStr(fake_replicate.TOKEN), "replicate_base_url": service.url}
        service.faults.append(("^POST", "throttled briefly"))
        async with server(data_dir, **token) as (application, http):
            task = await over(application, await create(http, "flux-schnell", script={}))
            assert (task.status, task.attempt) == (Status.COMPLETED, 1)
            assert service.creates() == 1
            async with application.persistence.pool.connection() as connection:
                cursor = await connection.execute("SELECT attempt FROM jobs WHERE task_id = %s", (task.id,))
                assert await cursor.fetchall() == [(1,)]


async def test_a_model_that_fails_before_its_first_token_is_answered_for_by_a_simpler_one(data_dir: Path) -> None:
    async with fake_llm.serving() as service:
        service.plan = Plan(fault="500", faulty=b"gpt-6.2-sol")
        key = {"openai_api_key": SecretStr("key"), "openai_base_url": f"{service.url}/v1"}
        async with server(data_dir, **key) as (application, http):
            async with connect(application.endpoint.urls[0]) as socket:
                channel = await socket.join(f"task:{await create(http, 'gpt-6.2-sol')}", {"last_seq": 0})
                with trio.fail_after(30):
                    messages = await told(channel)
            answer = next(message.payload["text"] for message in messages if message.event == "llm_response")
            assert answer == "Hello there wörld"
            assert not [message for message in messages if message.event in ("error", "reset")]
            asked = [request.body for request in service.requests]
            assert [b"gpt-6.2-sol" in body for body in asked] == [True, False]


async def test_a_stream_that_breaks_after_its_first_token_is_reset_and_made_again(data_dir: Path) -> None:
    async with fake_llm.serving() as service:
        service.plan = Plan(fault="ends", fault_after=2)
        key = {"anthropic_api_key": SecretStr("key"), "anthropic_base_url": service.url}
        async with server(data_dir, **key) as (application, http):
            async with connect(application.endpoint.urls[0]) as socket:
                channel = await socket.join(f"task:{await create(http, 'claude-sonnet-5-5')}", {"last_seq": 0})
                missed = [Message(each["event"], each["payload"]) for each in channel.response["events"]]
                seen: list[Message] = [*missed]
                with trio.fail_after(90):
                    async for message in channel:
                        seen.append(message)
                        if message.event == "reset":
                            service.plan = Plan()
            events = [message.event for message in seen if "seq" in message.payload]
            assert "reset" in events
            assert events[-1] == "task_completed"
            second = [m.payload for m in seen if m.event == "text_delta" and m.payload["attempt"] == 2]
            assert second[0]["offset"] == 0
            assert "".join(delta["text"] for delta in second) == "Hello there wörld"
