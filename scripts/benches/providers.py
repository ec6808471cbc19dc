"""What the server adds to a provider: CPU for each token, time before the first one, and webhooks accepted.

    scripts/bench providers [STREAMS] [--no-peers]

A server is started on loopback. A fake LLM service in another OS process streams 50 tokens a second into each of so
many tasks (500), watched by clients in a third one over real sockets, ten tasks each: worker, TaskServer and channel
are the real ones. `token_us` is the server process's own CPU for a token, over six seconds in which all streams run;
`token_lag_…` the time from a token's sending by the service to its arrival at its client, in the same seconds: were the
server falling behind, the lag would grow to seconds. The clients check that no token was lost. The peers are relays as
one would write them with httpx or the openai package on uvicorn and Starlette, in the same place, with 100 streams at
most, for a core does not bear many more of theirs; CPU for each token that they delivered.

`first_token_added_p50_ms` is the whole time from POST to the first text on the socket, one task at a time, while the
service answers at once. Webhooks are signed as Replicate's are, each a delivery of its own, and counted when they are
answered, which is when they are in the database. All this wants two cores of its own: what other programs take of them
shows as lag.
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
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psutil
import trio
from _peers import peer_python
from attrs import define, frozen

from engine.providers.webhooks import sign
from scripts.client import PhoenixSocket, connect
from scripts.http_client import Connection, HttpClient, http_client
from scripts.server import ServerProcess, serving

HERE = Path(__file__).parent
STREAMS, RATE, WINDOW = 500, 50.0, 6.0
PEER_STREAMS = 100
FIRSTS = 41
WEBHOOKS, WEBHOOKS_AT_ONCE = 3000, 64
SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes ...").decode()
MODEL = {"name": "bench", "provider": "openai-chat", "slug": "bench", "version": "1", "category": "text"}
RELAY = ("starlette>=1.0", "uvicorn[standard]>=0.35", "httpx>=0.28,<0.29", "openai>=3.54,<4")


def emit(name: str, value: float, unit: str, peers: dict[str, float] | None = None, **more: float) -> None:
    theirs = {peer: round(figure, 3) for peer, figure in (peers or {}).items()}
    row = {"bench": "providers", "name": name, "value": round(value, 3), "unit": unit, "peers": theirs}
    print(json.dumps({**row, **{key: round(figure, 3) for key, figure in more.items()}}), flush=True)


def cpu(pid: int) -> float:
    """Seconds of CPU that the process itself has used."""
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


async def main(streams: int, with_peers: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="elwift-bench-") as folder:
        os.chmod(folder, 0o755)
        async with child(sys.executable, str(HERE / "_providers_llm.py")) as lines:
            url = f"http://127.0.0.1:{await said(lines)}"
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
                async with http_client(server.url, 2) as http:
                    status, answer = await http.post("/api/models", MODEL)
                    assert status == 201, answer
                    await first_tokens(server, http)
                await all_tokens(server, url, streams, with_peers)
                await webhooks(server)


@define(eq=False)
class Lines:
    """What a child process prints."""

    pid: int
    stream: trio.abc.ReceiveStream
    _rest: bytes = b""

    async def next(self) -> bytes:
        while b"\n" not in self._rest:
            more = await self.stream.receive_some(65536)
            assert more, "the process ended early"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line


@asynccontextmanager
async def child(*command: str) -> AsyncIterator[Lines]:
    """A process for the length of the block."""
    process = await trio.lowlevel.open_process(command, stdout=PIPE)
    try:
        assert process.stdout is not None
        yield Lines(process.pid, process.stdout)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def said(lines: Lines, within: float = 300.0) -> Any:
    """The next line, which is JSON."""
    with trio.fail_after(within):
        return json.loads(await lines.next())


# --- the first token --------------------------------------------------------------------------------------


async def first_tokens(server: ServerProcess, http: HttpClient) -> None:
    whole, path = [], []
    async with connect(server.url) as socket:
        for _ in range(FIRSTS):
            began = time.monotonic()
            sent, first = await first_token(http, socket)
            whole.append(first - began)
            path.append(first - sent)
    emit("first_token_added_p50_ms", statistics.median(whole[1:]) * 1e3, "ms")
    emit("first_token_on_its_way_p50_ms", statistics.median(path[1:]) * 1e3, "ms")


async def first_token(http: HttpClient, socket: PhoenixSocket) -> tuple[float, float]:
    """When the service sent a task's first token, and when it was here; then waits for the task's end."""
    first, text = 0.0, ""
    body = {"prompt": "hi", "model": "bench", "input": {"max_tokens": 5, "temperature": RATE}}
    status, answer = await http.post("/api/tasks", body)
    assert status == 202, answer
    channel = await socket.join(f"task:{answer['task_id']}", {"last_seq": 0}, timeout=60)
    if channel.response["task"]["response"]:
        first = time.monotonic()
    async for message in channel:
        if message.event == "text_delta":
            first = first or time.monotonic()
        elif message.event == "llm_response":
            text = message.payload["text"]
        elif message.event == "error":
            raise AssertionError(message.payload)
    return float(text.split()[0]), first


# --- tokens ---------------------------------------------------------------------------------------------


async def tokens(url: str, kind: str, server: int, streams: int) -> Load:
    """All streams at once, through the process `server`. They begin within a second."""
    count = int(RATE * (WINDOW + 6))
    watch = [sys.executable, str(HERE / "_providers_watch.py"), kind, url, *map(str, (streams, count, RATE, WINDOW))]
    async with child(*watch) as lines:
        await said(lines)
        used, began = cpu(server), time.monotonic()
        seen = await said(lines)
        used, took = cpu(server) - used, time.monotonic() - began
        assert not seen["early"], "a stream ended before the last one began"
        await said(lines)
    return Load(used / seen["tokens"] * 1e6, used / took, seen["tokens"] / (streams * RATE * WINDOW), seen)


@frozen
class Load:
    """`token_us`: CPU of the server for each token that arrived; `delivered`: how many did, of those that were due."""

    token_us: float
    core_share: float
    delivered: float
    seen: dict[str, float]


async def all_tokens(server: ServerProcess, llm: str, streams: int, with_peers: bool) -> None:
    ours = await tokens(server.url, "elwift", server.process.pid, streams)
    theirs = await peers(llm, streams) if with_peers else {}
    more = {"streams": streams, "core_share": ours.core_share, "delivered": ours.delivered}
    frames = ours.seen["frames"] / ours.seen["tokens"]
    emit("token_us", ours.token_us, "us", {n: p.token_us for n, p in theirs.items()}, **more, frames_per_token=frames)
    for name in ("p50", "p99"):
        lags = {n: p.seen[name] * 1e3 for n, p in theirs.items()}
        emit(f"token_lag_{name}_ms", ours.seen[name] * 1e3, "ms", lags, streams=streams)


async def peers(llm: str, streams: int) -> dict[str, Load]:
    """The relays, one after another; none where they cannot be installed."""
    python = await trio.to_thread.run_sync(peer_python, "relay", *RELAY)
    found = {}
    for kind in ("httpx", "openai") if python else ():
        async with child(str(python), str(HERE / "_providers_peers.py"), kind, llm) as lines:
            url = f"http://127.0.0.1:{await said(lines)}"
            try:
                found[f"{kind}_relay"] = await tokens(url, "relay", lines.pid, min(streams, PEER_STREAMS))
            except (AssertionError, trio.TooSlowError) as problem:
                print(f"the peer {kind} was left out: {problem}", file=sys.stderr)
    return found


# --- webhooks -------------------------------------------------------------------------------------------


async def webhooks(server: ServerProcess) -> None:
    await _deliver(server, 200)  # warm
    used, began = cpu(server.process.pid), time.monotonic()
    await _deliver(server, WEBHOOKS)
    took, used = time.monotonic() - began, cpu(server.process.pid) - used
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
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    trio.run(main, numbers[0] if numbers else STREAMS, "--no-peers" not in sys.argv)
