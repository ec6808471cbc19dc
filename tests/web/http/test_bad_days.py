"""When the house lacks something: the database, room, time, or the will to take more. And when we have a bug."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import structlog
import trio
from attrs import evolve

from engine.errors import UserError
from engine.otp import NOPROC, CallFailed
from engine.ports import StorageDown
from tests.engine.fakes import House as EngineHouse
from tests.engine.fakes import house as engine_house
from web.auth import AuthSettings, Guard, OriginPolicy
from web.http import direct
from web.http.app import create_app
from web.http.exchange import Answer, Ask
from web.http.health import readiness
from web.http.house import House
from web.http.perform import incoming
from web.http.route import Route

QUICK = {"model": "simulate", "input": {"steps": 1, "interval": 0}}


@asynccontextmanager
async def served(**changes: Any) -> AsyncIterator[tuple[httpx.AsyncClient, EngineHouse]]:
    """The HTTP application over the engine with its ports in memory, asked through ASGI."""
    more = changes.pop("more", ())
    async with engine_house() as engine:
        house = evolve(House(runtime=engine.runtime, guard=Guard.open(AuthSettings())), **changes)
        transport = httpx.ASGITransport(app=create_app(house, more))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield http, engine


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


async def test_while_the_database_is_away_tasks_are_taken_in_memory_and_read_from_there() -> None:
    async with served() as (http, engine):
        engine.queue.paused = True
        engine.storage.down = True
        accepted = await http.post("/api/tasks", json=QUICK)
        task_id = accepted.json()["task_id"]
        assert (accepted.status_code, accepted.json()["durability"]) == (202, "memory")
        assert (await http.get(f"/api/tasks/{task_id}")).json()["status"] == "queued"
        assert (await http.get(f"/api/tasks/{task_id}")).json()["durability"] == "memory"
        page = (await http.get("/api/tasks")).json()
        assert ([task["id"] for task in page["tasks"]], page["partial"]) == ([task_id], True)
        log = (await http.get(f"/api/tasks/{task_id}/events")).json()
        assert [(event["type"], event["durability"]) for event in log["events"]] == [("created", "memory")]
        assert (await http.get("/readyz")).json()["status"] == "degraded"


async def test_a_cancellation_that_a_crash_could_undo_says_so_until_it_is_stored() -> None:
    async with served() as (http, engine):
        engine.queue.paused = True
        task = (await http.post("/api/tasks", json=QUICK)).headers["location"]
        engine.storage.down = True
        cancelled = (await http.post(f"{task}/cancel")).json()
        assert (cancelled["status"], cancelled["durability"]) == ("cancelled", "memory")
        rows = (await http.get(f"{task}/events")).json()["events"]
        assert [(row["type"], row.get("durability")) for row in rows] == [("created", None), ("cancelled", "memory")]
        engine.storage.back()
        assert (await http.post(f"{task}/cancel")).json()["durability"] == "durable"


async def test_what_only_the_database_knows_is_503_while_it_is_away() -> None:
    async with served() as (http, engine):
        engine.storage.down = True
        for path in ("/api/tasks/0199c1f2-0000-7000-8000-000000000000", "/api/tasks?cursor=x"):
            answer = await http.get(path)
            assert code(answer) == (503, "storage_down")
            assert int(answer.headers["retry-after"]) >= 1


async def test_a_full_journal_is_503_with_its_own_wait() -> None:
    async with served() as (http, engine):
        engine.storage.full = 17.0
        answer = await http.post("/api/tasks", json=QUICK)
        assert code(answer) == (503, "journal_full")
        assert (answer.headers["retry-after"], answer.json()["retry_after"]) == ("17", 17.0)


@pytest.mark.parametrize("refused", ["over_capacity", "over_quota"])
async def test_over_capacity_is_429_with_retry_after(refused: str) -> None:
    async with served() as (http, engine):
        engine.queue.refusal = UserError(refused, "Too much is waiting; try again in 8 s.", retry_after=8.0)
        answer = await http.post("/api/tasks", json=QUICK)
        assert code(answer) == (429, refused)
        assert answer.headers["retry-after"] == "8"


async def test_a_draining_server_takes_no_task_and_still_shows_them() -> None:
    async with served(draining=lambda: True) as (http, _):
        answer = await http.post("/api/tasks", json=QUICK)
        assert code(answer) == (503, "draining")
        assert "retry-after" in answer.headers
        assert (await http.get("/api/tasks")).status_code == 200
        assert (await http.get("/readyz")).status_code == 503
        assert (await http.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:4000", 200),
        ("localhost", 200),
        ("LocalHost:4000", 200),
        ("[::1]:4000", 200),
        ("evil.example", 403),
        ("evil.example:4000", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost:x", 403),
    ],
)
async def test_without_tokens_a_foreign_name_for_this_machine_is_refused(host: str, status: int) -> None:
    async with served(origins=OriginPolicy(loopback_only=True)) as (http, _):
        assert (await http.get("/api/tasks", headers={"Host": host})).status_code == status
        assert (await http.get("/healthz", headers={"Host": host})).status_code == 200


def failing(error: BaseException) -> Route:
    async def fail(house: House, ask: Ask) -> Answer:
        raise error

    return Route("GET", "/fail", fail, "fails", open=True)


async def test_a_bug_costs_its_own_request_and_is_told_without_its_traceback() -> None:
    with structlog.testing.capture_logs() as logs:
        async with served(more=[failing(ZeroDivisionError("secret of the house"))]) as (http, _):
            answer = await http.get("/fail")
            assert code(answer) == (500, "internal_error")
            assert "secret" not in answer.text
            assert (await http.get("/healthz")).status_code == 200
    (line,) = [line for line in logs if line["log_level"] == "error"]
    assert line["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [(StorageDown(), (503, "storage_down")), (CallFailed(NOPROC, "nobody", "GetState"), (503, "timeout"))],
)
async def test_what_the_house_lacks_for_a_moment_is_503(error: BaseException, expected: tuple[int, str]) -> None:
    async with served(more=[failing(error)]) as (http, _):
        answer = await http.get("/fail")
        assert code(answer) == expected
        assert "retry-after" in answer.headers


async def test_a_body_that_does_not_come_is_408(autojump_clock: trio.testing.MockClock) -> None:
    head = incoming({"method": "POST", "path": "/api/tasks", "headers": [], "query_string": b""})

    async def receive() -> dict[str, Any]:
        await trio.sleep_forever()
        raise AssertionError

    with pytest.raises(UserError) as caught:
        await direct.read_body(head, receive, limit=1000, timeout=30)
    assert caught.value.code == "request_timeout"
    assert trio.current_time() >= 30


async def test_a_client_that_leaves_before_its_body_is_there_makes_no_task() -> None:
    async with served() as (_, engine):
        house = House(runtime=engine.runtime, guard=Guard.open(AuthSettings()))
        told = [{"type": "http.request", "body": b'{"pro', "more_body": True}, {"type": "http.disconnect"}]

        async def receive() -> dict[str, Any]:
            return told.pop(0)

        async def send(message: dict[str, Any]) -> None:
            raise AssertionError(message)

        app = create_app(house)
        scope = {"type": "http", "method": "POST", "path": "/api/tasks", "headers": [], "query_string": b""}
        await app.asgi_app(scope, receive, send)
        assert engine.storage.tasks == {}


@pytest.mark.parametrize(
    ("up", "accepting", "draining", "expected"),
    [
        (True, True, False, "ready"),
        (True, False, False, "ready"),
        (False, True, False, "degraded"),
        (False, False, False, "unready"),
        (True, True, True, "unready"),
    ],
)
def test_readiness_weighs_the_journal_and_draining(up: bool, accepting: bool, draining: bool, expected: str) -> None:
    from engine.ports import JournalHealth

    assert readiness(JournalHealth(up, 0.0, 0, 100, accepting=accepting), draining)["status"] == expected


async def test_the_last_error_of_the_database_is_not_for_everybody() -> None:
    async with served() as (http, _):
        assert json.loads((await http.get("/readyz")).content)["journal"].keys() >= {"up", "since", "buffered", "bound"}
