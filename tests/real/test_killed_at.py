"""kill -9 at each instant of a job's life: whatever was being done, each task ends once, and no attempt is burnt."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import h11
import psycopg
import pytest
import trio
from attrs import define, field

from scripts.http_client import HttpClient, http_client
from scripts.server import READY, ROOT, serving
from tests.postgres import *  # noqa: F403
from tests.real.dying_server import POINTS

pytestmark = [pytest.mark.real, pytest.mark.slow]

ENVIRONMENT = {"ELWIFT_LOCAL_MODEL": "false", "ELWIFT_LEASE": "1", "ELWIFT_SHUTDOWN_TIMEOUT": "0.6"}
TERMINAL = ("completed", "failed", "cancelled")
QUICK = {"steps": 4, "interval": 0.05}
AGAIN = {"steps": 2, "interval": 0.02, "fail_at": 1, "fail_kind": "retryable", "fail_attempts": 1, "retry_after": 0.2}
ENDLESS = {"steps": 1000, "interval": 0.1}


@define(eq=False)
class Story:
    """What was sent to the servers that died one after the other, and what they acknowledged."""

    conninfo: str
    folder: Path
    acknowledged: list[str] = field(factory=list)
    cancelled: list[str] = field(factory=list)

    @asynccontextmanager
    async def server(self, point: str, data_dir: str) -> AsyncIterator[trio.Process]:
        command = [sys.executable, "-m", "tests.real.dying_server", point, "serve", "--port", "0"]
        command += ["--data-dir", str(self.folder / data_dir), "--database-url", self.conninfo]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **ENVIRONMENT}
        with (self.folder / "log").open("ab") as log:
            process = await trio.lowlevel.open_process(command, stdout=PIPE, stderr=log, cwd=ROOT, env=environment)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()

    async def send(self, http: HttpClient, **input: Any) -> str:
        """The id of a task, once it is acknowledged."""
        status, answer = await http.post("/api/tasks", {"prompt": "hi", "model": "simulate", "input": input})
        assert (status, answer["durability"]) == (202, "durable")
        self.acknowledged.append(answer["task_id"])
        return str(answer["task_id"])

    async def settled(self) -> None:
        """Waits until nothing is left to do."""
        with trio.fail_after(60):
            while await trio.to_thread.run_sync(unfinished, self.conninfo):  # noqa: ASYNC110 - the rows are looked at
                await trio.sleep(0.05)


def unfinished(conninfo: str) -> int:
    with psycopg.connect(conninfo) as connection:
        query = "SELECT count(*) FROM tasks WHERE status NOT IN ('completed', 'failed', 'cancelled')"
        ((count,),) = connection.execute(query).fetchall()
    return int(count)


async def url_of(process: trio.Process) -> str:
    assert process.stdout is not None
    said = b""
    while not (found := READY.search(said)) or b"\n" not in said[found.end() - 1 :]:
        chunk = await process.stdout.receive_some(4096)
        assert chunk, "the server ended before it was ready"
        said += chunk
    return found[1].decode().rstrip("/")


# --- what is done while a server waits for its death ---


async def work(story: Story, http: HttpClient) -> None:
    for input in (QUICK, AGAIN, QUICK):
        await story.send(http, **input)


async def cancel(story: Story, http: HttpClient) -> None:
    task_id = await story.send(http, **ENDLESS)
    story.cancelled.append(task_id)
    await http.post(f"/api/tasks/{task_id}/cancel", {})


async def stand_in_line(story: Story, http: HttpClient) -> None:
    await http.post("/api/queues/default/pause", {})
    await work(story, http)
    await http.post("/api/queues/default/resume", {})


Doing = Callable[[Story, HttpClient], Awaitable[None]]
DOING: dict[str, Doing] = {
    "a cancel is committed and the work not stopped": cancel,
    "a job is claimed from the line": stand_in_line,
}
AT_START = ("jobs of an earlier life are given back", "some tasks are back and others not")
AT_STOP = "running jobs are given back at a stop"
BY_ANOTHER = "a lost server's job is taken back"


async def die_at(story: Story, point: str) -> None:
    """Starts a server, has it do something, and waits until it has died of it."""
    at_start = point in AT_START or point == BY_ANOTHER
    async with story.server(point + "!" * at_start, "other" if point == BY_ANOTHER else "data") as process:
        with trio.fail_after(60):
            if not at_start:
                url = await url_of(process)
                await story.settled()
                process.send_signal(signal.SIGUSR1)
                await do(story, url, point, process)
            assert await process.wait() == -signal.SIGKILL, point


async def do(story: Story, url: str, point: str, process: trio.Process) -> None:
    with trio.move_on_after(20):
        async with http_client(url, 2) as http:
            try:
                if point == AT_STOP:
                    await story.send(http, **ENDLESS)
                    story.cancelled.append(story.acknowledged[-1])
                    process.send_signal(signal.SIGTERM)
                else:
                    await DOING.get(point, work)(story, http)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
                pass  # it has died meanwhile: what was not acknowledged is not counted


async def test_whatever_a_server_was_doing_when_it_was_killed_each_task_ends_once(
    data_dir: Path, conninfo: str
) -> None:
    data_dir.mkdir(parents=True)
    story = Story(conninfo, data_dir)
    for point in POINTS:
        await die_at(story, point)
        if point == AT_STOP:
            break
    async with serving(data_dir / "data", "--database-url", conninfo, environment=ENVIRONMENT) as server:
        async with http_client(server.url, 2) as http:
            for task_id in story.cancelled:
                status, _ = await http.post(f"/api/tasks/{task_id}/cancel", {})
                assert status == 200
        await story.settled()
    check(story)


def check(story: Story) -> None:
    with psycopg.connect(story.conninfo) as connection:
        logs: dict[str, list[tuple[int, str]]] = {}
        for task_id, seq, kind in connection.execute("SELECT task_id::text, seq, type FROM task_events ORDER BY 1, 2"):
            logs.setdefault(task_id, []).append((seq, kind))
        unfinished = connection.execute(
            "SELECT id, state FROM jobs WHERE state NOT IN ('completed', 'cancelled', 'discarded')"
        ).fetchall()
        burnt = connection.execute(
            "SELECT j.attempt, t.input FROM jobs j JOIN tasks t ON t.id = j.task_id"
            " WHERE j.attempt > CASE WHEN t.input ? 'fail_at' THEN 2 ELSE 1 END"
        ).fetchall()
    assert set(story.acknowledged) <= set(logs)
    assert unfinished == []
    assert burnt == []
    for task_id, log in logs.items():
        assert [seq for seq, _ in log] == list(range(1, len(log) + 1)), task_id
        kinds = [kind for _, kind in log]
        assert [kind for kind in kinds if kind in TERMINAL] == [kinds[-1]], kinds
        assert kinds[-1] == ("cancelled" if task_id in story.cancelled else "completed"), kinds
        assert kinds.count("started") <= 4, kinds
