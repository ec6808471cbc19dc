"""Cog servers on their bad days, through a whole server: what becomes of the tasks, and what is on the bill."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from socket import create_server
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest
import trio
from attrs import define, evolve, field

from engine.providers.cog import Patience
from engine.providers.protocol import Finished, TextDelta
from engine.tasks.state import Status
from scripts.http_client import HttpClient, http_client
from tests.engine.providers import fake_cog
from tests.engine.providers.fake_cog import FakeCog, Plan
from tests.real.cog.servers import events_of, launcher, request
from web.application import Application
from web.serve import running
from web.settings import Settings

pytestmark = pytest.mark.real
QUICK = Patience(
    answer=1.0, silence=0.3, illness=0.6, end=3.0, end_adopted=3.0, unclear=1.0, deaf=1.0, run=20.0, slot=0.5,
    slot_again=0.1, cancel=1.0,
)  # fmt: skip
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(3_000_000)).decode()
REFUSED = {"detail": [{"loc": ["body", "input", "steps"], "msg": "must be an integer", "type": "type_error"}]}


@define
class Day:
    """What a server does, and what is to become of a task for it: its `text`, or the `code` it fails with; `runs` of
    the model on the bill; `attempts` that count, of three."""

    plan: Plan
    text: str | None = "Hello there you"
    code: str = ""
    runs: int = 1
    attempts: int = 1
    files: list[tuple[str, int]] = field(factory=list)
    upset: Callable[[FakeCog], None] | None = None
    """Done to the server once the model runs."""


DAYS = {
    "a good one": Day(Plan()),
    "no slot for a while": Day(Plan(refusals=[(409, {})] * 8)),
    "starting for a while": Day(Plan(refusals=[(503, {})] * 2)),
    "webhooks out of order": Day(Plan(backwards=True)),
    "webhooks told twice": Day(Plan(repeat=2)),
    "a wrong bearer": Day(Plan(headers={"authorization": "Bearer nonsense"})),
    "news of an unknown kind": Day(Plan(strange=True)),
    "word of the beginning is lost": Day(Plan(lose=("start", "output"))),
    "all webhooks are lost": Day(Plan(lose=("start", "output", "completed")), runs=2, attempts=2),
    "word of the end is lost": Day(Plan(lose=("completed",)), runs=2, attempts=2),
    "word of the end is lost by one that streams": Day(Plan(lose=("completed",), streams=True), runs=2, attempts=2),
    "a field is refused": Day(Plan(refusals=[(422, REFUSED)]), None, "invalid_input", runs=0),
    "an error of the server": Day(Plan(refusals=[(500, {})]), attempts=2),
    "a redirect": Day(Plan(refusals=[(302, {})]), None, "provider_misconfigured", runs=0),
    "not a Cog server": Day(Plan(refusals=[(404, {})]), None, "provider_misconfigured", runs=0),
    "the answer is lost": Day(Plan(drop=1, pause=0.1)),
    "no answer": Day(Plan(hang=True), None, "provider_unreachable", runs=0, attempts=3),
    "ten megabytes of logs": Day(Plan(logs="tick\n" * 2_000_000)),
    "no output": Day(Plan(pieces=[]), None, "no_output"),
    "an object": Day(Plan(pieces=[], output={"label": "cat", "score": 0.5}), '{"label":"cat","score":0.5}'),
    "a large picture": Day(
        Plan(pieces=[], output=f"data:image/png;base64,{PNG}"), "", files=[("image/png", 3_000_008)]
    ),
    "a picture that is a program": Day(
        Plan(pieces=[], output="data:image/png;base64," + base64.b64encode(b"#!/bin/sh\nexit 1\n").decode()),
        "",
        files=[("text/plain", 17)],
    ),
    "half a data URL": Day(Plan(pieces=[], output="data:image/png;base64,iVBO*"), None, "bad_output"),
    "a file somewhere": Day(Plan(pieces=[], output="http://127.0.0.1:9/out.png"), None, "forbidden_url"),
    "an input refused in the end": Day(
        Plan(pieces=[], status="failed", error="Input validation error: prompt: too rude"), None, "invalid_input"
    ),
    "the server crashes": Day(Plan(pause=0.3), runs=2, attempts=2, upset=lambda cog: cog.crash()),
    "unhealthy": Day(
        Plan(refusals=[(409, {})] * 9, health="UNHEALTHY"), None, "provider_unhealthy", runs=0, attempts=3
    ),
}  # fmt: skip


@asynccontextmanager
async def serving(
    data_dir: Path, cogs: dict[str, FakeCog], patience: Patience = QUICK
) -> AsyncIterator[tuple[Application, HttpClient]]:
    urls = ",".join(f"{name}={cog.url}" for name, cog in cogs.items())
    settings = Settings(port=0, data_dir=data_dir, local_model=False, preempt_budget=0, cog_urls=urls)
    async with running(settings) as application, http_client(application.endpoint.urls[0], 4) as http:
        assert application.backends.cog is not None
        application.backends.cog.patience = patience
        for name in cogs:
            row = {"name": name, "provider": "cog", "slug": name, "version": "1", "category": "text"}
            assert (await http.post("/api/models", row))[0] == 201
        yield application, http


async def create(http: HttpClient, model: str) -> UUID:
    status, answer = await http.post("/api/tasks", {"prompt": "hi", "model": model})
    assert status == 202, answer
    return UUID(answer["task_id"])


async def over(http: HttpClient, task_id: UUID) -> dict[str, Any]:
    while True:
        _, task = await http.get(f"/api/tasks/{task_id}")
        if Status(task["status"]).terminal:
            return dict(task)
        await trio.sleep(0.1)


async def attempts_of(application: Application, task_id: UUID) -> int:
    async with application.persistence.pool.connection() as connection:
        cursor = await connection.execute("SELECT attempt FROM jobs WHERE task_id = %s", (task_id,))
        (row,) = await cursor.fetchall()
    return int(row[0])


async def test_bad_days_end_as_they_should_and_cost_what_they_should(data_dir: Path) -> None:
    wrong: dict[str, Any] = {}
    async with AsyncExitStack() as stack:
        cogs = {
            f"cog{number}": await stack.enter_async_context(fake_cog.serving(day.plan))
            for number, day in enumerate(DAYS.values())
        }
        application, http = await stack.enter_async_context(serving(data_dir, cogs))

        async def spend(name: str, day: Day, model: str, cog: FakeCog) -> None:
            task_id = await create(http, model)
            if day.upset is not None:
                await cog.began.wait()
                day.upset(cog)
            task = await over(http, task_id)
            found = {
                "text": task["response"] if task["status"] == "completed" else None,
                "code": (task["error"] or {}).get("code", ""),
                "runs": len(cog.runs),
                "attempts": await attempts_of(application, task_id),
                "files": [(output["content_type"], output["file_size_bytes"]) for output in task["outputs"]],
            }
            due = {"text": day.text, "code": day.code, "runs": day.runs, "attempts": day.attempts, "files": day.files}
            if found != due:
                wrong[name] = {key: (found[key], due[key]) for key in due if found[key] != due[key]} | {
                    "e": task["error"]
                }

        with trio.move_on_after(60):
            async with trio.open_nursery() as nursery:
                for (name, day), (model, cog) in zip(DAYS.items(), cogs.items(), strict=True):
                    wrong[name] = "not over"
                    nursery.start_soon(spend, name, day, model, cog)
                    del wrong[name]
    assert wrong == {}


async def test_cancelling_stops_the_prediction_wherever_it_is(data_dir: Path) -> None:
    """At work, waiting for a slot, over already."""
    async with (
        fake_cog.serving(Plan(pieces=["x"] * 1000, pause=0.05)) as cog,
        serving(data_dir, {"cog": cog}) as (_, http),
    ):
        at_work = await create(http, "cog")
        with trio.fail_after(10):
            await cog.began.wait()
        waiting = await create(http, "cog")
        await queued(http, waiting)
        for task_id in (waiting, at_work):
            status, answer = await http.post(f"/api/tasks/{task_id}/cancel", {})
            assert (status, answer["status"]) == (200, "cancelled")
        with trio.fail_after(10):
            while cog.running:  # noqa: ASYNC110 - the server is another's
                await trio.sleep(0.02)
        cog.plan = Plan()
        done = await create(http, "cog")
        with trio.fail_after(10):
            assert (await over(http, done))["status"] == "completed"
        status, answer = await http.post(f"/api/tasks/{done}/cancel", {})
        assert (status, answer["status"]) == (200, "completed")
        assert len(cog.runs) == 2
        assert len(cog.cancels) == 1


async def queued(http: HttpClient, task_id: UUID) -> None:
    """Waits until the task has been at the server in vain."""
    with trio.fail_after(10):
        while True:
            _, task = await http.get(f"/api/tasks/{task_id}")
            if task["step"] == "waiting" or (task["error"] or {}).get("code") == "provider_busy":
                return
            await trio.sleep(0.02)


async def test_more_tasks_than_slots_cost_no_attempt_and_no_run(data_dir: Path) -> None:
    """Of servers with one slot and with three, of which nobody has told how many they have."""
    async with (
        fake_cog.serving(Plan(pause=0.1)) as narrow,
        fake_cog.serving(Plan(pause=0.1), slots=3) as wide,
        serving(data_dir, {"narrow": narrow, "wide": wide}, Patience(slot=1.0, slot_again=0.1)) as (application, http),
    ):
        tasks = [await create(http, name) for name in ("narrow", "wide") for _ in range(8)]
        with trio.fail_after(40):
            assert {(await over(http, task))["status"] for task in tasks} == {"completed"}
        assert (len(narrow.runs), len(wide.runs)) == (8, 8)
        assert {await attempts_of(application, task) for task in tasks} == {1}


async def test_a_server_that_is_out_of_reach_for_a_while_is_not_asked_to_do_its_work_again(data_dir: Path) -> None:
    """Its webhooks, too, are lost meanwhile; the end comes when the way is free again."""
    plan = Plan(pieces=["a ", "b ", "c "], pause=1.0, lose=("output",))
    async with fake_cog.serving(plan) as cog, serving(data_dir, {"cog": cog}) as (application, http):
        task_id = await create(http, "cog")
        with trio.fail_after(30):
            await cog.began.wait()
            plan.away = True
            while (await http.get(f"/api/tasks/{task_id}"))[1]["error"] is None:  # noqa: ASYNC110 - as a client
                await trio.sleep(0.05)
            plan.away = False
            task = await over(http, task_id)
        assert (task["status"], task["response"]) == ("completed", "a b c ")
        assert (len(cog.runs), cog.cancels, await attempts_of(application, task_id)) == (1, [], 2)


async def test_a_result_on_record_is_taken_from_there(data_dir: Path) -> None:
    """A server that died between the webhook and its task: the model server has forgotten the prediction."""
    async with fake_cog.serving() as cog, serving(data_dir, {"cog": cog}) as (application, http):
        provider, attempt = application.backends.cog, uuid4()
        assert provider is not None
        body = {"status": "succeeded", "output": ["on", " record"], "metrics": {"predict_time": 2.0}}
        url = urlsplit(provider.webhook(attempt))
        status, _ = await http.post(f"{url.path}?{url.query}", body)
        assert status == 204
        strange = {**body, "output": "x" * 2_000_000}
        assert (await http.post(f"{url.path}?attempt={uuid4()}&signature=0", strange))[0] == 413
        wanted = evolve(request("cog"), attempt_id=attempt, external_id=str(attempt))
        events = await events_of(provider, wanted)
        assert [event for event in events if isinstance(event, TextDelta)] == [TextDelta("on record")]
        assert isinstance(events[-1], Finished)
        assert cog.puts == 0


async def test_a_prediction_outlives_two_lives_of_the_server_and_is_taken_up_by_the_third(data_dir: Path) -> None:
    """One prediction is at work all the time; the other ends while nobody is there to hear it, and is told again."""
    long, short = Plan(pieces=["a ", "b ", "c ", "d "], pause=2.0), Plan(pieces=["e ", "f "], pause=0.7)
    with create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    async with AsyncExitStack() as stack:
        slow, quick = [await stack.enter_async_context(fake_cog.serving(plan)) for plan in (long, short)]
        urls = f"slow={slow.url},quick={quick.url}"
        start = await stack.enter_async_context(launcher(data_dir, ELWIFT_LOCAL_MODEL="false", ELWIFT_COG_URLS=urls))
        server = await start("--port", port)
        tasks = []
        async with http_client(server.url, 2) as http:
            for name in ("slow", "quick"):
                row = {"name": name, "provider": "cog", "slug": name, "version": "1", "category": "text"}
                assert (await http.post("/api/models", row))[0] == 201
                tasks.append(await create(http, name))
            await begun(http, tasks)
        for cog in (slow, quick):
            await cog.began.wait()
        assert await server.terminate() == 0
        while quick.running:  # noqa: ASYNC110 - the model runs in its own time
            await trio.sleep(0.05)
        server = await start("--port", port)
        async with http_client(server.url, 2) as http:
            await begun(http, tasks[:1])
        await server.kill()
        server = await start("--port", port)
        async with http_client(server.url, 2) as http:
            with trio.fail_after(60):
                found = [(task["status"], task["response"]) for task in [await over(http, task) for task in tasks]]
        await server.terminate()
    assert found == [("completed", "a b c d "), ("completed", "e f ")]
    assert (len(slow.runs), len(quick.runs)) == (1, 1)
    assert slow.cancels == quick.cancels == []


async def begun(http: HttpClient, tasks: list[UUID]) -> None:
    with trio.fail_after(20):
        for task_id in tasks:
            while (await http.get(f"/api/tasks/{task_id}"))[1]["status"] == "queued":  # noqa: ASYNC110 - as a client
                await trio.sleep(0.02)
