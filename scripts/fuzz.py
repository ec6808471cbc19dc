"""Hostile connections, thousands of them, against a server that must answer a healthy client all the while.

Every connection is one attack, chosen and filled by a seeded generator: a run can be repeated by its seed. Without
--url a server is started on loopback and stopped at the end, and its memory is watched. Prints one JSON object a line;
exit status 1 when a healthy request failed or was slow, or memory grew.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import trio
from attrs import define, field

LOOPBACK = {"127.0.0.1", "localhost", "::1"}
MIB = 1024 * 1024
PATIENCE = 5.0
"""Seconds that a healthy request may take before the server counts as hurt."""
HEARTBEAT = b'[null,"1","phoenix","heartbeat",{}]'
SETTINGS = b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64"

Attack = Callable[["Attacker"], Awaitable[None]]
ATTACKS: list[Attack] = []


def attack(function: Attack) -> Attack:
    ATTACKS.append(function)
    return function


@define
class Target:
    port: int
    socket_path: str
    pid: int | None = None

    def resident(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss) if self.pid else 0


@define
class Attacker:
    """One connection and its dice."""

    stream: trio.SocketStream
    dice: random.Random
    target: Target

    async def say(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def hear(self, patience: float = 0.3) -> None:
        """Reads and forgets, until the server has had enough or for a while."""
        with trio.move_on_after(patience):
            while await self.stream.receive_some(65536):
                pass

    def reset(self) -> None:
        """Leaves without a good-bye: the connection is reset, not closed."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def upgrade(self, *headers: bytes) -> None:
        lines = [
            b"GET " + self.target.socket_path.encode() + b" HTTP/1.1",
            b"Host: localhost",
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            b"Sec-WebSocket-Version: 13",
            *headers,
        ]
        await self.say(b"\r\n".join([*lines, b"", b""]))
        with trio.move_on_after(PATIENCE):
            said = b""
            while b"\r\n\r\n" not in said and (data := await self.stream.receive_some(4096)):
                said += data

    def frame(self, opcode: int, data: bytes, fin: bool = True, masked: bool = True, claim: int | None = None) -> bytes:
        """A client's frame; `claim` is the length it pretends to have."""
        length = len(data) if claim is None else claim
        bit = 0x80 if masked else 0
        head = bytes([(0x80 if fin else 0) | opcode])
        if length < 126:
            head += bytes([bit | length])
        elif length < 65536:
            head += bytes([bit | 126]) + length.to_bytes(2, "big")
        else:
            head += bytes([bit | 127]) + length.to_bytes(8, "big")
        mask = self.dice.randbytes(4)
        return head + (mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data)) if masked else data)


# --- HTTP ---------------------------------------------------------------------------------------------


@attack
async def raw_bytes(a: Attacker) -> None:
    await a.say(a.dice.randbytes(a.dice.randrange(1, 4000)))
    await a.hear()


@attack
async def half_a_request(a: Attacker) -> None:
    whole = b"POST /api/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{}"
    await a.say(whole[: a.dice.randrange(1, len(whole))])
    if a.dice.random() < 0.5:
        a.reset()


@attack
async def wrong_request(a: Attacker) -> None:
    line = a.dice.choice([b"GET", b"G\x00T", b"POST", b"", b"\xff" * 9]) + b" / HTTP/" + a.dice.randbytes(3)
    await a.say(line + b"\r\n" + a.dice.randbytes(a.dice.randrange(200)) + b"\r\n\r\n")
    await a.hear()


@attack
async def giant_headers(a: Attacker) -> None:
    await a.say(b"GET / HTTP/1.1\r\nHost: x\r\n")
    for _ in range(a.dice.randrange(1, 40)):
        await a.say(b"X-%d: %b\r\n" % (a.dice.randrange(1 << 30), b"x" * a.dice.randrange(8000)))
    await a.hear()


