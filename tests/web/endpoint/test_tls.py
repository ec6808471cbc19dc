"""The same endpoint over TLS: what is said, what is refused, and what cannot hold it up."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from websockets.frames import Opcode

from engine.otp import Node, StartFailed
from tests.certificates import self_signed
from tests.web.endpoint.raw import RawClient, connect, request, text, upgrade
from tests.web.endpoint.running import Log, overfill, running, socket_app, until


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return self_signed(tmp_path_factory.mktemp("tls"))


@asynccontextmanager
async def secured(port: int, certificate: str) -> AsyncIterator[RawClient]:
    context = ssl.create_default_context(cafile=certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=context) as stream:
        yield RawClient(stream)


def settings(certificate: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"certificate": certificate[0], "key": certificate[1], **more}


async def test_requests_and_sockets_are_served(node: Node, certificate: tuple[str, str]) -> None:
    log = Log()
    async with running(socket_app(log), **settings(certificate)) as endpoint:
        assert endpoint.urls[0].startswith("https://")
        async with secured(endpoint.port, certificate[0]) as client:
            await client.say(request("/"))
            assert (await client.response()).body == b"alive"
            await client.say(upgrade("/socket"))
            assert (await client.response()).status == 101
            for size in (5, 40_000, 300_000):
                await client.say(text("x" * size))
                assert await client.frame() == (Opcode.TEXT, b"x" * size)
            await client.say(text("push 300"))
            assert await client.frame() == (Opcode.TEXT, b"x" * 300 * 1024)
        await until(lambda: not endpoint.connections)
        assert log.transports[0].upgrade.secure


async def test_a_slow_reader_over_tls_is_closed_without_harm(node: Node, certificate: tuple[str, str]) -> None:
    log = Log()
    async with running(socket_app(log), **settings(certificate, max_outbox=200_000, close_timeout=0.5)) as endpoint:
        async with secured(endpoint.port, certificate[0]) as client:
            await client.say(upgrade("/socket"))
            assert (await client.response()).status == 101
            await until(lambda: log.transports)
            overfill(log.transports[0])
            await until(lambda: not endpoint.connections)
        async with secured(endpoint.port, certificate[0]) as client:
            await client.say(request("/"))
            assert (await client.response()).status == 200


async def test_plain_bytes_and_half_handshakes_are_dropped(node: Node, certificate: tuple[str, str]) -> None:
    async with running(**settings(certificate, write_timeout=0.3)) as endpoint:
        async with connect(endpoint.port) as client:
            await client.say(request("/"))
            await client.rest()
        async with connect(endpoint.port) as client:
            await client.say(b"\x16\x03\x01")
            assert await client.rest() == b""
        assert endpoint.faults.counts == {"tls_handshake_failed": 2}


async def test_a_certificate_that_cannot_be_used_stops_the_start(node: Node) -> None:
    with pytest.raises(StartFailed):
        async with running(certificate="/nowhere.pem", key="/nowhere.pem"):
            pass
