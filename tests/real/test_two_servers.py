"""Two servers on one database: whichever runs a task, the client that watches it at the other one sees it through."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import httpx
import pytest
import trio

from scripts.client import connect
from scripts.http_client import HttpClient, http_client
from scripts.server import serving
from tests.postgres import *  # noqa: F403

pytestmark = [pytest.mark.real, pytest.mark.slow]

LEAN = {"ELWIFT_LOCAL_MODEL": "false"}
NARROW = {**LEAN, "ELWIFT_CONCURRENCY": "1"}
INPUT = {"prompt": "hi", "model": "simulate", "input": {"steps": 4, "interval": 0.25, "text": True}}
TASKS = 8


async def create(http: HttpClient) -> UUID:
    status, answer = await http.post("/api/tasks", INPUT)
    assert status == 202, answer
    return UUID(answer["task_id"])


async def attempts(url: str) -> int:
    """How many attempts this server has made."""
    async with httpx.AsyncClient(base_url=url) as http:
        metrics = (await http.get("/metrics")).text
    lines = [line for line in metrics.splitlines() if line.startswith("elwift_provider_requests_total{")]
    return int(sum(float(line.split()[-1]) for line in lines))


async def test_a_task_that_the_other_server_runs_is_seen_to_its_end_here(data_dir: Path, conninfo: str) -> None:
    """The first server runs one at a time; the other takes what waits there."""
    database = ("--database-url", conninfo)
    with trio.fail_after(90):
        async with (
            serving(data_dir / "one", *database, environment=NARROW) as one,
            serving(data_dir / "two", *database, environment=LEAN) as two,
            http_client(one.url, 2) as here,
            http_client(two.url, 2) as there,
            connect(one.url) as socket,
        ):
            made = [await create(here) for _ in range(TASKS)]
            channels = [await socket.join(f"task:{task_id}", {"last_seq": 0}) for task_id in made]
            for channel in channels:
                events = [missed["event"] for missed in channel.response["events"]]
                events += [message.event async for message in channel]
                lasting = [event for event in events if event not in ("progress", "text_delta")]
                assert lasting[-2:] == ["llm_response", "task_completed"]
            for task_id in made:
                for http in (here, there):
                    status, task = await http.get(f"/api/tasks/{task_id}")
                    assert (status, task["status"], task["attempt"]) == (200, "completed", 1)
            shares = [await attempts(server.url) for server in (one, two)]
            assert sum(shares) == TASKS
            assert all(shares), shares
