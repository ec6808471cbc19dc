"""The whole way of a task, from POST to the client's last event, on a real server with embedded PostgreSQL.

    scripts/bench e2e

A server is started on loopback and driven by `scripts/load`: bursts of `simulate` tasks, each watched on a socket, then
prompts to the local model one after another. CPU is the server process's own (not PostgreSQL's or the model's). The
peer of an accept is a plain Quart-Trio application that reads the same body and answers 202 from memory, in a process
of its own, driven the same way in the same run.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from socket import create_server
from subprocess import PIPE
from typing import Any

import psutil
import trio

from scripts.client import PhoenixSocket, connect
from scripts.http_client import HttpClient, http_client
from scripts.load import Figures, Load, drive, percentile
from scripts.server import ServerProcess, serving

TASKS, STEPS, INTERVAL, AT_ONCE, SOCKETS = 400, 10, 0.05, 32, 8
PROMPTS = 7
PEER = """
import sys, trio, uuid
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import request
from quart_trio import QuartTrio

app = QuartTrio("peer")

@app.post("/api/tasks")
async def create():
    await request.get_json()
    return {"task_id": str(uuid.uuid4()), "status": "queued"}, 202

config = Config()
config.bind = [sys.argv[1]]
config.accesslog = config.errorlog = None
trio.run(serve, app, config)
"""


def emit(name: str, value: float, unit: str, **peers: float) -> None:
    rounded = {peer: round(figure, 3) for peer, figure in peers.items()}
    print(
        json.dumps({"bench": "e2e", "name": name, "value": round(value, 3), "unit": unit, "peers": rounded}), flush=True
    )


def cpu(process: trio.Process) -> float:
    """Seconds of CPU that the process itself has used."""
    used = psutil.Process(process.pid).cpu_times()
    return used.user + used.system


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="elwift-bench-") as folder:
        os.chmod(folder, 0o755)
        quiet = {"ELWIFT_LOG_LEVEL": "warning"}
        async with serving(Path(folder) / "data", environment=quiet) as server, peer() as (plain, plain_url):
            await accepts(server, plain, plain_url)
            await tasks(server)
            await first_tokens(server)


async def accepts(server: ServerProcess, plain: trio.Process, plain_url: str) -> None:
    """POST alone: tasks that wait for an hour, so that nothing but accepting them is measured."""
    ours = await _posts(server.url, server.process, {"steps": 1, "interval": 60.0})
    theirs = await _posts(plain_url, plain, {})
    emit("accept_p50_ms", ours[0], "ms", quart_in_memory=theirs[0])
    emit("accept_p99_ms", ours[1], "ms", quart_in_memory=theirs[1])
    emit("accept_cpu_us", ours[2], "us", quart_in_memory=theirs[2])


async def _posts(url: str, process: trio.Process, given: dict[str, Any]) -> tuple[float, float, float]:
    samples: list[float] = []
    body = {"prompt": "hi", "model": "simulate", "input": given}
    async with http_client(url, AT_ONCE) as http:

        async def one(count: int) -> None:
            for _ in range(count):
                began = trio.current_time()
                status, _ = await http.post("/api/tasks", body)
                assert status == 202
                samples.append(trio.current_time() - began)

        await one(50)  # warm
        samples.clear()
        used = cpu(process)
        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(one, TASKS // AT_ONCE)
        used = cpu(process) - used
        if given:
            await _cancel_all(http)
    samples.sort()
    return percentile(samples, 50) * 1e3, percentile(samples, 99) * 1e3, used / len(samples) * 1e6


async def _cancel_all(http: HttpClient) -> None:
    while True:
        _, page = await http.get("/api/tasks?status=processing&limit=100")
        _, more = await http.get("/api/tasks?status=queued&limit=100")
        found = [*page["tasks"], *more["tasks"]]
        for task in found:
            await http.post(f"/api/tasks/{task['id']}/cancel", {})
        if not found:
            return


async def tasks(server: ServerProcess) -> None:
    """A burst of tasks, each seen to its end on a socket."""
    figures, elapsed, used = await _burst(server)
    assert not figures.faults, figures.faults
    rows = {row["name"]: row["value"] for row in figures.rows(elapsed)}
    emit("first_progress_p50_ms", rows["first_progress_p50_ms"] - INTERVAL * 1e3, "ms")
    emit("overhead_p50_ms", rows["completion_p50_ms"] - STEPS * INTERVAL * 1e3, "ms")
    emit("overhead_p99_ms", rows["completion_p99_ms"] - STEPS * INTERVAL * 1e3, "ms")
    emit("task_cpu_us", used / TASKS * 1e6, "us")


async def _burst(server: ServerProcess) -> tuple[Figures, float, float]:
    body = {"prompt": "hi", "model": "simulate", "input": {"steps": STEPS, "interval": INTERVAL}}
    async with _sockets(server.url) as sockets, http_client(server.url, AT_ONCE) as http:
        load = Load(body, http, sockets)
        began, used = trio.current_time(), cpu(server.process)
        with trio.fail_after(120):
            await drive(load, TASKS, AT_ONCE)
        return load.figures, trio.current_time() - began, cpu(server.process) - used


async def first_tokens(server: ServerProcess) -> None:
    """From POST to the first text on the socket, and tokens a second, one prompt at a time."""
    waits, speeds = [], []
    async with connect(server.url) as socket, http_client(server.url, 1) as http:
        for number in range(PROMPTS + 1):
            wait, speed = await _prompt(socket, http, f"Tell me fact number {number} about the sea.")
            if number:  # the first one warms the model up
                waits.append(wait)
                speeds.append(speed)
    emit("first_token_p50_ms", statistics.median(waits) * 1e3, "ms")
    emit("local_tokens_per_s", statistics.median(speeds), "1/s")


async def _prompt(socket: PhoenixSocket, http: HttpClient, prompt: str) -> tuple[float, float]:
    began = trio.current_time()
    _, answer = await http.post("/api/tasks", {"prompt": prompt, "model": "local", "input": {"max_tokens": 48}})
    channel = await socket.join(f"task:{answer['task_id']}", {"last_seq": 0})
    first = last = tokens = 0.0
    with trio.fail_after(120):
        async for message in channel:
            if message.event == "text_delta":
                last = trio.current_time()
                first = first or last
            elif message.event == "llm_response":
                tokens = message.payload["usage"]["output_tokens"]
    return first - began, (tokens - 1) / max(last - first, 1e-9)


@asynccontextmanager
async def _sockets(url: str) -> AsyncIterator[list[PhoenixSocket]]:
    async with trio.open_nursery() as nursery:
        ready: list[PhoenixSocket] = []
        all_there = trio.Event()

        async def hold() -> None:
            async with connect(url) as socket:
                ready.append(socket)
                if len(ready) == SOCKETS:
                    all_there.set()
                await socket.closed.wait()

        for _ in range(SOCKETS):
            nursery.start_soon(hold)
        await all_there.wait()
        yield ready
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def peer() -> AsyncIterator[tuple[trio.Process, str]]:
    """The plain application on a free port."""
    with create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    process = await trio.lowlevel.open_process([sys.executable, "-c", PEER, address], stderr=PIPE)
    try:
        await _listening(address)
        yield process, f"http://{address}"
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def _listening(address: str) -> None:
    host, _, port = address.partition(":")
    with trio.fail_after(20):
        while True:
            try:
                stream = await trio.open_tcp_stream(host, int(port))
            except OSError:
                await trio.sleep(0.05)
            else:
                await stream.aclose()
                return


if __name__ == "__main__":
    trio.run(main)
