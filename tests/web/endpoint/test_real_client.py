"""A client library that is not ours, with everything it does by itself: compression offered, fragments, pings."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from websockets.trio.client import connect

from engine.otp import Node
from tests.web.endpoint.running import Log, running, socket_app, until
from web.sockets.transport import Closed


@pytest.mark.parametrize("compression", [False, True])
async def test_a_client_library_is_served_with_and_without_compression(node: Node, compression: bool) -> None:
    async def in_parts() -> AsyncIterator[str]:
        for n in range(5):
            yield f"part {n} "

    log = Log()
    async with running(socket_app(log), compression=compression) as endpoint:
        async with connect(endpoint.urls[0].replace("http", "ws") + "/socket") as client:
            assert bool(client.protocol.extensions) is compression
            for message in ("hello", "", "x" * 100_000, b"\x00\x01", b""):
                await client.send(message)
                assert await client.recv() == message
            await client.send(in_parts())
            assert await client.recv() == "part 0 part 1 part 2 part 3 part 4 "
        await until(lambda: log.news and isinstance(log.news[-1], Closed))
        assert log.news[-1] == Closed(1000)
        assert endpoint.faults.counts == {}
