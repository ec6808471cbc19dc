"""Routing through a whole server: keys, quotas and kept answers, with services that behave like the LLM providers."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field
from typed_settings.types import SecretStr

from engine.tasks.state import Status
from scripts.http_client import HttpClient
from tests.engine.providers import fake_llm, raw_http
from tests.engine.providers.raw_http import Reply, Request
from tests.real.test_providers import create, over, server
from web.application import Application

pytestmark = pytest.mark.real


@define
class Gate(fake_llm.Service):
    """The services behind a door: it knows the keys that are revoked, and how long nobody gets in."""

    revoked: set[str] = field(factory=set)
    closed_for: int = 0
    asked: list[str] = field(factory=list)
    """The keys, in the order of the requests."""

    async def handle(self, request: Request, reply: Reply) -> None:
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        self.asked.append(key)
        if key in self.revoked:
            await reply.whole(401, {}, json.dumps({"error": {"code": "invalid_api_key", "message": "no"}}).encode())
        elif self.closed_for:
            wait = {"retry-after": str(self.closed_for)}
            await reply.whole(429, wait, json.dumps({"error": {"code": "rate_limit", "message": "slow"}}).encode())
        else:
            await fake_llm.Service.handle(self, request, reply)


@asynccontextmanager
async def gated(data_dir: Path, keys: str) -> AsyncIterator[tuple[Gate, Application, HttpClient]]:
    gate = Gate()
    async with raw_http.serving(gate.handle) as (url, _):
        given: dict[str, Any] = {"openai_api_key": SecretStr(keys), "openai_base_url": f"{url}/v1"}
        async with server(data_dir, **given) as (application, http):
            yield gate, application, http


async def add_model(http: HttpClient, **settings: Any) -> None:
    row = {"name": "mine", "provider": "openai", "slug": "mine", "version": "1", "category": "text"}
    status, answer = await http.post("/api/models", {**row, "settings": settings})
    assert status == 201, answer


async def test_a_revoked_key_stops_nobody_and_alarms_the_operators(data_dir: Path) -> None:
    async with gated(data_dir, "good,gone") as (gate, application, http):
        gate.revoked.add("gone")
        await add_model(http)
        for _ in range(6):
            task = await over(application, await create(http, "mine"))
            assert (task.status, task.attempt) == (Status.COMPLETED, 1)
        assert gate.asked.count("gone") == 1
        assert application.operators.watch is not None
        application.operators.watch.judge()
        _, seen = await http.get("/api/overview")
        (alarm,) = [alarm for alarm in seen["alarms"] if alarm["name"] == "provider_refuses_us"]
        assert "openai (key 2" in alarm["message"]
        assert "gone" not in json.dumps(seen["alarms"])


async def test_a_quota_that_is_used_up_for_an_hour_is_waited_for_in_silence(data_dir: Path) -> None:
    """One request hears it, all tasks are told when they go on, none loses an attempt, and nothing spins."""
    async with gated(data_dir, "key") as (gate, application, http):
        gate.closed_for = 3600
        await add_model(http)
        tasks = [await create(http, "mine") for _ in range(40)]
        with trio.fail_after(20):
            for task_id in tasks:
                while (task := (await http.get(f"/api/tasks/{task_id}"))[1])["error"] is None:  # noqa: ASYNC110 - as a client
                    await trio.sleep(0.02)
                assert task["status"] == "queued"
                assert task["error"]["will_retry_at"] > time.time() + 3500, task["error"]
        assert len(gate.asked) == 1
        async with application.persistence.pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT state, attempt, count(*) FROM jobs WHERE task_id = ANY(%s) GROUP BY 1, 2", (tasks,)
            )
            rows = await cursor.fetchall()
        assert [(row[1], row[2]) for row in rows] == [(0, 40)]
        before = time.process_time()
        await trio.sleep(1.0)  # how much is done in a second in which there is nothing to do
        assert time.process_time() - before < 0.5
        gate.closed_for = 0
        status, answer = await http.post(f"/api/tasks/{tasks[0]}/cancel", {})
        assert (status, answer["status"]) == (200, "cancelled")


async def test_the_same_question_again_is_answered_from_memory_and_free(data_dir: Path) -> None:
    async with gated(data_dir, "key") as (gate, application, http):
        await add_model(http, cache_seconds=60)
        first = await over(application, await create(http, "mine", seed=1))
        again = await over(application, await create(http, "mine", seed=1))
        await over(application, await create(http, "mine", seed=2))
        assert first.text == again.text == "Hello there wörld"
        assert len(gate.asked) == 2
        assert again.usage is not None
        assert (again.usage.input_tokens, again.usage.output_tokens, again.usage.cost) == (0, 0, 0.0)
        _, log = await http.get(f"/api/tasks/{again.id}/events")
        (end,) = [event["payload"] for event in log["events"] if event["type"] == "completed"]
        assert end["cached"] is True


async def test_a_model_can_have_a_queue_of_its_own(data_dir: Path) -> None:
    row = {"name": "apart", "provider": "simulate", "slug": "apart", "version": "1", "category": "text"}
    async with server(data_dir, queues="slow=1") as (application, http):
        assert (await http.post("/api/models", {**row, "settings": {"queue": "nowhere"}}))[0] == 400
        assert (await http.post("/api/models", {**row, "settings": {"queue": "slow"}}))[0] == 201
        task = await over(application, await create(http, "apart", steps=2, interval=0.01))
        assert (task.status, task.queue) == (Status.COMPLETED, "slow")
