"""The server is killed, or told to end, at every instant of a prediction's life: nothing is bought again, nothing is
lost, and what was cancelled does not run on."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from scripts.http_client import http_client
from scripts.server import ServerProcess, launch, serving
from tests.engine.providers import fake_replicate
from tests.engine.providers.fake_replicate import Service
from tests.postgres import *  # noqa: F403
from tests.postgres import TestServer
from tests.real.conftest import new_data_dir
from tests.real.replicate import PUBLIC, House, metric, until
from tests.real.test_replicate_bad_days import gathered, outcome

BOUGHT_ONCE = ("completed", None, 1, 0)
"""Status, error's code, predictions bought, possible duplicates."""


def environment(service: Service) -> dict[str, str]:
    return {
        "ELWIFT_LOCAL_MODEL": "false",
        "ELWIFT_REPLICATE_API_TOKEN": fake_replicate.TOKEN,
        "ELWIFT_REPLICATE_BASE_URL": service.url,
        "ELWIFT_REPLICATE_WEBHOOK_SECRETS": fake_replicate.SECRET,
        "ELWIFT_PUBLIC_URL": PUBLIC,
        "ELWIFT_SHUTDOWN_TIMEOUT": "3",
    }


@asynccontextmanager
async def life(data_dir: Path, service: Service) -> AsyncIterator[tuple[ServerProcess, House]]:
    """One life of the server; its body ends it."""
    async with trio.open_nursery() as nursery:
        server = await launch(nursery, data_dir, environment=environment(service))
        service.reach = server.url
        try:
            async with http_client(server.url, 20) as http:
                yield server, House(service, http)
        finally:
            with trio.CancelScope(shield=True):
                await server.kill()
            nursery.cancel_scope.cancel()


async def stops(url: str) -> None:
    """A server that lost its lease wakes up, hears of it, and stops its worker."""
    with trio.fail_after(30):
        while True:
            if await metric(url, "elwift_provider_requests_running") == 0:
                return
            await trio.sleep(0.05)


async def ended(at: House, name: str, task_id: str) -> tuple[object, ...]:
    status, code, _, bought, duplicates = await outcome(at, name, task_id)
    return status, code, bought, duplicates


async def test_a_kill_at_any_instant_buys_nothing_again(data_dir: Path) -> None:
    async with fake_replicate.serving() as service:
        tasks: dict[str, str] = {}
        async with life(data_dir, service) as (server, at):

            async def asked(name: str, fault: str) -> None:
                """The answer to the request for a prediction never comes."""
                await at.model(name)
                service.faults.append((f"^POST /v1/models/acme/{name}/predictions ", fault))
                tasks[name] = await at.start(name, steps=1, held=True)
                await until(lambda: not [pattern for pattern, _ in service.faults if f"/{name}/" in pattern])

            async def working(name: str) -> None:
                tasks[name], _ = await at.begun(name)

            async def fetching(name: str) -> None:
                """Its file is being fetched."""
                tasks[name], run = await at.begun(name, files=1)
                service.faults.append((f"^GET /files/first/{run.id}/", "hang before"))
                run.finish.set()
                await until(lambda: not [pattern for pattern, _ in service.faults if run.id in pattern])

            async def cancelled(name: str) -> None:
                """The service is not to be reached when it is to be stopped."""
                tasks[name], run = await at.begun(name)
                service.faults.append((f"^(POST|GET) /v1/predictions/{run.id}", "hang before"))
                await at.cancel(tasks[name])

            async def told(name: str) -> None:
                """Its last delivery was stored."""
                tasks[name], run = await at.begun(name)
                run.finish.set()
                with trio.fail_after(10):
                    await run.delivered.wait()

            await gathered(
                {
                    "asking": asked("asking", "hang before"),
                    "made": asked("made", "hang after"),
                    "working": working("working"),
                    "deaf": working("deaf"),
                    "fetching": fetching("fetching"),
                    "stopping": cancelled("stopping"),
                }
            )
            await at.model("alike")
            service.faults.extend([("^POST /v1/models/acme/alike/predictions ", "hang after")] * 2)
            alike = [await at.start("alike", steps=1, held=True) for _ in range(4)]
            await until(lambda: len(at.bought("alike")) == 4)
            await told("told")
            await server.kill()

        service.released.set()
        (deaf,) = at.bought("deaf")
        deaf.finish.set()  # while nobody is there to hear it
        await deaf.over.wait()
        async with life(data_dir, service) as (server, at):
            await until(lambda: at.bought("asking"))
            for run in service.runs.values():
                if run.model != "acme/stopping":
                    run.finish.set()
            found = await gathered({name: ended(at, name, task) for name, task in tasks.items() if name != "stopping"})
            assert found == dict.fromkeys(found, BOUGHT_ONCE)
            assert (await at.task(tasks["fetching"]))["outputs"]
            every = [await at.ended(task) for task in alike]
            assert [task["status"] for task in every] == ["completed"] * 4
            assert len(at.bought("alike")) == 4
            (stopping,) = at.bought("stopping")
            with trio.fail_after(30):
                await stopping.over.wait()
            assert stopping.status == "canceled"
            assert not service.running()
            assert await server.terminate() == 0


async def test_a_server_that_is_told_to_end_leaves_its_predictions_to_its_next_life(data_dir: Path) -> None:
    async with fake_replicate.serving() as service:
        async with life(data_dir, service) as (server, at):
            task_id, run = await at.begun("leaving")
            assert await server.terminate() == 0
        assert run.status == "processing"
        async with life(data_dir, service) as (server, at):
            run.finish.set()
            assert await ended(at, "leaving", task_id) == BOUGHT_ONCE
            task = await at.task(task_id)
            assert task["usage"]["cost"] == pytest.approx(service.bill(), rel=0.01)


async def test_a_server_that_stood_still_does_not_stop_what_another_has_taken_over(
    data_dir: Path, postgres_server: TestServer
) -> None:
    """The first one loses its lease, and with it the task; when it wakes up the prediction is no longer its own."""
    name = postgres_server.create()
    with new_data_dir() as second_dir:
        async with fake_replicate.serving() as service:
            given = {**environment(service), "ELWIFT_LEASE": "2"}
            del given["ELWIFT_PUBLIC_URL"]
            arguments = ("--database-url", postgres_server.conninfo(name))
            async with serving(data_dir, *arguments, environment=given) as first:
                async with http_client(first.url, 4) as http:
                    task_id, run = await House(service, http).begun("taken-over")
                async with (
                    serving(second_dir, *arguments, environment=given) as second,
                    http_client(second.url, 4) as http,
                ):
                    first.process.send_signal(signal.SIGSTOP)
                    asked = len(service.requests)
                    try:
                        await until(
                            lambda: len(service.requests) > asked, 30
                        )  # by the second one, which follows it now
                    finally:
                        first.process.send_signal(signal.SIGCONT)
                    await stops(first.url)
                    assert run.status == "processing"
                    run.finish.set()
                    assert await ended(House(service, http), "taken-over", task_id) == BOUGHT_ONCE
    postgres_server.drop(name)
