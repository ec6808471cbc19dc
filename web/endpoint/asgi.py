"""The transport of a Socket process over a plain ASGI WebSocket, on any server: slower, and the same to its owner.

One task reads and one writes; both end with the route that called `pump`. May import `engine.otp` and this package.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Protocol

import trio

from engine.otp import ChildError, Down, Exit, Pid, StartFailed, monitor, receive, send, spawn
from web.endpoint.roster import Roster
from web.endpoint.settings import EndpointSettings
from web.endpoint.stream import ABNORMAL
from web.sockets.transport import Accept, CloseCode, Closed, News, Received, Upgrade, Writable


class PlainWebSocket(Protocol):
    """What is needed of Quart's `websocket`."""

    async def accept(self, headers: Any = None, subprotocol: str | None = None) -> None: ...

    async def receive(self) -> str | bytes | None: ...

    async def send(self, data: Any) -> None: ...

    async def close(self, code: int, reason: str = "") -> None: ...


class AsgiTransport:
    """See `web.sockets.transport.Transport`."""

    def __init__(self, upgrade: Upgrade, accept: Accept, settings: EndpointSettings) -> None:
        self.upgrade = upgrade
        self.accept = accept
        self._settings = settings
        self._outbox: deque[str | bytes] = deque()
        self._queued = 0
        self._strained = False
        self._work = trio.Event()  # for the writer
        self._resumed = trio.Event()  # for the reader
        self._closed: Closed | None = None
        self._told = False
        self._owner: Pid | None = None
        self._life = trio.CancelScope()

    # --- Transport -----------------------------------------------------------------------------------

    @property
    def congested(self) -> bool:
        return self._strained

    @property
    def closed(self) -> bool:
        return self._closed is not None

    def send_text(self, utf8: bytes) -> None:
        self._put(utf8.decode(), len(utf8))

    def send_binary(self, data: bytes) -> None:
        self._put(data, len(data))

    def flush(self) -> None:
        """Its writer is a task of its own: nothing can be written from here."""

    def resume(self) -> None:
        self._resumed.set()

    def close(self, code: int, reason: str = "") -> None:
        if self._closed is None:
            self._end(Closed(code, reason))

    # --- the owner -----------------------------------------------------------------------------------

    def give_to(self, owner: Pid) -> None:
        self._owner = owner
        if self._closed is not None:
            self._tell_end(self._closed)

    def owner_ended(self) -> None:
        self.close(CloseCode.CRASHED)

    def abort(self) -> None:
        """Ends the connection now, without a word."""
        self._end(Closed(ABNORMAL))
        self._life.cancel()

    def _end(self, closed: Closed) -> None:
        self._closed = self._closed or closed
        self._work.set()
        self._tell_end(self._closed)

    def _tell_end(self, closed: Closed) -> None:
        if self._owner is not None and not self._told:
            self._told = True
            send(self._owner, closed)

    def _tell(self, news: News) -> None:
        if self._owner is not None and self._closed is None:
            send(self._owner, news)

    # --- out -----------------------------------------------------------------------------------------

    def _put(self, message: str | bytes, size: int) -> None:
        if self._closed is not None:
            return
        self._outbox.append(message)
        self._queued += size
        self._strained = self._strained or self._queued > self._settings.high_water
        self._work.set()
        if self._settings.max_outbox and self._queued > self._settings.max_outbox:
            self._outbox.clear()
            self.close(CloseCode.TRY_LATER, "too slow")

    async def write_to(self, websocket: PlainWebSocket) -> None:
        """Sends what is queued until the end, and the end itself; then the reader need not wait either."""
        while self._outbox or self._closed is None:
            if not self._outbox:
                self._work = trio.Event()
                await self._work.wait()  # as long as the connection lasts
                continue
            message = self._outbox.popleft()
            await websocket.send(message)
            self._queued -= len(message.encode()) if isinstance(message, str) else len(message)
            if self._strained and self._queued <= self._settings.high_water // 2:
                self._strained = False
                self._tell(Writable())
        if self._closed.code != ABNORMAL:
            with trio.move_on_after(self._settings.close_timeout):
                await websocket.close(self._closed.code, self._closed.reason)
        self._life.cancel()

    # --- in ------------------------------------------------------------------------------------------

    async def read_from(self, websocket: PlainWebSocket) -> None:
        """Hands on what the client says, one message at a time, until it says nothing for too long."""
        while self._closed is None:
            with trio.move_on_after(self._patience()) as waiting:
                message = await websocket.receive()
            if waiting.cancelled_caught:
                self._on_silence()
                continue
            self._resumed = trio.Event()
            self._tell(Received((b"" if message is None else message,)))  # Quart makes None of empty bytes
            await self._resumed.wait()

    def _patience(self) -> float:
        idle = self._settings.idle_timeout or float("inf")
        expires = self.accept.expires_at
        return idle if expires is None else min(idle, max(0.0, expires - time.time()))

    def _on_silence(self) -> None:
        expires = self.accept.expires_at
        expired = expires is not None and expires <= time.time()
        self.close(CloseCode.GOING_AWAY, "token expired" if expired else "idle")


async def pump(transport: AsgiTransport, roster: Roster, websocket: PlainWebSocket) -> int:
    """Starts the Socket process, accepts, and runs the transport until the end. Answers the status to refuse with
    when the process cannot start, else 0."""
    try:
        owner = await transport.accept.start(transport)
    except (Exit, StartFailed, ChildError):
        return 503
    await spawn(_watch, owner, transport)
    roster.add(transport)
    try:
        with transport._life:
            await websocket.accept(subprotocol=transport.accept.subprotocol)
            transport.give_to(owner)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(transport.write_to, websocket)
                nursery.start_soon(transport.read_from, websocket)
    finally:
        transport.give_to(owner)
        transport.abort()
        roster.remove(transport)
    return 0


async def _watch(owner: Pid, transport: AsgiTransport) -> None:
    """A process of its own: only a process can monitor, and a route of a foreign server is none."""
    monitor(owner)
    while not isinstance(await receive(), Down):
        pass  # nobody writes to it but its monitor
    transport.owner_ended()
