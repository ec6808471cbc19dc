"""The socket client of load, chaos and the tests: what a server that dies does to it."""

from __future__ import annotations

import pytest
import trio
from trio_websocket import ConnectionTimeout

from scripts import client


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 101 Switch"], ids=["nothing", "half an answer"])
async def test_a_server_that_dies_in_the_handshake_is_given_up_in_time(
    said: bytes, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library under the client does not see that the line is closed before the handshake's answer was whole."""

    async def die(stream: trio.SocketStream) -> None:
        await stream.receive_some(4096)
        await stream.send_all(said)
        await stream.aclose()

    monkeypatch.setattr(client, "CONNECT_WITHIN", 0.3)
    listener, *_ = await nursery.start(trio.serve_tcp, die, 0)
    port = listener.socket.getsockname()[1]
    with trio.fail_after(10), pytest.raises(ConnectionTimeout):
        async with client.connect(f"http://127.0.0.1:{port}"):
            pass
