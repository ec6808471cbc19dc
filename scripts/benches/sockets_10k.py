"""Ten thousand joined clients on one core: heartbeats answered, and events told to those whom they concern.

    scripts/bench sockets_10k                       10,000 clients for half a minute
    scripts/bench sockets_10k --clients 2000 --seconds 10

The whole server runs in a process of its own, bound to one core; the clients in this one, on another. Each client joins
a task's topic of its own and sends a heartbeat every thirty seconds, as real ones do; a hundred of them join their
user's topic instead, and hear of the tasks that are created meanwhile, one a second. One JSON object a line; exit
status 1 when a client was lost or p99 is a second or more.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import selectors
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import psutil
import trio
from attrs import define, field
from websockets.frames import Frame, Opcode

from scripts.server import serving

HEARTBEAT_EVERY = 30.0
EVENT_EVERY = 1.0
WATCHERS = 100
AT_ONCE = 200
"""Clients that are connecting at one time."""
HEARTBEAT = Frame(Opcode.TEXT, b'[null,"h","phoenix","heartbeat",{}]').serialize(mask=True)
UPGRADE = (
    b"GET /socket/websocket?vsn=2.0.0 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def join_of(topic: str) -> bytes:
    return Frame(Opcode.TEXT, f'["1","1","{topic}","phx_join",{{}}]'.encode()).serialize(mask=True)


@define(eq=False)
class Client:
    sock: socket.socket
    topic: str
    stage: str = "connecting"
    beat_at: float = 0.0


@define
class Figures:
    """Seconds from a heartbeat to its answer, and from a POST to each watcher's hearing of the task."""

    heartbeats: list[float] = field(factory=list)
    events: list[float] = field(factory=list)
    lost: int = 0


@define
class Crowd:
    """All clients, driven by one selector in one thread."""

    address: tuple[str, int]
    figures: Figures = field(factory=Figures)
    clients: list[Client] = field(factory=list)
    joined: int = 0
    event_at: float = 0.0
    heard: int = 0
    selector: selectors.BaseSelector = field(factory=selectors.DefaultSelector)

    def join(self, number: int) -> None:
        """Connects and joins `number` clients."""
        while self.joined < number:
            while len(self.clients) < number and len(self.clients) - self.joined < AT_ONCE:
                sock = socket.socket()
                sock.setblocking(False)
                sock.connect_ex(self.address)
                client = Client(sock, "user:dev" if len(self.clients) < WATCHERS else f"task:{uuid4()}")
                self.clients.append(client)
                self.selector.register(sock, selectors.EVENT_WRITE, client)
            self.turn(1.0)

    def turn(self, timeout: float) -> None:
        for key, _ in self.selector.select(timeout):
            client: Client = key.data
            if client.stage == "connecting":
                client.sock.send(UPGRADE)
                client.stage = "upgrading"
                self.selector.modify(client.sock, selectors.EVENT_READ, client)
            else:
                self._read(client)

    def _read(self, client: Client) -> None:
        try:
            data = client.sock.recv(65536)
        except OSError:
            data = b""
        if not data or (client.stage == "upgrading" and not data.startswith(b"HTTP/1.1 101")):
            self.figures.lost += 1
            self.selector.unregister(client.sock)
            client.sock.close()
            if client.stage != "joined":
                raise SystemExit(f"a client could not join: {data[:100]!r}")
        elif client.stage == "upgrading":
            client.sock.send(join_of(client.topic))
            client.stage = "joining"
        elif client.stage == "joining":
            client.stage = "joined"
            self.joined += 1
        else:
            self._hear(client, data)

    def _hear(self, client: Client, data: bytes) -> None:
        now = time.perf_counter()
        if b'"task_created"' in data and self.event_at:
            self.figures.events.append(now - self.event_at)
            self.heard += 1
        if b'"phoenix"' in data and client.beat_at:
            self.figures.heartbeats.append(now - client.beat_at)
            client.beat_at = 0.0

    def stay(self, seconds: float, http: httpx.Client) -> None:
        """Lives on for a while: heartbeats spread evenly, and now and then a task."""
        began = time.perf_counter()
        beats, tasks = 0, 0
        while (now := time.perf_counter() - began) < seconds:
            due = int(now / HEARTBEAT_EVERY * len(self.clients))
            for number in range(beats, due):
                self._beat(self.clients[number % len(self.clients)])
            beats = due
            if now >= 1 + EVENT_EVERY * tasks and (not tasks or self.heard >= WATCHERS):
                tasks += 1
                self._create_task(http)
            self.turn(0.001)
        settled = time.perf_counter() + 5
        while time.perf_counter() < settled and any(client.beat_at for client in self.clients):
            self.turn(0.01)
        self.figures.lost += sum(1 for client in self.clients if client.beat_at)

    def _beat(self, client: Client) -> None:
        client.beat_at = time.perf_counter()
        client.sock.send(HEARTBEAT)

    def _create_task(self, http: httpx.Client) -> None:
        self.heard, self.event_at = 0, time.perf_counter()
        body = {"prompt": "x", "model": "simulate", "input": {"steps": 1, "interval": 0.01}}
        http.post("/api/tasks", json=body).raise_for_status()


