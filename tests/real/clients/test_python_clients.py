"""Two clients from PyPI, each in an environment of its own: a strict V2 listener and a plain V1 client."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.real.clients.clients import HERE, Phoenix, python_with
from tests.web.sockets.server import Server, open_server
from web.auth import AuthSettings
from web.auth.settings import parse_tokens

pytestmark = pytest.mark.real


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with open_server("stream", auth=AuthSettings(tokens=parse_tokens("s3cret=ada"))) as running:
        yield running


@asynccontextmanager
async def program(package: str, script: str, *arguments: str) -> AsyncIterator[Phoenix]:
    """A client's program, of which only what it tells is read."""
    command = [str(python_with(package)), "-I", str(HERE / script), *arguments]
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        client = Phoenix(process)
        nursery.start_soon(client.read)
        try:
            yield client
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def listener(server: Server, token: str = "s3cret") -> AsyncIterator[Phoenix]:
    url = f"{server.line.url}/socket/websocket"
    async with program("phoenix-channels-python-client==0.4.1", "receiver.py", url, token, "room:1") as client:
        yield client


async def shout(server: Server, payload: dict[str, int]) -> None:
    async with server.connect("vsn=2.0.0&token=s3cret") as client:
        await client.send(["1", "1", "room:1", "phx_join", {}])
        await client.receive()
        await client.send(["1", "2", "room:1", "shout_others", payload])
        await client.receive()


async def test_a_strict_listener_hears_broadcasts_for_they_carry_its_join_ref(server: Server) -> None:
    async with listener(server) as client:
        await client.wait_for("joined")
        await shout(server, {"n": 1})
        assert (await client.wait_for("event", event="shouted"))["payload"] == {"n": 1}


async def test_it_comes_back_after_a_crash_of_the_channel_and_after_a_disconnect(server: Server) -> None:
    async with listener(server) as client:
        await client.wait_for("joined")
        server.room.log.lines.clear()
        server.kill_channels("room:1")
        await server.room.log.wait_for("joined", "room:1")
        assert server.roster.disconnect("users:ada") == 1
        await client.wait_for("reconnect")
        await shout(server, {"n": 2})
        await client.wait_for("event", event="shouted", payload={"n": 2})


async def test_a_wrong_token_is_final(server: Server) -> None:
    async with listener(server, token="wrong") as client:
        assert (await client.wait_for("failed"))["error"] == "PHXConnectionError"


async def test_case_60_a_v1_client_with_integer_refs() -> None:
    async with open_server("stream") as server:
        url = f"{server.line.url}/socket/websocket"
        await v1_client(url)


async def v1_client(url: str) -> None:
    async with program("phxsocket==0.1.5", "phxsocket_v1.py", url, "room:1") as client:
        assert (await client.wait_for("joined"))["response"] == {"n": 1}
        assert await client.wait_for("reply") == {"on": "reply", "status": "ok", "response": {"é": 2}}
        assert (await client.wait_for("event"))["payload"] == {"n": 3}
        await client.wait_for("closed")
