"""A daily budget on a real server: refused once it is spent, with the time until midnight, and after a restart, too."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.client import connect
from tests.real.conftest import data_dir as data_dir
from web.serve import running
from web.settings import Settings

MODEL = {"name": "priced", "provider": "simulate", "slug": "priced", "version": "1", "category": "text"}
WISH = {"model": "priced", "input": {"steps": 3, "interval": 0, "text": True}}


async def ended(url: str, answer: httpx.Response) -> str:
    """Waits on the task's channel until it is over; its id."""
    assert answer.status_code == 202, answer.text
    task_id: str = answer.json()["task_id"]
    async with connect(url) as socket:
        channel = await socket.join(f"task:{task_id}", {"last_seq": 0})
        _ = [message async for message in channel]
    return task_id


async def refusal(http: httpx.AsyncClient, **wish: Any) -> tuple[int, str, Any]:
    answer = await http.post("/api/tasks", json=WISH | wish)
    return answer.status_code, answer.json()["code"], float(answer.headers["retry-after"])


async def test_what_is_spent_stays_spent_over_a_restart_and_a_deletion(data_dir: Path) -> None:
    settings = Settings(port=0, data_dir=data_dir, local_model=False, preempt_budget=0, daily_budget=0.05)
    midnight = pytest.approx(86400 - time.time() % 86400, abs=120)
    async with running(settings) as application:
        url = application.endpoint.urls[0]
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            assert (await http.post("/api/models", json=MODEL | {"price": {"output_token": 0.01}})).status_code == 201
            for _ in range(2):  # the second passes the budget, and runs to its end
                task_id = await ended(url, await http.post("/api/tasks", json=WISH))
                assert (await http.get(f"/api/tasks/{task_id}")).json()["status"] == "completed"
            assert await refusal(http) == (429, "over_budget", midnight)
            report = (await http.get("/api/usage")).json()
            assert (report["daily_budget"], report["total"]["cost"]) == (0.05, pytest.approx(0.06))
            assert (await http.delete(f"/api/tasks/{task_id}")).status_code == 204
    async with running(settings) as application:
        url = application.endpoint.urls[0]
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            assert await refusal(http) == (429, "over_budget", midnight)
            await ended(url, await http.post("/api/tasks", json=WISH | {"user_id": "another"}))
