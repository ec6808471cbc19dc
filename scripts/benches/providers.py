"""What the server adds to a provider: CPU for each token, time before the first one, and webhooks accepted.

    scripts/bench providers [STREAMS]

A server is started on loopback, and a fake LLM service in another OS process streams 50 tokens a second into each of so
many tasks (100), watched on sockets here: worker, TaskServer and channel are the real ones. CPU is the server process's
own, over four seconds in which all streams run. `first_token_added_p50_ms` is the whole time from POST to the
first text on the socket, one task at a time, while the service answers at once. Webhooks are signed as Replicate's are,
each a delivery of its own, and counted when they are answered, which is when they are in the database.
"""

from __future__ import annotations

import base64
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from urllib.parse import urlsplit
from uuid import uuid4

import psutil
import trio
from attrs import define

from engine.providers.webhooks import sign
from scripts.client import PhoenixSocket, connect
from scripts.http_client import Connection, HttpClient, http_client
from scripts.server import ServerProcess, serving

STREAMS, RATE, STREAMS_PER_SOCKET, WINDOW = 100, 50.0, 10, 4.0
FIRSTS = 21
WEBHOOKS, WEBHOOKS_AT_ONCE = 3000, 64
SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes ...").decode()
MODEL = {"name": "bench", "provider": "openai-chat", "slug": "bench", "version": "1", "category": "text"}


def emit(name: str, value: float, unit: str, **more: float) -> None:
    row = {"bench": "providers", "name": name, "value": round(value, 3), "unit": unit, "peers": {}}
    print(json.dumps({**row, **{key: round(figure, 3) for key, figure in more.items()}}), flush=True)


def cpu(process: trio.Process) -> float:
    """Seconds of CPU that the process itself has used."""
    used = psutil.Process(process.pid).cpu_times()
    return float(used.user + used.system)


async def main(streams: int) -> None:
    with tempfile.TemporaryDirectory(prefix="elwift-bench-") as folder:
        os.chmod(folder, 0o755)
        async with llm() as url:
            environment = {
                "ELWIFT_LOG_LEVEL": "warning",
                "ELWIFT_LOCAL_MODEL": "false",
                "ELWIFT_CONCURRENCY": str(streams + 16),
                "ELWIFT_OPENAI_API_KEY": "bench",
                "ELWIFT_OPENAI_BASE_URL": f"{url}/v1",
                "ELWIFT_REPLICATE_API_TOKEN": "bench",
                "ELWIFT_REPLICATE_WEBHOOK_SECRETS": SECRET,
            }
            async with serving(Path(folder) / "data", environment=environment) as server:
                async with http_client(server.url, 16) as http:
                    status, answer = await http.post("/api/models", MODEL)
                    assert status == 201, answer
                    await first_tokens(server, http)
                    await tokens(server, http, streams)
                await webhooks(server)


@asynccontextmanager
async def llm() -> AsyncIterator[str]:
    """The fake service."""
    command = [sys.executable, str(Path(__file__).with_name("_providers_llm.py"))]
    process = await trio.lowlevel.open_process(command, stdout=PIPE)
    try:
        assert process.stdout is not None
        with trio.fail_after(20):
            port = int(await process.stdout.receive_some(100))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


# --- tokens ---------------------------------------------------------------------------------------------


@define
class Stream:
    """What was seen of one task, in seconds of the common clock."""

    sent: float = 0.0
    """When the service sent the first token."""
    first: float = 0.0
    last: float = 0.0
    frames: int = 0


async def watch(http: HttpClient, socket: PhoenixSocket, count: int, seen: Stream) -> None:
    """One task from its POST to its end."""
    body = {"prompt": "hi", "model": "bench", "input": {"max_tokens": count, "temperature": RATE}}
    status, answer = await http.post("/api/tasks", body)
    assert status == 202, answer
    channel = await socket.join(f"task:{answer['task_id']}", {"last_seq": 0}, timeout=60)
    told = channel.response["task"]["response"]
    if told:
        seen.first = time.monotonic()
    async for message in channel:
        if message.event == "text_delta":
            seen.last = time.monotonic()
            seen.first = seen.first or seen.last
            seen.frames += 1
        elif message.event == "llm_response":
            assert message.payload["text"].count("wave") == count - 1, "tokens were lost"
            seen.sent = float(message.payload["text"].split()[0])
        elif message.event == "error":
            raise AssertionError(message.payload)


