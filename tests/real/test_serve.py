"""The command `elwift serve`, as a process: its start and end, what stops it from starting, and what a kill leaves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
import trio

from scripts.client import ClientChannel, Message, PhoenixSocket, connect
from scripts.http_client import HttpClient, http_client
from scripts.server import ROOT, ServerProcess, launch, serving

LEAN = {"ELWIFT_LOCAL_MODEL": "false"}
TERMINAL = {"completed", "failed", "cancelled"}


def simulate(steps: int = 5, interval: float = 0.05, **more: Any) -> dict[str, Any]:
    return {"prompt": "hi", "model": "simulate", "input": {"steps": steps, "interval": interval, **more}}


async def create(http: HttpClient, body: dict[str, Any]) -> UUID:
    status, answer = await http.post("/api/tasks", body)
    assert status == 202, answer
    assert answer["durability"] == "durable"
    return UUID(answer["task_id"])


async def joined(socket: PhoenixSocket, task_id: UUID, last_seq: int = 0) -> ClientChannel:
    return await socket.join(f"task:{task_id}", {"last_seq": last_seq})


async def story(channel: ClientChannel) -> list[Message]:
    """All that the channel tells until the server ends it, missed events first."""
    told = [Message(missed["event"], missed["payload"]) for missed in channel.response["events"]]
    return told + [message async for message in channel]


def lasting(messages: Sequence[Message]) -> list[str]:
    return [message.event for message in messages if "seq" in message.payload]


async def ended(http: HttpClient, task_id: UUID) -> dict[str, Any]:
    """The task once it is terminal; its state is asked for over HTTP alone."""
    while True:
        status, task = await http.get(f"/api/tasks/{task_id}")
        assert status == 200
        if task["status"] in TERMINAL:
            return dict(task)
        await trio.sleep(0.05)


def family(server: ServerProcess) -> list[psutil.Process]:
    """The server's own processes: itself and everything below it."""
    parent = psutil.Process(server.process.pid)
    return [parent, *parent.children(recursive=True)]


def is_model_server(process: psutil.Process) -> bool:
    return "model_server" in " ".join(process.cmdline())


