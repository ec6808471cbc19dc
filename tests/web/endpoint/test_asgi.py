"""The same Socket process over other servers: stock hypercorn, and plain ASGI WebSockets on this endpoint."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from hypercorn.trio import serve
from quart_trio import QuartTrio
from websockets.frames import Opcode

from engine.otp import KILL, Node, Pid, exit
from tests.web.endpoint.apps import make_app, stock_config
from tests.web.endpoint.raw import binary, close, connect, text, upgrade, websocket
from tests.web.endpoint.running import EchoSocket, Log, overfill, running, until
from web.endpoint import EndpointSettings, Roster, serve_socket
from web.sockets.transport import Accept, Closed, Transport

KIB = 1024


@asynccontextmanager
async def stock(app: QuartTrio) -> AsyncIterator[int]:
    """Stock hypercorn in this process; its port."""
    async with trio.open_nursery() as nursery:
        config = stock_config()
        config.websocket_ping_interval = None
        binds = await nursery.start(partial(serve, app, config, shutdown_trigger=trio.sleep_forever))  # type: ignore[arg-type]
        yield int(binds[0].rpartition(":")[2])
        nursery.cancel_scope.cancel()


def app_on_stock(log: Log, roster: Roster, accept: dict[str, Any], settings: dict[str, Any]) -> QuartTrio:
    app = make_app()

    async def start_socket(transport: Transport) -> Pid:
        log.pids.append(await EchoSocket.start(transport, log))
        return log.pids[-1]

    @app.websocket("/socket")
    async def socket() -> Any:
        return await serve_socket(Accept(start_socket, **accept), roster, EndpointSettings(**settings))

    return app


@pytest.fixture
def log() -> Log:
    return Log()


@asynccontextmanager
async def socket_on_stock(log: Log, roster: Roster, accept: Any = None, **settings: Any) -> AsyncIterator[Any]:
    app = app_on_stock(log, roster, accept or {}, settings)
    async with stock(app) as port, websocket(port, "/socket") as client:
        yield client


async def test_text_binary_and_emptiness_come_back_as_they_went(node: Node, log: Log) -> None:
    """Quart makes None of an empty binary message; the owner hears what was said."""
    async with socket_on_stock(log, Roster()) as client:
        await client.say(text("hello"))
        assert await client.frame() == (Opcode.TEXT, b"hello")
        for data in (b"\x00\xff", b""):
            await client.say(binary(data))
            assert await client.frame() == (Opcode.BINARY, data)


async def test_the_client_leaving_is_heard_once(node: Node, log: Log) -> None:
    roster = Roster()
    async with socket_on_stock(log, roster) as client:
        await until(lambda: len(roster) == 1)
        await client.say(close(1000))
        await until(lambda: not len(roster))
        assert [type(news) for news in log.news] == [Closed]


@pytest.mark.parametrize("how", ["crash", "kill"])
async def test_a_socket_process_that_dies_leaves_1011(node: Node, log: Log, how: str) -> None:
    async with socket_on_stock(log, Roster()) as client:
        if how == "crash":
            await client.say(text("crash"))
        else:
            await until(lambda: log.pids)
            exit(log.pids[0], KILL)
        assert await client.close_code() == 1011


async def test_the_owner_closes_with_its_own_code_after_what_it_had_said(node: Node, log: Log) -> None:
    async with socket_on_stock(log, Roster()) as client:
        await client.say(text("first"))
        assert await client.frame() == (Opcode.TEXT, b"first")
        await client.say(text("close 4001"))
        assert await client.close_code() == 4001


async def test_disconnecting_draining_idleness_and_expiry_have_the_same_codes(node: Node, log: Log) -> None:
    roster = Roster()
    async with socket_on_stock(log, roster, {"socket_id": "users:ann"}) as client:
        await until(lambda: len(roster) == 1)
        roster.disconnect("users:ann")
        assert await client.close_code() == 1001
    async with socket_on_stock(log, roster, idle_timeout=0.2) as client:
        assert await client.close_code() == 1001
    async with socket_on_stock(log, roster, {"expires_at": time.time() + 0.2}) as client:
        assert await client.close_code() == 1001
    async with socket_on_stock(log, roster) as client:
        await until(lambda: len(roster) == 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(roster.drain, 1.0)
            assert await client.close_code() == 1012


async def test_a_client_that_does_not_read_is_closed(node: Node, log: Log) -> None:
    async with socket_on_stock(log, Roster(), max_outbox=256 * KIB, high_water=32 * KIB):
        await until(lambda: log.transports)
        transport = log.transports[0]
        overfill(transport)
        await until(lambda: log.news)
        assert log.news == [Closed(1013, "too slow")]


async def test_a_full_roster_refuses_before_the_handshake(node: Node, log: Log) -> None:
    roster = Roster(max_per_user=1)
    app = app_on_stock(log, roster, {"user": "ann"}, {})
    async with stock(app) as port, websocket(port, "/socket"), connect(port) as second:
        await second.say(upgrade("/socket"))
        assert (await second.response()).status == 429


# --- plain ASGI WebSockets on this endpoint --------------------------------------------------------


async def test_a_plain_websocket_works_and_ends_with_1011_never_1000(node: Node) -> None:
    async with running() as endpoint:
        async with websocket(endpoint.port, "/echo") as client:
            await client.say(text("hello") + binary(b"there"))
            assert [await client.frame(), await client.frame()] == [(Opcode.TEXT, b"hello"), (Opcode.BINARY, b"there")]
        async with websocket(endpoint.port, "/crash") as client:
            assert await client.close_code() == 1011
        await until(lambda: not endpoint.connections)


async def test_a_plain_websocket_is_drained_and_bounded_like_any_other(node: Node) -> None:
    async with running(max_message=1000) as endpoint:
        async with websocket(endpoint.port, "/echo") as client:
            await client.say(text("x" * 2000))
            assert await client.close_code() == 1009
        async with websocket(endpoint.port, "/echo") as client, trio.open_nursery() as nursery:
            await until(lambda: len(endpoint.roster) == 1)
            nursery.start_soon(endpoint.drain, 1.0)
            assert await client.close_code() == 1012
