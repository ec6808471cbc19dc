"""An endpoint that runs under a supervisor on a free loopback port, for the length of a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import define, field
from quart_trio import QuartTrio

from engine.otp import NORMAL, GenServer, NoReply, Ok, Pid, Stop, Supervisor, stop
from tests.web.endpoint.apps import make_app
from web.endpoint import Endpoint, EndpointSettings, serve_socket
from web.endpoint.http1 import App
from web.sockets.transport import Accept, Closed, Received, Transport


@define
class Log:
    """What the owners of sockets have been told, in order."""

    news: list[object] = field(factory=list)
    transports: list[Transport] = field(factory=list)
    pids: list[Pid] = field(factory=list)


class EchoSocket(GenServer[Transport]):
    """Says everything back; `crash` and `quit` do what they say, `push N` sends N kilobytes."""

    async def init(self, transport: Transport, log: Log) -> Ok[Transport]:
        self.log = log
        log.transports.append(transport)
        return Ok(transport)

    async def handle_info(self, message: object, state: Transport) -> NoReply[Transport] | Stop:
        self.log.news.append(message)
        if isinstance(message, Closed):
            return Stop(NORMAL)
        if isinstance(message, Received):
            for frame in message.frames:
                self._on_frame(frame, state)
            state.resume()
        return NoReply(state)

    def _on_frame(self, frame: str | bytes, transport: Transport) -> None:
        if frame == "crash":
            raise RuntimeError("the socket's own fault")
        if isinstance(frame, bytes):
            transport.send_binary(frame)
        elif frame.startswith("push "):
            transport.send_text(b"x" * (1024 * int(frame[5:])))
        elif frame.startswith("close "):
            transport.close(int(frame[6:]), "as asked")
        else:
            transport.send_text(frame.encode())


def socket_app(log: Log, **accept: Any) -> QuartTrio:
    """The tests' application, with a route `/socket` that ends in a Socket process."""
    app = make_app()

    async def start_socket(transport: Transport) -> Pid:
        pid = await EchoSocket.start(transport, log)
        log.pids.append(pid)
        return pid

    @app.websocket("/socket")
    async def socket() -> Any:
        return await serve_socket(Accept(start_socket, **accept))

    return app


def overfill(transport: Transport) -> None:
    """Says more than a client that does not read can be kept for; first it is congested, then it is closed."""
    congested = False
    for _ in range(32 * 1024):
        congested = congested or transport.congested
        transport.send_text(b"x" * 1024)
        if transport.closed:
            break
    assert congested
    assert transport.closed


async def lifespan(receive: Any, send: Any) -> None:
    """That part of a plain ASGI application, which has nothing to start or to end."""
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return


@asynccontextmanager
async def running(app: App | None = None, **settings: Any) -> AsyncIterator[Endpoint]:
    endpoint = Endpoint(EndpointSettings(**settings), app or make_app())
    top = await Supervisor.start_link([endpoint.spec()])
    try:
        yield endpoint
    finally:
        await endpoint.drain(0.2)
        await stop(top)


async def until(condition: Callable[[], object]) -> None:
    """For what has no event to wait for, in this process or beyond it."""
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.005)
