"""A lean HTTP/1.1 client for load tests: a fixed set of kept-alive connections, one request at a time on each.

General clients spend more CPU on a request than the server under test does, and would be measured in its place.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import h11
import trio
from attrs import define


@define(eq=False)
class Connection:
    """One connection; opened again when the server has closed it."""

    host: str
    port: int
    headers: list[tuple[str, str]]
    _stream: trio.SocketStream | None = None
    _conn: h11.Connection | None = None

    async def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Sends a request; the status and the body of its answer. Raises OSError or trio.BrokenResourceError."""
        if self._stream is None or self._conn is None:
            self._stream = await trio.open_tcp_stream(self.host, self.port)
            self._conn = h11.Connection(h11.CLIENT)
        try:
            return await self._exchange(self._stream, self._conn, method, path, body)
        except BaseException:
            await self.aclose()
            raise

    async def _exchange(
        self, stream: trio.SocketStream, conn: h11.Connection, method: str, path: str, body: bytes
    ) -> tuple[int, bytes]:
        headers = [*self.headers, ("content-length", str(len(body)))]
        out = conn.send(h11.Request(method=method, target=path, headers=headers)) or b""
        out += conn.send(h11.Data(data=body)) or b""
        await stream.send_all(out + (conn.send(h11.EndOfMessage()) or b""))
        status, answer = 0, b""
        while True:
            event = conn.next_event()
            if event is h11.NEED_DATA:
                conn.receive_data(await stream.receive_some(65536))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                answer += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                raise trio.BrokenResourceError("the server closed the connection")
        if conn.our_state is h11.MUST_CLOSE or conn.their_state is h11.MUST_CLOSE:
            await self.aclose()
        else:
            conn.start_next_cycle()
        return status, answer

    async def aclose(self) -> None:
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)
        self._stream = self._conn = None


@define(eq=False)
class HttpClient:
    """As many requests at once as there are connections; the others wait for their turn."""

    _free: trio.MemorySendChannel[Connection]
    _next: trio.MemoryReceiveChannel[Connection]

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Posts JSON; the status and the decoded answer."""
        return await self._request("POST", path, json.dumps(body).encode())

    async def get(self, path: str) -> tuple[int, Any]:
        return await self._request("GET", path, b"")

    async def _request(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        connection = await self._next.receive()
        try:
            status, answer = await connection.request(method, path, body)
        finally:
            self._free.send_nowait(connection)
        return status, json.loads(answer) if answer else None


@asynccontextmanager
async def http_client(url: str, connections: int, token: str = "") -> AsyncIterator[HttpClient]:
    """A client of the server at `url` (http://host:port)."""
    parts = urlsplit(url)
    headers = [("host", parts.netloc), ("content-type", "application/json")]
    if token:
        headers.append(("authorization", f"Bearer {token}"))
    free, following = trio.open_memory_channel[Connection](math.inf)
    every = [Connection(parts.hostname or "", parts.port or 80, headers) for _ in range(connections)]
    for connection in every:
        free.send_nowait(connection)
    try:
        yield HttpClient(free, following)
    finally:
        with trio.CancelScope(shield=True):
            for connection in every:
                await connection.aclose()
