"""One client's bytes: a non-blocking socket, with or without TLS, that is tried first and waited for second.

`recv` and `send` never wait; `readable` and `writable` do, and can be cancelled at any time without losing a byte.
That is why this is no trio stream: a WebSocket's frames are written by whoever has them, from plain functions.
Imports the TLS handshake of `engine.http`.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable

import trio

from engine.http.wire import handshake

NOT_SENT_LOW_WATER = 128 * 1024
"""Bytes the kernel may hold unsent: a client that does not read is felt here, not megabytes later."""
CHUNK = 64 * 1024


class Wire:
    """Owns the socket. `gone` is called once, when it is closed."""

    __slots__ = ("_gone", "client", "sock")

    def __init__(self, sock: socket.socket, client: str, gone: Callable[[str], None]) -> None:
        self.sock = sock
        self.client = client
        self._gone: Callable[[str], None] | None = gone

    def tune(self) -> None:
        """No waiting for more to send, and an early word from the kernel when the client falls behind."""
        self.sock.setblocking(False)
        with contextlib.suppress(OSError):  # the client may be gone already; the first read will tell
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT_LOW_WATER)

    async def secure(self, context: ssl.SSLContext) -> None:
        """The TLS handshake. Raises OSError (ssl.SSLError) when it fails; the caller bounds its time."""
        secured = context.wrap_socket(self.sock, server_side=True, do_handshake_on_connect=False)
        self.sock = secured
        await handshake(secured)

    @property
    def secured(self) -> bool:
        return isinstance(self.sock, ssl.SSLSocket)

    def fileno(self) -> int:
        return self.sock.fileno()

    def recv(self, limit: int = CHUNK) -> bytes | None:
        """What has arrived; empty at the end of the stream, None when there is nothing yet. Raises OSError."""
        try:
            return self.sock.recv(limit)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None

    def send(self, data: bytes | memoryview) -> int:
        """How many of these bytes the kernel took now. Over TLS the rest must be offered again. Raises OSError."""
        try:
            return self.sock.send(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0

    async def read(self) -> bytes:
        """Waits for bytes; empty at the end of the stream. Raises OSError."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while (data := self.recv()) is None:
            await trio.lowlevel.wait_readable(self.sock)
        return data

    async def write(self, data: bytes, patience: float) -> None:
        """Sends all of it. Raises trio.TooSlowError when the client takes nothing for `patience` seconds; OSError."""
        await trio.lowlevel.checkpoint_if_cancelled()
        rest = memoryview(data)[self.send(data) :]
        while rest:
            with trio.fail_after(patience):
                await trio.lowlevel.wait_writable(self.sock)
            rest = rest[self.send(rest) :]

    def end(self) -> None:
        """Says that nothing more will be sent; the client may still speak."""
        with contextlib.suppress(OSError):  # gone already
            self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Closes at once. Idempotent."""
        gone, self._gone = self._gone, None
        if gone is None:
            return
        trio.lowlevel.notify_closing(self.sock)
        self.sock.close()
        gone(self.client)
