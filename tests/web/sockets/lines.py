"""Lines between a test and a Socket process: the same cases run over each of them.

`memory` is a transport without a network, for what is about processes and rules alone; `stream` is the endpoint's own
data path and `asgi` its path over plain ASGI, both with a real client on a real socket.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import trio
from attrs import define, field

from engine.otp import Pid, monitor, receive, send, spawn
from web.sockets.door import Door, Refusal
from web.sockets.transport import Closed, Received, Transport, Upgrade, Writable

PATIENCE = 5.0


class Client(Protocol):
    """A test's end of a line."""

    async def send(self, frame: list[Any] | dict[str, Any] | str | bytes) -> None: ...

    async def receive(self) -> Any:
        """The next frame: parsed JSON, or bytes. Fails when none comes in time."""
        ...

    async def closed(self) -> int:
        """Waits for the end; answers the close code. Frames that come before it are an error."""
        ...


async def ask(client: Client, *frame: Any) -> Any:
    await client.send(list(frame))
    return await client.receive()


def encoded(frame: list[Any] | dict[str, Any] | str | bytes) -> str | bytes:
    return frame if isinstance(frame, str | bytes) else json.dumps(frame, ensure_ascii=False)


@define(eq=False)
class MemoryTransport:
    """A transport as `web.sockets.transport` asks for it, whose other end is a test."""

    upgrade: Upgrade
    owner: Pid | None = None
    congested: bool = False
    reading: bool = True
    code: int | None = None
    sent: list[str | bytes] = field(factory=list)
    unread: list[str | bytes] = field(factory=list)
    more: trio.Event = field(factory=trio.Event)

    @property
    def closed(self) -> bool:
        return self.code is not None

    def send_text(self, utf8: bytes) -> None:
        self._sent(utf8.decode())

    def send_binary(self, data: bytes) -> None:
        self._sent(bytes(data))

    def _sent(self, message: str | bytes) -> None:
        if not self.closed:
            self.sent.append(message)
            self._wake()

    def _wake(self) -> None:
        self.more.set()
        self.more = trio.Event()

    def flush(self) -> None:
        pass

    def resume(self) -> None:
        self.reading = True
        self._deliver()

    def close(self, code: int, reason: str = "") -> None:
        if self.code is None:
            self.code = code
            self._wake()
            if self.owner is not None:
                send(self.owner, Closed(code, reason))

    def type(self, message: str | bytes) -> None:
        """The client says something."""
        self.unread.append(message)
        self._deliver()

    def _deliver(self) -> None:
        if self.reading and self.unread and self.owner is not None and not self.closed:
            frames, self.unread, self.reading = tuple(self.unread), [], False
            send(self.owner, Received(frames))

    def relieve(self) -> None:
        """The client has read what was waiting."""
        self.congested = False
        assert self.owner is not None
        send(self.owner, Writable())

    async def watch(self) -> None:
        """Runs as a process: an owner that ends leaves the client 1011, unless it said something else."""
        assert self.owner is not None
        monitor(self.owner)
        await receive()
        self.close(1011)


@define
class MemoryClient:
    transport: MemoryTransport

    async def send(self, frame: list[Any] | dict[str, Any] | str | bytes) -> None:
        self.transport.type(encoded(frame))

    async def receive(self) -> Any:
        with trio.fail_after(PATIENCE):
            while not self.transport.sent:
                if self.transport.closed:
                    raise ConnectionError(self.transport.code)
                await self.transport.more.wait()
        message = self.transport.sent.pop(0)
        return json.loads(message) if isinstance(message, str) else message

    async def closed(self) -> int:
        with trio.fail_after(PATIENCE):
            while self.transport.code is None:
                await self.transport.more.wait()
        assert not self.transport.sent
        return self.transport.code

    async def close(self) -> None:
        self.transport.close(1000)


class RefusedUpgrade(Exception):
    """The handshake was answered with this HTTP status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@define
class MemoryLine:
    """Connects without a network."""

    door: Door
    transports: list[MemoryTransport] = field(factory=list)

    @asynccontextmanager
    async def connect(
        self, query: str = "vsn=2.0.0", headers: tuple[tuple[str, str], ...] = (), subprotocols: tuple[str, ...] = ()
    ) -> AsyncIterator[MemoryClient]:
        upgrade = Upgrade("/socket/websocket", query, headers, "192.0.2.1", subprotocols=subprotocols)
        answer = self.door.decide(upgrade)
        if isinstance(answer, Refusal):
            raise RefusedUpgrade(answer.status)
        transport = MemoryTransport(upgrade)
        as_transport: Transport = transport
        transport.owner = await answer.start(as_transport)
        await spawn(transport.watch)
        self.transports.append(transport)
        try:
            yield MemoryClient(transport)
        finally:
            transport.close(1000)


Connect = Callable[..., Any]
