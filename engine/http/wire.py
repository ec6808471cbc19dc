"""The bytes of one connection to a server: a non-blocking socket, perhaps with TLS; tried first and waited for second.

Imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import socket
import ssl

import trio

CHUNK = 65_536
"""Bytes that are read at once: about what the kernel keeps of a stream that is not read for a while."""


class Wire:
    """Owns the socket. Every wait can be cancelled; the owner bounds it, and closes the wire when one was cut short."""

    __slots__ = ("_sock",)

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def secure(self, context: ssl.SSLContext, hostname: str) -> None:
        """The TLS handshake. Raises OSError (ssl.SSLError) when it fails."""
        secured = context.wrap_socket(self._sock, server_hostname=hostname, do_handshake_on_connect=False)
        self._sock = secured
        await handshake(secured)

    def receive(self) -> bytes | None:
        """All that has arrived, up to about CHUNK; empty at the end, None when there is nothing yet. Raises OSError."""
        data = self._receive(CHUNK)
        if not data or not isinstance(self._sock, ssl.SSLSocket):
            return data
        pieces, size = [data], len(data)  # TLS gives a record at a time, and servers write a record a token
        while size < CHUNK and (more := self._receive(CHUNK)):
            pieces.append(more)
            size += len(more)
        return b"".join(pieces) if len(pieces) > 1 else data  # an end is heard again at the next call

    def _receive(self, limit: int) -> bytes | None:
        try:
            return self._sock.recv(limit)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None

    async def read(self) -> bytes:
        """Waits for bytes; empty at the end. Raises OSError."""
        while (data := self.receive()) is None:
            await trio.lowlevel.wait_readable(self._sock)
        return data

    async def write(self, data: bytes) -> None:
        """Sends all of it. Raises OSError."""
        await trio.lowlevel.checkpoint_if_cancelled()
        rest = memoryview(data)
        while rest := rest[self._send(rest) :]:
            await trio.lowlevel.wait_writable(self._sock)

    def _send(self, data: memoryview) -> int:
        try:
            return self._sock.send(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0

    @property
    def quiet(self) -> bool:
        """Whether the connection stands and nothing has come on it unasked: it may be used again."""
        try:
            return self.receive() is None
        except OSError:
            return False

    def close(self) -> None:
        """Closes at once, without a word of TLS. Idempotent."""
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            with contextlib.suppress(OSError):
                self._sock.close()


async def dial(host: str, port: int, context: ssl.SSLContext | None, hostname: str | None = None) -> Wire:
    """A connection to a server, through TLS when there is a context; `hostname` where the certificate has another name.

    Raises:
        OSError: nobody answers there, or not with a certificate that we trust.
    """
    stream = await trio.open_tcp_stream(host, port)
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    wire = Wire(sock)
    try:
        if context is not None:
            await wire.secure(context, hostname or host)
    except BaseException:
        wire.close()
        raise
    return wire


async def handshake(secured: ssl.SSLSocket) -> None:
    """The TLS handshake of either side on a non-blocking socket. Raises OSError (ssl.SSLError) when it fails."""
    while True:
        try:
            return secured.do_handshake()
        except ssl.SSLWantReadError:
            await trio.lowlevel.wait_readable(secured)
        except ssl.SSLWantWriteError:
            await trio.lowlevel.wait_writable(secured)