def percentile(samples: list[float], share: float) -> float:
    ordered = sorted(samples) or [float("inf")]
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def rows(figures: Figures, clients: int, join_seconds: float, cpu: float, resident: int) -> list[dict[str, Any]]:
    values = {
        "joined": (clients, "clients"),
        "lost": (figures.lost, "clients"),
        "join_seconds": (join_seconds, "s"),
        "heartbeats": (len(figures.heartbeats), ""),
        "heartbeat_p50_ms": (percentile(figures.heartbeats, 0.5) * 1000, "ms"),
        "heartbeat_p99_ms": (percentile(figures.heartbeats, 0.99) * 1000, "ms"),
        "event_p50_ms": (percentile(figures.events, 0.5) * 1000, "ms"),
        "event_p99_ms": (percentile(figures.events, 0.99) * 1000, "ms"),
        "server_cpu_share": (cpu, ""),
        "resident_bytes_a_client": (resident / clients, "bytes"),
    }
    return [
        {"bench": "sockets_10k", "name": name, "value": round(value, 2), "unit": unit, "peers": {}}
        for name, (value, unit) in values.items()
    ]


def drive(url: str, pid: int, clients: int, seconds: float) -> int:
    parts = urlsplit(url)
    server = psutil.Process(pid)
    cores = sorted(os.sched_getaffinity(0))
    server.cpu_affinity(cores[:1])
    os.sched_setaffinity(0, set(cores[1:]) or set(cores))
    before = server.memory_info().rss
    crowd = Crowd((parts.hostname or "127.0.0.1", parts.port or 80))
    began = time.perf_counter()
    crowd.join(clients)
    join_seconds = time.perf_counter() - began
    resident = server.memory_info().rss - before
    times, since = server.cpu_times(), time.perf_counter()
    with httpx.Client(base_url=url, timeout=30) as http:
        crowd.stay(seconds, http)
    after = server.cpu_times()
    cpu = (after.user + after.system - times.user - times.system) / (time.perf_counter() - since)
    for row in rows(crowd.figures, clients, join_seconds, cpu, resident):
        print(json.dumps(row), flush=True)
    worst = max(percentile(crowd.figures.heartbeats, 0.99), percentile(crowd.figures.events, 0.99))
    return 1 if crowd.figures.lost or worst >= 1 else 0


async def main(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="elwift-10k-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)  # an embedded PostgreSQL runs as another user
        environment = {"ELWIFT_LOCAL_MODEL": "false", "ELWIFT_LOG_LEVEL": "error"}
        async with serving(Path(folder) / "data", environment=environment) as server:
            return await trio.to_thread.run_sync(
                drive, server.url, server.process.pid, options.clients, options.seconds
            )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=30.0)
    return parser.parse_args()


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    sys.exit(trio.run(main, _options()))