async def all_gone(processes: Sequence[psutil.Process]) -> None:
    _, alive = await trio.to_thread.run_sync(psutil.wait_procs, processes, 10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


async def test_sigterm_ends_everything_and_answers_zero(data_dir: Path) -> None:
    async with trio.open_nursery() as nursery:
        server = await launch(nursery, data_dir)
        processes = family(server)
        names = " ".join(" ".join(process.cmdline()) for process in processes)
        assert "postgres" in names
        assert "model_server" in names
        async with http_client(server.url, 1) as http:
            task = await create(http, simulate(steps=1000, interval=1))
            assert await server.terminate() == 0
        await all_gone(processes)
        assert not list(data_dir.rglob("postmaster.pid"))

        server = await launch(nursery, data_dir)  # and it starts again, with the task where it was
        async with http_client(server.url, 1) as http:
            _, found = await http.get(f"/api/tasks/{task}")
            assert found["status"] in ("queued", "processing")
            status, cancelled = await http.post(f"/api/tasks/{task}/cancel", {})
            assert (status, cancelled["status"]) == (200, "cancelled")
        assert await server.end(signal.SIGINT, 20) == 0


async def test_a_task_streams_text_from_the_model_that_runs_here(data_dir: Path) -> None:
    async with serving(data_dir) as server, connect(server.url) as socket, http_client(server.url, 1) as http:
        with trio.fail_after(60):
            task_id = await create(http, {"prompt": "Count from one to five.", "input": {"max_tokens": 24}})
            told = await story(await joined(socket, task_id))
        text = "".join(message.payload["text"] for message in told if message.event == "text_delta")
        answer = next(message.payload for message in told if message.event == "llm_response")
        assert answer["text"].endswith(text)
        assert len(answer["text"]) > 10
        assert answer["usage"]["output_tokens"] >= 5
        assert lasting(told) == ["task_created", "started", "llm_response", "task_completed"]


async def test_when_the_model_server_is_killed_the_attempt_is_made_again_for_all_to_see(data_dir: Path) -> None:
    async with serving(data_dir) as server, connect(server.url) as socket, http_client(server.url, 1) as http:
        body = {"prompt": "Write a long story about the sea.", "input": {"max_tokens": 200, "seed": 7}}
        channel = await joined(socket, await create(http, body))
        told: list[Message] = []
        killed: list[psutil.Process] = []
        with trio.fail_after(90):
            async for message in channel:
                told.append(message)
                if message.event == "text_delta" and not killed:
                    killed = [process for process in family(server) if is_model_server(process)]
                    for process in killed:
                        process.kill()
        assert killed
        events = lasting(told)
        assert events[-2:] == ["llm_response", "task_completed"]
        assert "error" in events
        assert "reset" in events
        attempts = [message.payload["attempt"] for message in told if message.event == "started"]
        assert attempts[-1] == 2
        second = [m.payload for m in told if m.event == "text_delta" and m.payload["attempt"] == 2]
        assert second[0]["offset"] == 0


async def test_a_task_server_that_crashes_comes_back_and_its_neighbours_notice_nothing(data_dir: Path) -> None:
    async with serving(data_dir, environment=LEAN) as server, connect(server.url) as socket:
        async with http_client(server.url, 2) as http:
            crashing = await joined(socket, await create(http, simulate(10, 0.05, crash_at=4, text=True)))
            neighbour = await joined(socket, await create(http, simulate(10, 0.05)))
            with trio.fail_after(30):
                told, beside = await story(crashing), await story(neighbour)
        for events in (told, beside):
            fractions = [message.payload["progress"] for message in events if message.event == "progress"]
            assert fractions == sorted(fractions)
            assert lasting(events)[-1] == "task_completed"
            assert [m.payload["seq"] for m in events if "seq" in m.payload] == list(range(1, len(lasting(events)) + 1))
            assert {message.payload["attempt"] for message in events if message.event == "progress"} == {1}
        text, at = "", 0
        for delta in (m.payload for m in told if m.event == "text_delta"):
            assert delta["offset"] <= at
            text = text[: delta["offset"]] + delta["text"]
            at = len(text)
        assert text == next(m.payload["text"] for m in told if m.event == "llm_response")


async def test_kill_nine_in_the_middle_of_two_hundred_tasks_loses_none_that_was_acknowledged(data_dir: Path) -> None:
    async with trio.open_nursery() as nursery:
        server = await launch(nursery, data_dir, environment=LEAN)
        acknowledged: list[UUID] = []
        async with http_client(server.url, 16) as http, trio.open_nursery() as creating:

            async def one() -> None:
                acknowledged.append(await create(http, simulate(20, 0.1)))

            for _ in range(200):
                creating.start_soon(one)
        before = family(server)
        await server.kill()
        server = await launch(nursery, data_dir, environment=LEAN)
        async with http_client(server.url, 16) as http:
            with trio.fail_after(90):
                for task_id in acknowledged:
                    task = await ended(http, task_id)
                    assert task["status"] == "completed", task
        assert await server.terminate() == 0
        await all_gone(before)


# --- what stops it from starting ------------------------------------------------------------------------


def refused(*arguments: str, **environment: str) -> str:
    """Runs the command, which must fail quickly; what it says last."""
    command = [sys.executable, "-m", "web.cli", "serve", *arguments]
    env = {**os.environ, **LEAN, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, cwd=ROOT, check=False)
    assert done.returncode not in (0, -9), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_a_taken_port_is_said(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert port in refused("--port", port, "--data-dir", str(data_dir))


def test_a_data_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "data folder" in refused("--port", "0", "--data-dir", str(tmp_path / "file" / "data"))


def test_a_database_that_is_not_there_is_said(data_dir: Path) -> None:
    url = "postgresql://nobody@127.0.0.1:9/none"
    assert "database cannot be reached" in refused("--port", "0", "--data-dir", str(data_dir), "--database-url", url)


async def test_a_second_instance_on_the_same_data_folder_is_refused_and_the_first_goes_on(data_dir: Path) -> None:
    async with serving(data_dir, environment=LEAN) as server:
        said = await trio.to_thread.run_sync(refused, "--port", "0", "--data-dir", str(data_dir))
        assert str(data_dir) in said
        async with http_client(server.url, 1) as http:
            assert (await http.get("/healthz"))[0] == 200


@pytest.mark.parametrize(
    ("arguments", "environment", "word"),
    [
        (("--host", "0.0.0.0"), {}, "loopback"),
        ((), {"ELWIFT_PORT": "soon"}, "port"),
        ((), {"ELWIFT_TOKENS": "no equals sign"}, "token=user"),
        (("--config", "/nowhere.toml"), {}, "nowhere.toml"),
    ],
)
def test_settings_that_cannot_be_are_said(
    data_dir: Path, arguments: tuple[str, ...], environment: dict[str, str], word: str
) -> None:
    assert word in refused("--data-dir", str(data_dir), *arguments, **environment)
