"""A raw HTTP/1.1 server on trio for the fakes: one request a connection, unless told, and every chance to misbehave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import h11
import trio
from attrs import define, frozen

Content = bytes


@frozen
class Request:
    """`headers` in lower case; `target` as it came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@define(eq=False)
class Reply:
    """The way back: a whole answer, or a stream of pieces. Returning without an answer drops the connection."""

    _conn: h11.Connection
    _stream: trio.SocketStream
    keep: bool = False
    """Whether the connection may carry another request."""

    async def whole(self, status: int, headers: dict[str, str], content: bytes) -> None:
        every = {"content-type": "application/json", **headers, "content-length": str(len(content))}
        await self.begin(status, every)
        await self.piece(content)
        await self.end()

    async def begin(self, status: int, headers: dict[str, str]) -> None:
        fields = list((headers if self.keep else {**headers, "connection": "close"}).items())
        await self._stream.send_all(self._conn.send(h11.Response(status_code=status, headers=fields)) or b"")

    async def piece(self, data: bytes) -> None:
        await self._stream.send_all(self._conn.send(h11.Data(data=data)) or b"")

    async def cut(self, data: bytes) -> None:
        """A part of what was announced; the connection is dropped after it."""
        await self._stream.send_all(data)

    async def end(self) -> None:
        await self._stream.send_all(self._conn.send(h11.EndOfMessage()) or b"")

    async def gone(self) -> None:
        """Waits until the client has closed its end."""
        try:
            while await self._stream.receive_some(1024):
                pass
        except trio.BrokenResourceError:
            return

    @property
    def connection(self) -> object:
        """The same for requests that came on the same connection."""
        return self._stream


Handler = Callable[[Request, Reply], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler, keep: bool = False) -> AsyncIterator[tuple[str, trio.Nursery]]:
    """Serves on a free port of loopback for the length of the block: its URL, and a nursery that ends with it."""

    async def connection(stream: trio.SocketStream) -> None:
        conn = h11.Connection(h11.SERVER)
        try:
            await handler(await _request(conn, stream), Reply(conn, stream, keep))
            while keep and conn.states == {h11.SERVER: h11.DONE, h11.CLIENT: h11.DONE}:
                conn.start_next_cycle()
                await handler(await _request(conn, stream), Reply(conn, stream, keep))
        except (h11.RemoteProtocolError, trio.BrokenResourceError):
            return
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, connection, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}", nursery
        nursery.cancel_scope.cancel()


async def _request(conn: h11.Connection, stream: trio.SocketStream) -> Request:
    request, body = None, b""
    while True:
        event = conn.next_event()
        if event is h11.NEED_DATA:
            conn.receive_data(await stream.receive_some(65536))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert request is not None
            headers = {name.decode(): value.decode() for name, value in request.headers}
            return Request(request.method.decode(), request.target.decode(), headers, body)
        else:
            raise h11.RemoteProtocolError("gone")