async def first_tokens(server: ServerProcess, http: HttpClient) -> None:
    whole, path = [], []
    async with connect(server.url) as socket:
        for _ in range(FIRSTS):
            began, seen = time.monotonic(), Stream()
            await watch(http, socket, 5, seen)
            whole.append(seen.first - began)
            path.append(seen.first - seen.sent)
    emit("first_token_added_p50_ms", statistics.median(whole[1:]) * 1e3, "ms")
    emit("first_token_on_its_way_p50_ms", statistics.median(path[1:]) * 1e3, "ms")


async def tokens(server: ServerProcess, http: HttpClient, streams: int) -> None:
    """All streams at once. They live long enough for the last to begin well before the first ends."""
    count = int(RATE * (WINDOW + 4 + streams / 25))
    seen: list[Stream] = []

    async def socket_of(some: int) -> None:
        async with connect(server.url) as socket, trio.open_nursery() as nursery:
            for _ in range(some):
                stream = Stream()
                seen.append(stream)
                nursery.start_soon(watch, http, socket, count, stream)

    with trio.fail_after(count / RATE * 4 + 60):
        async with trio.open_nursery() as nursery:
            for begin in range(0, streams, STREAMS_PER_SOCKET):
                nursery.start_soon(socket_of, min(STREAMS_PER_SOCKET, streams - begin))
            while len(seen) < streams or not all(stream.first for stream in seen):  # noqa: ASYNC110
                await trio.sleep(0.05)
            used, began, frames = cpu(server.process), time.monotonic(), sum(stream.frames for stream in seen)
            await trio.sleep(WINDOW)
            used, took = cpu(server.process) - used, time.monotonic() - began
            frames = sum(stream.frames for stream in seen) - frames
            assert not any(stream.sent for stream in seen), (
                "the machine does not bear so many streams: one ended before the window did"
            )
    late = statistics.median(each.last - each.sent - (count - 1) / RATE for each in seen)
    told = streams * RATE * took
    more = {"streams": streams, "frames_per_token": frames / told, "core_share": used / took}
    emit("token_us", used / told * 1e6, "us", **more)
    emit("last_token_late_p50_ms", late * 1e3, "ms", streams=streams)


# --- webhooks -------------------------------------------------------------------------------------------


async def webhooks(server: ServerProcess) -> None:
    await _deliver(server, 200)  # warm
    used, began = cpu(server.process), time.monotonic()
    await _deliver(server, WEBHOOKS)
    took, used = time.monotonic() - began, cpu(server.process) - used
    emit("webhooks_per_s", WEBHOOKS / took, "1/s", cpu_us=used / WEBHOOKS * 1e6)


async def _deliver(server: ServerProcess, count: int) -> None:
    parts = urlsplit(server.url)
    left = iter(range(count))

    async def one() -> None:
        connection = Connection(parts.hostname or "", parts.port or 80, [])
        try:
            for _ in left:
                await _delivery(connection, parts.netloc)
        finally:
            await connection.aclose()

    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            for _ in range(WEBHOOKS_AT_ONCE):
                nursery.start_soon(one)


async def _delivery(connection: Connection, host: str) -> None:
    body = json.dumps(
        {"id": uuid4().hex, "status": "succeeded", "output": "a poem", "logs": "", "error": None}
    ).encode()
    identifier, stamp = f"msg_{uuid4().hex}", int(time.time())
    connection.headers = [
        ("host", host),
        ("content-type", "application/json"),
        ("webhook-id", identifier),
        ("webhook-timestamp", str(stamp)),
        ("webhook-signature", sign(SECRET, identifier, stamp, body)),
    ]
    status, answer = await connection.request("POST", f"/webhooks/replicate?attempt={uuid4()}", body)
    assert status == 204, answer


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else STREAMS)