@attack
async def smuggled_lengths(a: Attacker) -> None:
    lengths = a.dice.sample([b"Content-Length: 5", b"Content-Length: 6", b"Transfer-Encoding: chunked"], 2)
    await a.say(
        b"POST /api/tasks HTTP/1.1\r\nHost: x\r\n" + b"\r\n".join(lengths) + b"\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n"
    )
    await a.hear()


@attack
async def wrong_chunks(a: Attacker) -> None:
    await a.say(b"POST /api/tasks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    await a.say(a.dice.choice([b"zz\r\n", b"-1\r\n", b"f" * 300 + b"\r\n", b"5\r\nab", b"5;x=" + b"y" * 20000]))
    await a.hear()


@attack
async def endless_body(a: Attacker) -> None:
    await a.say(b"POST /api/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
    for _ in range(a.dice.randrange(40)):
        await a.say(b"x" * 65536)
    await a.hear(0.1)


@attack
async def many_at_once(a: Attacker) -> None:
    await a.say(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * a.dice.randrange(1, 50))
    await a.hear(0.05)


@attack
async def http2_upgrade(a: Attacker) -> None:
    settings = a.dice.choice([b"A", b"!!!", b"AAMAAABkAAQAAP__", a.dice.randbytes(9).hex().encode()])
    await a.say(
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: " + settings + b"\r\n\r\n"
    )
    await a.hear(0.1)


@attack
async def http2_preface(a: Attacker) -> None:
    await a.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS + a.dice.randbytes(a.dice.randrange(200)))
    await a.hear()


@attack
async def tls_hello(a: Attacker) -> None:
    await a.say(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + a.dice.randbytes(505))
    await a.hear()


@attack
async def slow_loris(a: Attacker) -> None:
    for byte in b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ":
        await a.say(bytes([byte]))
        await trio.sleep(0.002)


@attack
async def never_reads(a: Attacker) -> None:
    for _ in range(30):
        with trio.move_on_after(0.02):
            await a.say(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
    a.reset()


# --- WebSocket ----------------------------------------------------------------------------------------


@attack
async def wrong_handshake(a: Attacker) -> None:
    good = [
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        b"Sec-WebSocket-Version: 13",
    ]
    good[a.dice.randrange(4)] = a.dice.choice(
        [b"Sec-WebSocket-Version: 99", b"Sec-WebSocket-Key: \x7f", b"Connection: x"]
    )
    path = a.target.socket_path.encode()
    await a.say(b"\r\n".join([b"GET " + path + b" HTTP/1.1", b"Host: x", *good, b"", b""]) + a.dice.randbytes(3))
    await a.hear()


@attack
async def bytes_behind_an_upgrade(a: Attacker) -> None:
    path = a.target.socket_path.encode()
    await a.say(
        b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        + a.dice.randbytes(a.dice.randrange(1, 100))
    )
    await a.hear()


@attack
async def wrong_mask(a: Attacker) -> None:
    await a.upgrade()
    await a.say(a.frame(1, HEARTBEAT, masked=False))
    await a.hear()


@attack
async def half_a_frame(a: Attacker) -> None:
    await a.upgrade()
    whole = a.frame(1, HEARTBEAT * a.dice.randrange(1, 20))
    await a.say(whole[: a.dice.randrange(1, len(whole))])
    if a.dice.random() < 0.5:
        a.reset()


@attack
async def giant_claim(a: Attacker) -> None:
    await a.upgrade()
    await a.say(a.frame(2, b"x" * 1000, claim=a.dice.choice([1 << 24, 1 << 40, (1 << 63) - 1, 1 << 63])))
    await a.hear()


@attack
async def giant_fragments(a: Attacker) -> None:
    await a.upgrade()
    await a.say(a.frame(2, b"x", fin=False))
    piece = a.frame(0, b"x" * 4096, fin=False)
    for _ in range(a.dice.randrange(600)):
        await a.say(piece)
    await a.hear(0.1)


@attack
async def endless_empty_fragments(a: Attacker) -> None:
    await a.upgrade()
    await a.say(a.frame(1, b"", fin=False) + a.frame(0, b"", fin=False) * a.dice.randrange(5000))


@attack
async def wrong_utf8(a: Attacker) -> None:
    await a.upgrade()
    await a.say(
        a.frame(1, a.dice.choice([b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf5\x80\x80\x80", b"\xe2\x82"]))
    )
    await a.hear()


@attack
async def random_frames(a: Attacker) -> None:
    await a.upgrade()
    for _ in range(a.dice.randrange(1, 20)):
        data = a.dice.randbytes(a.dice.randrange(200))
        await a.say(a.frame(a.dice.randrange(16), data, a.dice.random() < 0.7, a.dice.random() < 0.9))
    await a.hear(0.1)


@attack
async def wrong_messages(a: Attacker) -> None:
    await a.upgrade()
    said = [b"{", b"[]", b"null", b"[1,2,3,4,5]", b"[" * 5000, b'["1","1","task:\x00","phx_join",{}]', b"1e999999"]
    await a.say(a.frame(1, a.dice.choice(said)))
    await a.hear()


@attack
async def binary_nonsense(a: Attacker) -> None:
    await a.upgrade()
    await a.say(a.frame(2, a.dice.randbytes(a.dice.randrange(60))))
    await a.hear()


@attack
async def ping_flood(a: Attacker) -> None:
    """Asks for pongs, and does not read them."""
    await a.upgrade()
    with trio.move_on_after(0.3):
        await a.say(a.frame(9, b"x" * 125) * a.dice.randrange(3000))
    a.reset()


@attack
async def wrong_close(a: Attacker) -> None:
    await a.upgrade()
    await a.say(a.frame(8, a.dice.choice([b"x", b"\x00\x00", b"\x03\xed", b"\x03\xe8\xff", b"\x03\xe8" + b"x" * 120])))
    await a.say(a.frame(1, HEARTBEAT))
    await a.hear()


@attack
async def compressed_nonsense(a: Attacker) -> None:
    await a.upgrade(b"Sec-WebSocket-Extensions: permessage-deflate")
    frame = bytearray(a.frame(1, a.dice.randbytes(100)))
    frame[0] |= 0x40
    await a.say(bytes(frame))
    await a.hear()


# --- the healthy client, and the run -------------------------------------------------------------------


@define
class Report:
    """What was seen. Times in seconds, memory in bytes."""

    attacks: Counter[str] = field(factory=Counter)
    healthy: list[float] = field(factory=list)
    failures: list[str] = field(factory=list)
    memory: list[int] = field(factory=list)

    @property
    def growth(self) -> int:
        """From the end of the first quarter, when every cache is warm, to the end."""
        return self.memory[-1] - self.memory[len(self.memory) // 4] if self.memory else 0


async def one_attack(target: Target, number: int, seed: int, report: Report) -> None:
    dice = random.Random(f"{seed}:{number}")
    chosen = dice.choice(ATTACKS)
    report.attacks[chosen.__name__] += 1
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", target.port)
    except OSError as problem:
        report.failures.append(f"attack {number} ({chosen.__name__}) could not connect: {problem}")
        return
    async with stream:
        try:
            with trio.move_on_after(PATIENCE * 2):
                await chosen(Attacker(stream, dice, target))
        except (trio.BrokenResourceError, OSError):
            return  # the server had had enough, as it should


async def healthy_requests(target: Target, report: Report) -> None:
    """One request after another, each on a connection of its own, and a heartbeat on a socket that stays."""
    stream = await trio.open_tcp_stream("127.0.0.1", target.port)
    dice = random.Random(0)
    async with stream:
        steady = Attacker(stream, dice, target)
        await steady.upgrade()
        while True:
            await _timed(report, "heartbeat", _beat, steady)
            await _timed(report, "request", _request, target)
            await trio.sleep(0.05)


async def _timed(report: Report, what: str, act: Callable[[Any], Awaitable[None]], on: Any) -> None:
    began = trio.current_time()
    try:
        with trio.fail_after(PATIENCE):
            await act(on)
    except (OSError, trio.TooSlowError, trio.BrokenResourceError, EOFError) as problem:
        report.failures.append(f"{what}: {problem!r}")
        await trio.sleep(0.2)
    else:
        report.healthy.append(trio.current_time() - began)


async def _beat(steady: Attacker) -> None:
    await steady.say(steady.frame(1, HEARTBEAT))
    if not await steady.stream.receive_some(4096):
        raise EOFError("the healthy socket was closed")


async def _request(target: Target) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", target.port) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = await stream.receive_some(4096)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise EOFError(f"answered {answer[:40]!r}")


async def watch_memory(target: Target, report: Report) -> None:
    while True:
        report.memory.append(target.resident())
        await trio.sleep(0.1)


async def fuzz(target: Target, connections: int, seed: int, at_once: int, say: Callable[[str], None]) -> Report:
    """Runs the attacks, `at_once` of them at a time, beside a healthy client."""
    report = Report()
    room = trio.CapacityLimiter(at_once)

    async def attack_number(number: int) -> None:
        async with room:
            await one_attack(target, number, seed, report)

    async with trio.open_nursery() as around:
        around.start_soon(healthy_requests, target, report)
        around.start_soon(watch_memory, target, report)
        async with trio.open_nursery() as nursery:
            for number in range(connections):
                if number % 500 == 0:
                    say(f"{number} of {connections} connections, {len(report.failures)} failures")
                async with room:
                    pass  # no more tasks than can run
                nursery.start_soon(attack_number, number)
        await trio.sleep(0.5)  # a last look at the memory, and at the healthy client, after the last attack
        report.memory.append(target.resident())
        around.cancel_scope.cancel()
    return report


def rows(report: Report) -> list[dict[str, Any]]:
    times = sorted(report.healthy) or [float("nan")]
    figures = {
        "connections": (sum(report.attacks.values()), ""),
        "healthy_requests": (len(report.healthy), ""),
        "healthy_failures": (len(report.failures), ""),
        "healthy_p50_ms": (times[len(times) // 2] * 1000, "ms"),
        "healthy_max_ms": (times[-1] * 1000, "ms"),
        "memory_growth": (report.growth / MIB, "MiB"),
    }
    return [{"bench": "fuzz", "name": n, "value": round(v, 2), "unit": u, "peers": {}} for n, (v, u) in figures.items()]


async def main(options: argparse.Namespace) -> int:
    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if options.url:
        parts = urlsplit(options.url)
        if parts.hostname not in LOOPBACK:
            say("fuzz: only a server on loopback is attacked")
            return 2
        report = await fuzz(
            Target(parts.port or 80, options.socket, options.pid),
            options.connections,
            options.seed,
            options.at_once,
            say,
        )
    else:
        from scripts.server import serving

        with tempfile.TemporaryDirectory(prefix="elwift-fuzz-", ignore_cleanup_errors=True) as folder:
            os.chmod(folder, 0o755)  # an embedded PostgreSQL runs as another user
            environment = {"ELWIFT_LOCAL_MODEL": "false", "ELWIFT_LOG_LEVEL": "error"}
            async with serving(Path(folder) / "data", environment=environment) as server:
                target = Target(urlsplit(server.url).port or 80, options.socket, server.process.pid)
                report = await fuzz(target, options.connections, options.seed, options.at_once, say)
    for row in rows(report):
        print(json.dumps(row))
    for failure in report.failures[:10]:
        say(failure)
    return 1 if report.failures or report.growth > options.growth * MIB else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running server on loopback; without it one is started")
    parser.add_argument("--pid", type=int, help="with --url: the server's process, to watch its memory")
    parser.add_argument("--socket", default="/socket/websocket?vsn=2.0.0", help="path of the WebSocket")
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--at-once", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--growth", type=float, default=40.0, help="MiB of memory that it may gain (default 40)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(trio.run(main, _options()))
