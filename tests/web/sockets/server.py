"""Servers for the protocol's tests: the whole machinery of sockets over a small application, one for each line."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import hypercorn.trio
import pytest
import trio
from attrs import define, field
from hypercorn.config import Config
from quart_trio import QuartTrio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, connect_websocket_url

from engine.otp import KILL, DynamicSupervisor, Node, Supervisor, current_node, exit
from tests.web.sockets.lines import PATIENCE, MemoryLine, RefusedUpgrade, encoded
from tests.web.sockets.rooms import Room, rooms
from web.auth import AuthSettings, Guard, OriginPolicy
from web.endpoint import Endpoint, EndpointSettings, Roster
from web.endpoint.faults import FaultLog
from web.sockets.door import Door
from web.sockets.longpoll import LongPolls
from web.sockets.mount import mount, mount_longpoll
from web.sockets.presence import Presence
from web.sockets.pubsub import PubSub
from web.sockets.socket import Protocol

LINES = ("memory", "stream", "asgi")


@define
class RealClient:
    """trio-websocket's client, with the tests' manners."""

    ws: WebSocketConnection

    async def send(self, frame: Any) -> None:
        await self.ws.send_message(encoded(frame))

    async def receive(self) -> Any:
        with trio.fail_after(PATIENCE):
            message = await self.ws.get_message()
        return json.loads(message) if isinstance(message, str) else message

    async def closed(self) -> int:
        with trio.fail_after(PATIENCE), pytest.raises(ConnectionClosed) as end:
            await self.ws.get_message()
        assert end.value.reason is not None
        return int(end.value.reason.code)

    async def close(self) -> None:
        await self.ws.aclose(1000)


@define
class RealLine:
    """Connects over a socket of the operating system."""

    url: str

    @asynccontextmanager
    async def connect(
        self,
        query: str = "vsn=2.0.0",
        headers: tuple[tuple[str, str], ...] = (),
        subprotocols: tuple[str, ...] = (),
        path: str = "/socket/websocket",
    ) -> AsyncIterator[RealClient]:
        extra = [(name.encode(), value.encode()) for name, value in headers]
        status = 0
        try:
            async with trio.open_nursery() as nursery:
                ws = await connect_websocket_url(
                    nursery, f"{self.url}{path}?{query}", subprotocols=subprotocols or None, extra_headers=extra
                )
                try:
                    yield RealClient(ws)
                finally:
                    await ws.aclose(1001)
                    await ws._stream.aclose()  # when the server was first to close, nobody else does
                    nursery.cancel_scope.cancel()
        except* ConnectionRejected as refusal:
            status = _first(refusal).status_code
        if status:
            raise RefusedUpgrade(status)


def _first(group: BaseExceptionGroup[ConnectionRejected]) -> ConnectionRejected:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ConnectionRejected)
    return error


@define
class Server:
    """A running server, and what tests want to know of its inside."""

    line: Any
    door: Door
    room: type[Room]
    roster: Roster
    connect: Callable[..., Any] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.connect = self.line.connect

    @property
    def faults(self) -> FaultLog:
        return self.door.protocol.faults

    def processes(self, kind: str) -> list[Any]:
        return [process for process in current_node().table.values() if process.blueprint.kind == kind]

    @property
    def joined(self) -> int:
        return len(self.processes("ChannelServer"))

    async def all_gone(self, kind: str = "ChannelServer") -> None:
        """Waits for the end of every process of this kind."""
        with trio.fail_after(PATIENCE):
            for process in self.processes(kind):
                ended = trio.Event()
                process.watch(ended, lambda reason, ended=ended: ended.set())
                if not process.dead:
                    await ended.wait()

    async def kill_sockets(self, reason: object = KILL) -> None:
        for process in self.processes("Socket"):
            exit(process.pid, reason)

    def kill_channels(self, topic: str) -> None:
        for process in self.processes("ChannelServer"):
            if process.state.topic == topic:
                exit(process.pid, KILL)


def quiet(report: object) -> None:
    """Crash reports of channels that were told to crash are no news."""
    logging.getLogger("tests").debug("%r", report)


@asynccontextmanager
async def open_server(
    line: str,
    *,
    settings: EndpointSettings | None = None,
    auth: AuthSettings | None = None,
    window: float = 10.0,
    **protocol: Any,
) -> AsyncIterator[Server]:
    pubsub, faults = PubSub(), FaultLog()
    presence = Presence(pubsub)
    router, room = rooms(presence)
    options = {name: protocol.pop(name) for name in ("origins", "spoken", "admit") if name in protocol}
    options.setdefault("origins", OriginPolicy())
    guard = Guard.open(auth or AuthSettings())
    door = Door(Protocol(router, faults=faults, **protocol), pubsub, guard, faults=faults, **options)
    settings = settings or EndpointSettings()
    app = QuartTrio("rooms")
    roster = Roster(settings.max_per_user)
    mount(app, "/socket", door, roster, settings)
    mount(app, "/of/<tenant>/custom", door, roster, settings)
    polls = LongPolls(door, roster, window)
    mount_longpoll(app, "/socket", polls)
    endpoint = Endpoint(settings, app, roster)
    sockets = DynamicSupervisor.spec(id="sockets", name="sockets")
    children = [pubsub.spec(), presence.spec(), sockets, polls.spec()]
    if line == "stream":
        children.append(endpoint.spec())
    async with Node.open(report=quiet), trio.open_nursery() as nursery:
        await Supervisor.start_link(children)
        if line == "memory":
            yield Server(MemoryLine(door), door, room, roster)
        elif line == "stream":
            yield Server(RealLine(endpoint.urls[0].replace("http", "ws")), door, room, roster)
        else:
            url = await nursery.start(_serve_plainly, app)
            yield Server(RealLine(url), door, room, roster)
        nursery.cancel_scope.cancel()


async def _serve_plainly(app: QuartTrio, task_status: trio.TaskStatus[str]) -> None:
    """Stock hypercorn, which knows nothing of our data path."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"ws://127.0.0.1:{listener.getsockname()[1]}"
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]  # hypercorn closes it
    config.accesslog = config.errorlog = None
    config.graceful_timeout = 0.1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hypercorn.trio.serve, app, config)
        task_status.started(url)
