"""What a Socket process and the WebSocket under it say to each other; the same over every kind of connection.

Two implementations, both in `web.endpoint`: `stream` (our own data path, after the upgrade) and `asgi` (any ASGI
server). Pure declarations; may import `engine.otp`.

A transport belongs to one process, its owner, and talks to it in messages (they arrive at `handle_info`):

    Received(frames)   one or more whole messages, in order. Nothing more is read until the owner calls `resume()`,
                       so a slow owner slows its own client only, and memory stays bounded
    Writable()         the outbox has fallen below its low-water mark after having been `congested`
    Closed(code, …)    the end, exactly once, whoever closed; nothing can be sent any more

An owner that ends without having closed its transport leaves the client a close code of 1011.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import Protocol

from attrs import field, frozen

from engine.otp import Pid


class CloseCode(IntEnum):
    """The codes that this server sends (RFC 6455 7.4). Never 1000: many clients do not come back after it."""

    GOING_AWAY = 1001
    """Disconnected by socket id, token expired, or idle."""
    PROTOCOL_ERROR = 1002
    INVALID_DATA = 1007
    TOO_BIG = 1009
    CRASHED = 1011
    RESTART = 1012
    TRY_LATER = 1013
    """The client reads more slowly than its outbox allows, or the server is short of memory."""


@frozen
class Received:
    """Whole messages from the client: `str` for text (valid UTF-8), `bytes` for binary."""

    frames: tuple[str | bytes, ...]


@frozen
class Writable:
    """A transport that was congested has room again."""


@frozen
class Closed:
    """The connection is over. `code` is what the client sent, or what was sent to it; 1006 when nothing was."""

    code: int
    reason: str = ""


News = Received | Writable | Closed


@frozen
class Upgrade:
    """The request that asked for the WebSocket. Header names are in lower case; values as they came, latin-1."""

    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    client: str
    """The client's address, without port; empty when unknown."""
    secure: bool = False
    subprotocols: tuple[str, ...] = ()

    def header(self, name: str) -> str | None:
        """The first header of this (lower-case) name."""
        return next((value for key, value in self.headers if key == name), None)


class Transport(Protocol):
    """An accepted WebSocket. Every method is synchronous and never waits; call them from the loop's thread."""

    @property
    def upgrade(self) -> Upgrade: ...

    @property
    def congested(self) -> bool:
        """Whether the outbox is above its high-water mark: keep what may be lost or joined until `Writable`."""
        ...

    @property
    def closed(self) -> bool:
        """Whether it is closing or gone; what is sent now goes nowhere, without an error."""
        ...

    def send_text(self, utf8: bytes) -> None:
        """Queues a text message, given as UTF-8. Above the outbox's limit the connection is closed (1013)."""
        ...

    def send_binary(self, data: bytes) -> None:
        """Queues a binary message, as `send_text`."""
        ...

    def flush(self) -> None:
        """Writes now what is queued, as far as the kernel takes it, rather than at the end of the loop's turn: for an
        answer that somebody waits for. A hint; transports that cannot do so without waiting ignore it."""
        ...

    def resume(self) -> None:
        """The owner has dealt with the last `Received` and takes more."""
        ...

    def close(self, code: int, reason: str = "") -> None:
        """Sends what is queued, then a close frame (`reason`: at most 123 bytes of UTF-8). Idempotent."""
        ...


StartSocket = Callable[[Transport], Awaitable[Pid]]
"""Starts the Socket process of an accepted connection and returns when its `init` is done. The transport is then
given to that process: it is monitored, and reading begins. `init` may already send."""


@frozen
class Accept:
    """The handshake's decision to let a client in.

    `user` counts towards the limit of sockets a user; `socket_id` (as `users:<id>`) is the name by which sockets are
    disconnected together; at `expires_at` (Unix time) the socket is closed with 1001.
    """

    start: StartSocket = field(repr=False)
    subprotocol: str | None = None
    user: str | None = None
    socket_id: str | None = None
    expires_at: float | None = None
