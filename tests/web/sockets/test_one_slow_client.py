"""One client that reads a kilobyte a second beside many that read at once, on real sockets."""

from __future__ import annotations

import json
import socket
from typing import Any
from uuid import UUID

import pytest
import trio

from tests.web.sockets.lines import ask
from tests.web.sockets.server import Server, open_server
from web.channels.outgoing import TextDelta
from web.channels.payloads import TextTold
from web.endpoint import EndpointSettings
from web.sockets.event import Event, Merge

HEALTHY = 100
ROUNDS = 40
CHUNK = "x" * 2000
T = "room:1"


class Shy:
    """A raw WebSocket that reads only when asked; its kernel buffers are as small as can be."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream

    @classmethod
    async def connect(cls, url: str) -> Shy:
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = url.removeprefix("ws://").split(":")
        await sock.connect((host, int(port)))
        stream = trio.SocketStream(sock)
        key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        head = f"GET /socket/websocket?vsn=2.0.0 HTTP/1.1\r\nHost: {host}:{port}\r\n"
        await stream.send_all(head.encode() + b"Upgrade: websocket\r\nConnection: Upgrade\r\n" + key)
        await stream.receive_some(4096)
        return cls(stream)

    async def say(self, *frame: Any) -> None:
        data = json.dumps(frame).encode()
        assert len(data) < 126
        await self.stream.send_all(bytes((0x81, 0x80 | len(data))) + bytes(4) + data)


@pytest.mark.parametrize("lossy", [True, False])
async def test_one_slow_client_slows_nobody_and_never_grows(lossy: bool) -> None:
    settings = EndpointSettings(max_outbox=500_000)
    async with open_server("stream", settings=settings) as server, trio.open_nursery() as nursery:
        slow = await Shy.connect(server.line.url)
        await slow.say("1", "1", T, "phx_join", {})
        (slow_member,) = server.roster
        send, got = trio.open_memory_channel[None](HEALTHY)
        for _ in range(HEALTHY):
            nursery.start_soon(healthy, server, send)
        with trio.fail_after(60):
            await everybody(got)  # has joined
            for n in range(ROUNDS):
                tell_all(server, n, lossy)
                await slow.stream.receive_some(1024)
                await everybody(got)
        if lossy:
            assert not slow_member.closed
            assert slow_member._queued < 2 * settings.high_water
        else:
            assert slow_member.closed
        await slow.stream.aclose()
        nursery.cancel_scope.cancel()


def tell_all(server: Server, n: int, lossy: bool) -> None:
    """One round: for a client that keeps up a delta and a progress; or, not lossy, something that must arrive."""
    for _, member in server.door.pubsub._members.lookup(T):
        if lossy:
            member.lane.push(TextDelta(T, TextTold(UUID(int=7), 1, n * 200, CHUNK[:200], float(n))))
            member.lane.push(Event(T, "progress", {"n": n, "message": CHUNK * 6}, Merge.NEWEST))
        else:
            member.lane.push(Event(T, "durable_thing", {"n": n, "text": CHUNK * 12}))


async def healthy(server: Server, tell: trio.MemorySendChannel[None]) -> None:
    """A client that reads all at once; says when it has joined, and after each round."""
    async with server.connect() as client:
        await ask(client, "1", "1", T, "phx_join", {})
        await tell.send(None)
        for n in range(ROUNDS):
            while (frame := await client.receive())[3] not in ("progress", "durable_thing"):
                pass
            assert frame[4]["n"] == n
            await tell.send(None)


async def everybody(got: trio.MemoryReceiveChannel[None]) -> None:
    for _ in range(HEALTHY):
        await got.receive()
