"""A client that says exactly the bytes it is told to: the only way to misbehave."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from attrs import define, field
from websockets.frames import Frame, Opcode

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
PATIENCE = 10.0


def request(path: str, *headers: str, method: str = "GET", body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def upgrade(path: str, *headers: str, version: str = "13", key: str = KEY) -> bytes:
    return request(
        path,
        "Upgrade: websocket",
        "Connection: keep-alive, Upgrade",
        f"Sec-WebSocket-Key: {key}",
        f"Sec-WebSocket-Version: {version}",
        *headers,
    )


def text(message: str, fin: bool = True) -> bytes:
    return Frame(Opcode.TEXT, message.encode(), fin).serialize(mask=True)


def binary(data: bytes, fin: bool = True) -> bytes:
    return Frame(Opcode.BINARY, data, fin).serialize(mask=True)


def more(data: bytes, fin: bool = True) -> bytes:
    return Frame(Opcode.CONT, data, fin).serialize(mask=True)


def close(code: int) -> bytes:
    return Frame(Opcode.CLOSE, code.to_bytes(2, "big")).serialize(mask=True)


@define
class Response:
    status: int
    headers: dict[str, str]
    body: bytes = b""


@define
class RawClient:
    stream: trio.abc.Stream
    _read: bytearray = field(factory=bytearray)

    async def say(self, data: bytes) -> None:
        with trio.fail_after(PATIENCE):
            await self.stream.send_all(data)

    async def _more(self) -> None:
        data = await self.stream.receive_some()
        if not data:
            raise EOFError
        self._read += data

    async def _take(self, size: int) -> bytes:
        while len(self._read) < size:
            await self._more()
        taken = bytes(self._read[:size])
        del self._read[:size]
        return taken

    async def response(self, bodyless: bool = False) -> Response:
        """The next response, whole. Raises EOFError when there is none."""
        with trio.fail_after(PATIENCE):
            while b"\r\n\r\n" not in self._read:
                await self._more()
            head, _, rest = bytes(self._read).partition(b"\r\n\r\n")
            self._read[:] = rest
            lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            body = b"" if bodyless else await self._take(int(headers.get("content-length", 0)))
            return Response(int(lines[0].split()[1]), headers, body)

    async def frame(self) -> tuple[int, bytes]:
        """The next frame's opcode and payload. Raises EOFError when the server is gone."""
        with trio.fail_after(PATIENCE):
            first, length = await self._take(2)
            if length >= 126:
                length = int.from_bytes(await self._take(2 if length == 126 else 8), "big")
            return first & 0x0F, await self._take(length)

    async def close_code(self) -> int:
        """Reads on until the close frame; 1006 when the connection ends without one."""
        try:
            while True:
                opcode, payload = await self.frame()
                if opcode == Opcode.CLOSE:
                    return int.from_bytes(payload[:2], "big")
        except (EOFError, trio.BrokenResourceError):
            return 1006

    async def rest(self) -> bytes:
        """Everything until the server closes; a reset counts as the end."""
        with trio.fail_after(PATIENCE):
            try:
                while True:
                    await self._more()
            except (EOFError, trio.BrokenResourceError):
                taken, self._read = bytes(self._read), bytearray()
                return taken


@asynccontextmanager
async def connect(port: int, receive_buffer: int = 0) -> AsyncIterator[RawClient]:
    """A connection; with `receive_buffer` (bytes) its kernel takes little on its behalf."""
    sock = trio.socket.socket()
    if receive_buffer:
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_buffer)
    await sock.connect(("127.0.0.1", port))
    async with trio.SocketStream(sock) as stream:
        yield RawClient(stream)


@asynccontextmanager
async def websocket(port: int, path: str, *headers: str, receive_buffer: int = 0) -> AsyncIterator[RawClient]:
    async with connect(port, receive_buffer) as client:
        await client.say(upgrade(path, *headers))
        response = await client.response()
        assert response.status == 101, response
        yield client


async def get(port: int, path: str = "/") -> Response:
    async with connect(port) as client:
        await client.say(request(path))
        return await client.response()
