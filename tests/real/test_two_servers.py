"""Two servers on one database: a task lives on one of them, and is seen and ordered about from both."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
import trio
from attrs import frozen

from scripts.client import ClientChannel, Message, PhoenixSocket, connect
from scripts.http_client import HttpClient, http_client
from scripts.server import ServerProcess, launch, serving
from tests.held import held
from tests.postgres import *  # noqa: F403
from tests.postgres import TestServer
from tests.real.conftest import new_data_dir

pytestmark = [pytest.mark.real, pytest.mark.slow]

LEAN = {"ELWIFT_LOCAL_MODEL": "false"}
NARROW = {**LEAN, "ELWIFT_CONCURRENCY": "1"}
SHORT = {**LEAN, "ELWIFT_LEASE": "2"}
QUEUES = {"ELWIFT_QUEUES": "scarce=4 global=3, paced=4 rate=4/1"}
TERMINAL = {"completed", "failed", "cancelled"}


@frozen
class Pair:
    """The first server runs one task at a time; the other many."""

    one: ServerProcess
    two: ServerProcess


@pytest.fixture(scope="module")
def pair(postgres_server: TestServer) -> Iterator[Pair]:
    name = postgres_server.create()
    database = ("--database-url", postgres_server.conninfo(name))

    @asynccontextmanager
    async def both() -> AsyncIterator[Pair]:
        with new_data_dir() as one, new_data_dir() as two:
            async with (
                serving(one, *database, environment={**NARROW, **QUEUES}) as first,
                serving(two, *database, environment={**LEAN, **QUEUES}) as second,
            ):
                yield Pair(first, second)

    with held(both) as running:
        yield running
    postgres_server.drop(name)


def wish(steps: int = 4, interval: float = 0.25, **more: Any) -> dict[str, Any]:
    return {"prompt": "hi", "model": "simulate", "input": {"steps": steps, "interval": interval, "text": True, **more}}


async def create(http: HttpClient, body: dict[str, Any] | None = None) -> UUID:
    status, answer = await http.post("/api/tasks", body or wish())
    assert status == 202, answer
    return UUID(answer["task_id"])


async def metric(url: str, name: str) -> int:
    """The sum of a metric over its labels."""
    async with httpx.AsyncClient(base_url=url) as http:
        metrics = (await http.get("/metrics")).text
    lines = [line for line in metrics.splitlines() if line.startswith((name + "{", name + " "))]
    return int(sum(float(line.split()[-1]) for line in lines))


async def attempts(url: str) -> int:
    """How many attempts this server has made."""
    return await metric(url, "elwift_provider_requests_total")


async def joined(socket: PhoenixSocket, task_id: UUID) -> ClientChannel:
    return await socket.join(f"task:{task_id}", {"last_seq": 0})


async def story(channel: ClientChannel) -> list[Message]:
    """All that the channel tells until the server ends it, missed events first."""
    told = [Message(missed["event"], missed["payload"]) for missed in channel.response["events"]]
    return told + [message async for message in channel]


async def hears(channel: ClientChannel, event: str) -> None:
    """Returns once the channel tells this."""
    async for message in channel:
        if message.event == event:
            return
    raise AssertionError(f"the channel ended without {event}")


def lasting(messages: Sequence[Message]) -> list[str]:
    return [message.event for message in messages if "seq" in message.payload]


async def until(http: HttpClient, task_id: UUID, *statuses: str) -> dict[str, Any]:
    """The task once it is in one of these statuses, as this server tells it."""
    while True:
        status, task = await http.get(f"/api/tasks/{task_id}")
        assert status == 200, task
        if task["status"] in statuses:
            return dict(task)
        await trio.sleep(0.05)


async def test_a_task_that_the_other_server_runs_is_seen_to_its_end_here(pair: Pair) -> None:
    """The first server runs one at a time; the other takes what waits there."""
    before = [await attempts(server.url) for server in (pair.one, pair.two)]
    with trio.fail_after(120):
        async with (
            http_client(pair.one.url, 2) as here,
            http_client(pair.two.url, 2) as there,
            connect(pair.one.url) as socket,
        ):
            made = [await create(here) for _ in range(8)]
            for channel in [await joined(socket, task_id) for task_id in made]:
                assert lasting(await story(channel))[-2:] == ["llm_response", "task_completed"]
            for task_id in made:
                for http in (here, there):
                    task = await until(http, task_id, *TERMINAL)
                    assert (task["status"], task["attempt"]) == ("completed", 1)
    shares = [await attempts(server.url) - was for server, was in zip((pair.one, pair.two), before, strict=True)]
    assert sum(shares) == 8
    assert all(shares), shares


async def test_progress_and_text_reach_who_watches_at_the_other_server(pair: Pair) -> None:
    with trio.fail_after(30):
        async with http_client(pair.one.url, 1) as here, connect(pair.two.url) as socket:
            task_id = await create(here, wish(steps=16, interval=0.125))
            await until(here, task_id, "processing")
            channel = await joined(socket, task_id)
            told = await story(channel)
    text = channel.response.get("text", "") or ""
    for delta in (message.payload for message in told if message.event == "text_delta"):
        assert delta["offset"] <= len(text)
        text = text[: delta["offset"]] + delta["text"]
    assert text == next(m.payload["text"] for m in told if m.event == "llm_response")
    assert len([message for message in told if message.event == "text_delta"]) >= 5
    fractions = [message.payload["progress"] for message in told if message.event == "progress"]
    assert fractions == sorted(fractions)
    assert len(set(fractions)) >= 5
    assert lasting(told)[-2:] == ["llm_response", "task_completed"]


async def test_a_users_own_channel_hears_of_tasks_at_the_other_server(pair: Pair) -> None:
    with trio.fail_after(30):
        async with http_client(pair.one.url, 1) as here, connect(pair.two.url) as socket:
            channel = await socket.join("user:dev")
            await trio.sleep(0.3)  # until the first server knows that it is listened to
            task_id = await create(here, wish(steps=2))
            told: list[str] = []
            async for message in channel:
                assert message.payload["task_id"] == str(task_id)
                told.append(message.payload["status"])
                if told[-1] in TERMINAL:
                    break
    assert told[-2:] == ["processing", "completed"]


async def test_a_cancel_at_one_server_stops_the_work_at_the_other_at_once(pair: Pair) -> None:
    with trio.fail_after(30):
        async with (
            http_client(pair.one.url, 1) as here,
            http_client(pair.two.url, 1) as there,
            connect(pair.one.url) as socket,
        ):
            task_id = await create(here, wish(steps=1000, interval=0.1))
            await until(here, task_id, "processing")
            assert await metric(pair.one.url, "elwift_provider_requests_running") == 1
            channel = await joined(socket, task_id)
            status, answer = await there.post(f"/api/tasks/{task_id}/cancel", {})
            assert (status, answer["status"]) == (200, "cancelled")
            with trio.fail_after(1):
                await hears(channel, "task_cancelled")
                while await metric(pair.one.url, "elwift_provider_requests_running"):  # noqa: ASYNC110 - over HTTP
                    await trio.sleep(0.02)
            assert (await until(here, task_id, *TERMINAL))["status"] == "cancelled"


async def test_a_queued_task_is_cancelled_at_the_server_where_it_does_not_live(pair: Pair) -> None:
    with trio.fail_after(30):
        async with (
            http_client(pair.one.url, 1) as here,
            http_client(pair.two.url, 1) as there,
            connect(pair.one.url) as socket,
        ):
            assert (await here.post("/api/queues/default/pause", {}))[0] == 200
            task_id = await create(here)
            channel = await joined(socket, task_id)
            status, answer = await there.post(f"/api/tasks/{task_id}/cancel", {})
            assert (status, answer["status"]) == (200, "cancelled")
            with trio.fail_after(1):
                await hears(channel, "task_cancelled")
            assert (await there.post("/api/queues/default/resume", {}))[0] == 200


async def test_what_failed_at_one_server_is_retried_and_deleted_at_the_other(pair: Pair) -> None:
    with trio.fail_after(30):
        async with http_client(pair.one.url, 1) as here, http_client(pair.two.url, 1) as there:
            task_id = await create(here, wish(1, 0.01, fail_at=1, fail_attempts=1))
            assert (await until(there, task_id, *TERMINAL))["status"] == "failed"
            status, answer = await there.post(f"/api/tasks/{task_id}/retry", {})
            assert (status, answer["status"]) == (202, "queued")
            for http in (there, here):
                assert (await until(http, task_id, "completed"))["attempt"] == 2
            async with httpx.AsyncClient(base_url=pair.two.url) as other:
                assert (await other.delete(f"/api/tasks/{task_id}")).status_code == 204
            assert (await here.get(f"/api/tasks/{task_id}"))[0] == 404


async def test_of_many_requests_with_one_key_at_both_servers_comes_one_task(pair: Pair) -> None:
    made: set[str] = set()
    body = {**wish(1, 0), "idempotency_key": uuid4().hex}
    with trio.fail_after(30):
        async with http_client(pair.one.url, 8) as here, http_client(pair.two.url, 8) as there:

            async def one(http: HttpClient) -> None:
                status, answer = await http.post("/api/tasks", body)
                assert status == 202, answer
                made.add(answer["task_id"])

            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(one, here)
                    nursery.start_soon(one, there)
    assert len(made) == 1


async def test_limits_of_a_queue_hold_over_both_servers(pair: Pair) -> None:
    """Three at once of one queue, four starts a second of another, whichever servers run them."""
    with trio.fail_after(40):
        async with http_client(pair.one.url, 4) as here, http_client(pair.two.url, 4) as there:
            for queue in ("scarce", "paced"):
                model = {"name": queue, "provider": "simulate", "slug": queue, "version": "1", "category": "text"}
                status, answer = await here.post("/api/models", {**model, "settings": {"queue": queue}})
                assert status == 201, answer
            with trio.fail_after(2):
                while (await there.get("/api/models/paced"))[0] != 200:  # noqa: ASYNC110 - over HTTP
                    await trio.sleep(0.05)
            body = {"prompt": "hi", "model": "scarce", "input": {"steps": 1, "interval": 0.3}}
            scarce = [await create(http, body) for _ in range(5) for http in (here, there)]
            paced = [await create(http, {**body, "model": "paced"}) for _ in range(6) for http in (here, there)]
            spans = [(task["started_at"], task["completed_at"]) for task in await all_done(here, scarce)]
            starts = sorted(task["started_at"] for task in await all_done(here, paced))
    assert max(sum(begun <= at < ended for begun, ended in spans) for at, _ in spans) <= 3
    for first, fifth in zip(starts, starts[8:], strict=False):  # a bucket of four is full at first
        assert fifth - first >= 0.8


async def all_done(http: HttpClient, made: Sequence[UUID]) -> list[dict[str, Any]]:
    return [await until(http, task_id, "completed") for task_id in made]


# --- one of them is lost ----------------------------------------------------------------------------------


def logs(conninfo: str) -> dict[UUID, list[tuple[str, int]]]:
    """The log of each task: types and attempts, in order."""
    found: dict[UUID, list[tuple[str, int]]] = {}
    with psycopg.connect(conninfo) as connection:
        query = "SELECT task_id, type, attempt, seq FROM task_events ORDER BY task_id, seq"
        for task_id, kind, attempt, seq in connection.execute(query):
            log = found.setdefault(task_id, [])
            assert seq == len(log) + 1
            log.append((kind, attempt))
    return found


def check_logs(conninfo: str, made: Sequence[UUID], most_attempts: int) -> None:
    """One outcome each, and no more attempts than there may be."""
    told = logs(conninfo)
    for task_id in made:
        kinds = [kind for kind, _ in told[task_id]]
        assert kinds[-1] == "completed"
        assert sum(kind in TERMINAL for kind in kinds) == 1
        assert kinds.count("started") <= most_attempts
    with psycopg.connect(conninfo) as connection:
        burnt = connection.execute("SELECT max(attempt) FROM jobs WHERE task_id = ANY(%s)", (list(made),)).fetchone()
    assert burnt == (1,)  # who lost a server lost no attempt


async def test_the_tasks_of_a_server_that_is_killed_live_on_at_the_other(data_dir: Path, conninfo: str) -> None:
    database = ("--database-url", conninfo)
    with trio.fail_after(120):
        async with (
            trio.open_nursery() as nursery,
            serving(data_dir / "two", *database, environment={**SHORT, "ELWIFT_CONCURRENCY": "4"}) as two,
            http_client(two.url, 4) as there,
            connect(two.url) as socket,
        ):
            one = await launch(nursery, data_dir / "one", *database, environment={**SHORT, "ELWIFT_CONCURRENCY": "4"})
            async with http_client(one.url, 4) as here:
                made = [await create(here, wish(steps=6)) for _ in range(12)]
            channel = await joined(socket, made[-1])
            await one.kill()
            with trio.fail_after(45):
                for task_id in made:
                    assert (await until(there, task_id, *TERMINAL))["status"] == "completed"
            assert lasting(await story(channel))[-1] == "task_completed"
    check_logs(conninfo, made, most_attempts=2)


async def test_a_server_that_ends_in_good_order_hands_over_at_once(data_dir: Path, conninfo: str) -> None:
    """With a lease of half a minute: what is handed over waits for none."""
    database = ("--database-url", conninfo)
    quick = {**LEAN, "ELWIFT_SHUTDOWN_TIMEOUT": "1.5"}
    with trio.fail_after(120):
        async with (
            trio.open_nursery() as nursery,
            serving(data_dir / "two", *database, environment=quick) as two,
            http_client(two.url, 4) as there,
        ):
            one = await launch(nursery, data_dir / "one", *database, environment={**quick, "ELWIFT_CONCURRENCY": "2"})
            async with http_client(one.url, 4) as here:
                await here.post("/api/queues/default/scale", {"limit": 2})
                made = [await create(here, wish(steps=8)) for _ in range(6)]
                await until(here, made[0], "processing")
            assert await one.terminate() == 0
            with trio.fail_after(20):
                for task_id in made:
                    assert (await until(there, task_id, *TERMINAL))["status"] == "completed"
    check_logs(conninfo, made, most_attempts=2)


async def test_a_server_that_stood_still_past_its_lease_writes_nothing_and_tells_its_clients(
    data_dir: Path, conninfo: str
) -> None:
    database = ("--database-url", conninfo)
    with trio.fail_after(120):
        async with (
            serving(data_dir / "one", *database, environment=SHORT) as one,
            serving(data_dir / "two", *database, environment=SHORT) as two,
            http_client(one.url, 2) as here,
            http_client(two.url, 2) as there,
            connect(one.url) as socket,
        ):
            made = [await create(here, wish(steps=8)) for _ in range(4)]
            channels = [await joined(socket, task_id) for task_id in made]
            await until(here, made[-1], "processing")
            one.process.send_signal(signal.SIGSTOP)
            try:
                with trio.fail_after(45):
                    for task_id in made[1:]:
                        assert (await until(there, task_id, *TERMINAL))["status"] == "completed"
            finally:
                one.process.send_signal(signal.SIGCONT)
            for channel in channels:
                told = await story(channel)
                assert lasting(told)[-4:] == ["reset", "started", "llm_response", "task_completed"]
            for task_id in made:
                assert (await until(here, task_id, *TERMINAL))["status"] == "completed"
            assert await metric(one.url, "elwift_provider_requests_running") == 0
    check_logs(conninfo, made, most_attempts=2)
