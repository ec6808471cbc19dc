"""What a frame, a reply, a client and a task cost on a socket, beside plain Quart and FastAPI: one JSON line each.

    scripts/bench sockets                            everything (some two minutes)
    scripts/bench sockets push_saturated_us …        only these
    scripts/bench sockets --no-peers                 ours alone
    scripts/bench sockets --clients 10000            only the proof that so many are served by one core

The server is one process on one core, the client busy-polls on another (a client that sleeps lets a virtual machine's
core sleep, and the same server then looks twice as slow). `…_us` is CPU time of the server: a frame, a reply, a POST.
The peers keep no process per connection or topic, and json.dumps what they send; ours has both processes.
FastAPI is installed into an environment of its own, beside ours, and left out when that cannot be done.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import resource
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _peers import peer_python
from websockets.frames import Frame, Opcode

HERE = Path(__file__).parent
CLIENT_CORE = 1
CHANNELS = 100
CONNECTIONS = 32
PATIENCE = 60.0
FASTAPI = ("fastapi>=0.116", "uvicorn[standard]>=0.35")
HANDSHAKE = (
    b"GET /socket/websocket?vsn=2.0.0 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
SENT_AT = re.compile(rb'"at": ?([0-9.]+)')


def text(*parts: Any) -> bytes:
    return Frame(Opcode.TEXT, json.dumps(parts).encode()).serialize(mask=True)


class Server:
    """A server process, watched from outside."""

    def __init__(self, command: list[str]) -> None:
        environment = os.environ | {"PYTHONPATH": str(HERE.parent.parent)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise OSError(f"{command[2]} did not come up")
        self.port = int(line)

    def cpu(self) -> float:
        """Seconds of CPU that all its threads have had."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9

    def resident(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@contextmanager
def serving(kind: str, python: str = sys.executable, *more: str) -> Iterator[Server]:
    server = Server([python, str(HERE / "_sockets_servers.py"), kind, *more])
    try:
        yield server
    finally:
        server.stop()


class Clients:
    """Many WebSockets, one epoll, no waiting."""

    def __init__(self, port: int, count: int, topic: Callable[[int], str] = lambda n: "room:1") -> None:
        self.port = port
        self.socks: dict[int, socket.socket] = {}
        self.epoll = select.epoll()
        stage: dict[int, int] = {}
        opened = joined = 0
        deadline = time.monotonic() + PATIENCE + count / 100
        while joined < count:
            while opened < count and opened - joined < 200:
                fd = self._open()
                stage[fd], opened = opened, opened + 1
            for fd, _ in self.epoll.poll(0.1):
                joined += self._advance(fd, topic(stage[fd]))
            if time.monotonic() > deadline:
                raise TimeoutError("the clients cannot join")

    def _open(self) -> int:
        sock = socket.create_connection(("127.0.0.1", self.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(HANDSHAKE)
        sock.setblocking(False)
        self.socks[sock.fileno()] = sock
        self.epoll.register(sock.fileno(), select.EPOLLIN)
        return sock.fileno()

    def _advance(self, fd: int, topic: str) -> int:
        data = self.socks[fd].recv(65536)
        if data.startswith(b"HTTP/1.1 101"):
            self.socks[fd].send(text("1", "1", topic, "phx_join", {}))
            return 0
        if b"ok" not in data:
            raise OSError(f"not joined: {data[:200]!r}")
        return 1

    def say(self, event: str, payload: Any) -> None:
        """Through the first client."""
        next(iter(self.socks.values())).send(text("1", "9", "room:1", event, payload))

    def read(self) -> Iterable[tuple[int, bytes]]:
        for fd, _ in self.epoll.poll(0):
            data = self.socks[fd].recv(262144)
            if not data:
                raise OSError("the server closed a connection")
            yield fd, data

    def close(self) -> None:
        for sock in self.socks.values():
            sock.close()
        self.epoll.close()


@contextmanager
def clients(server: Server, count: int, topic: Callable[[int], str] = lambda n: "room:1") -> Iterator[Clients]:
    made = Clients(server.port, count, topic)
    try:
        yield made
    finally:
        made.close()
        time.sleep(0.2)  # the server hears of it before the next measurement


# --- measurements ------------------------------------------------------------------------------------------------


def push_saturated(server: Server) -> dict[str, float]:
    """Every channel's process is told `rounds` times, as fast as the clients take it."""
    rounds = 400
    with clients(server, CHANNELS) as many:
        frames, before = 0, server.cpu()
        many.say("burst", {"rounds": rounds})
        deadline = time.monotonic() + PATIENCE
        while frames < CHANNELS * rounds and time.monotonic() < deadline:
            frames += sum(data.count(b'"at"') for _, data in many.read())
        spent = server.cpu() - before
        many.say("forget", {})
        return {"push_saturated_us": spent / frames * 1e6}


def push_paced(server: Server) -> dict[str, float]:
    """Every channel pushes 20 times a second, each by its own clock; latency from the push to the client's read."""
    seconds = 5.0
    with clients(server, CHANNELS) as many:
        latencies: list[float] = []
        before = server.cpu()
        many.say("pace", {"every": 0.05, "for": seconds})
        end = time.monotonic() + seconds + 0.2
        while (now := time.monotonic()) < end:
            for _, data in many.read():
                latencies += [now - float(at) for at in SENT_AT.findall(data)]
        spent = server.cpu() - before
        many.say("forget", {})
    latencies.sort()
    return {
        "push_paced_us": spent / len(latencies) * 1e6,
        "push_paced_p50_ms": latencies[len(latencies) // 2] * 1e3,
        "push_paced_p99_ms": latencies[int(len(latencies) * 0.99)] * 1e3,
    }


def closed_loop(server: Server, many: Clients, message: bytes, seconds: float) -> tuple[float, float]:
    """Each client asks again as soon as it is answered: (CPU µs an answer, median µs of a round)."""
    asked = {}
    rounds: list[float] = []
    before, end = server.cpu(), time.perf_counter() + seconds
    for fd, sock in many.socks.items():
        asked[fd] = time.perf_counter()
        sock.send(message)
    while (now := time.perf_counter()) < end:
        for fd, _ in many.read():
            rounds.append(now - asked[fd])
            asked[fd] = time.perf_counter()
            many.socks[fd].send(message)
    spent = server.cpu() - before
    rounds.sort()
    return spent / len(rounds) * 1e6, rounds[len(rounds) // 2] * 1e6


ECHO = text("1", "7", "room:1", "echo", {"a": 1})


def reply_100(server: Server) -> dict[str, float]:
    with clients(server, CHANNELS) as many:
        return {"reply_100_us": closed_loop(server, many, ECHO, 4.0)[0]}


def reply_serial(server: Server) -> dict[str, float]:
    with clients(server, 1) as one:
        return {"reply_serial_p50_us": closed_loop(server, one, ECHO, 3.0)[1]}


def fanout_5000(server: Server) -> dict[str, float]:
    """One broadcast to 5,000 clients: until 99 % of them have it."""
    with clients(server, 5000) as many:
        start, told, seen = time.perf_counter(), set[int](), 0.0
        many.say("broadcast", {"rounds": 1})
        while len(told) < 4950:
            told.update(fd for fd, data in many.read() if b'"at"' in data)
            seen = time.perf_counter() - start
        many.say("forget", {})
        return {"fanout_5000_p99_ms": seen * 1e3}


def new_task() -> bytes:
    body = json.dumps({"model": "simulate", "input": {"steps": 1, "interval": 3600}}).encode()
    head = (
        b"POST /api/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    return head % len(body) + body


def post(server: Server) -> dict[str, float]:
    """POST /api/tasks on 32 connections, each answer durable; every task is spawned and kept."""
    many = Clients(server.port, 0)
    for _ in range(CONNECTIONS):
        sock = socket.create_connection(("127.0.0.1", server.port))
        sock.setblocking(False)
        many.socks[sock.fileno()] = sock
        many.epoll.register(sock.fileno(), select.EPOLLIN)
    try:
        return {"post_us": closed_loop(server, many, new_task(), 4.0)[0]}
    finally:
        many.close()


def idle_client(server: Server) -> dict[str, float]:
    """Resident bytes of a joined client that nothing happens to, with the TaskServer of its task."""
    count = 1000
    ids = [created(server.port) for _ in range(20)]  # whatever grows once has grown
    with clients(server, 20, lambda n: f"task:{ids[n]}"):
        pass
    before = server.resident()
    ids = [created(server.port) for _ in range(count)]
    with clients(server, count, lambda n: f"task:{ids[n]}"):
        time.sleep(20.0)  # until what is idle has gone to sleep
        return {"idle_client_bytes": (server.resident() - before) / count}


def created(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    body = json.dumps({"model": "simulate", "input": {"steps": 1, "interval": 3600}})
    connection.request("POST", "/api/tasks", body, {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return str(answer["task_id"])


def proof(server: Server, count: int) -> dict[str, float]:
    """So many joined clients on one core, each with a heartbeat to be answered: the slowest per cent, in ms."""
    with clients(server, count) as many:
        heartbeat = text(None, "1", "phoenix", "heartbeat", {})
        asked, rounds = {}, list[float]()
        for fd, sock in many.socks.items():
            asked[fd] = time.perf_counter()
            sock.send(heartbeat)
        while len(rounds) < count:
            rounds += [time.perf_counter() - asked[fd] for fd, _ in many.read()]
        rounds.sort()
        return {f"heartbeats_{count}_p99_ms": rounds[int(count * 0.99)] * 1e3}


ON_SOCKETS: tuple[tuple[tuple[str, ...], Callable[[Server], dict[str, float]]], ...] = (
    (("push_saturated_us",), push_saturated),
    (("push_paced_us", "push_paced_p50_ms", "push_paced_p99_ms"), push_paced),
    (("reply_100_us",), reply_100),
    (("reply_serial_p50_us",), reply_serial),
    (("fanout_5000_p99_ms",), fanout_5000),
)
ON_APPLICATION = ((("post_us",), post), (("idle_client_bytes",), idle_client))
OURS_ALONE = {"fanout_5000_p99_ms"}
"""The plain Quart server does not get 5,000 clients connected in bearable time."""


# --- running them ----------------------------------------------------------------------------------------------------


def peers() -> Iterator[tuple[str, str]]:
    yield "quart", sys.executable
    python = peer_python("fastapi", *FASTAPI)
    if python is not None:
        yield "fastapi", str(python)


def wanted(names: Iterable[str], chosen: list[str]) -> bool:
    return not chosen or any(name in chosen for name in names)


def unit(name: str) -> str:
    return name.rpartition("_")[2]


def tell(name: str, value: float, beside: dict[str, float]) -> None:
    line = {"bench": "sockets", "name": name, "value": round(value, 2), "unit": unit(name)}
    print(json.dumps(line | {"peers": {peer: round(figure, 2) for peer, figure in beside.items()}}), flush=True)


def measure(chosen: list[str], with_peers: bool) -> None:
    rivals = list(peers()) if with_peers else []
    for names, run in ON_SOCKETS:
        if not wanted(names, chosen):
            continue
        with serving("elwift") as server:
            ours = run(server)
        beside: dict[str, dict[str, float]] = {name: {} for name in names}
        for peer, python in rivals:
            if peer == "quart" and OURS_ALONE.intersection(names):
                continue
            with serving(peer, python) as server:
                for name, value in run(server).items():
                    beside[name][peer] = value
        for name, value in ours.items():
            tell(name, value, beside[name])
    for names, run in ON_APPLICATION:
        if wanted(names, chosen):
            with tempfile.TemporaryDirectory(prefix="elwift-bench-") as folder:
                os.chmod(folder, 0o755)
                with serving("application", sys.executable, folder) as server:
                    for name, value in run(server).items():
                        tell(name, value, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="which figures")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--clients", type=int, metavar="N", help="only the proof that N joined clients are served")
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {CLIENT_CORE})
    if options.clients:
        with serving("elwift") as server:
            for name, value in proof(server, options.clients).items():
                tell(name, value, {})
        return
    measure(options.names, not options.no_peers)


if __name__ == "__main__":
    main()
