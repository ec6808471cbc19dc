"""The server as one process of the supervision tree. May import `engine.otp` and this package.

The process owns every connection's task; a Socket process is monitored from here, so that a client whose process
crashed is told so (1011). When the endpoint itself crashes, its supervisor starts it again on the same listening
sockets: who connects meanwhile waits in the kernel's queue.
"""

from __future__ import annotations

import socket
import ssl
from functools import partial

import trio

from engine.errors import UserError
from engine.otp import ChildSpec, Down, Exit, ExitSignal, Ref, Start, init_ack, monitor, receive, send, trap_exits
from web.endpoint.faults import FaultLog
from web.endpoint.http1 import App
from web.endpoint.listeners import open_listeners, url_of
from web.endpoint.roster import Roster
from web.endpoint.server import Server
from web.endpoint.settings import EndpointSettings
from web.endpoint.stream import StreamTransport
from web.sockets.transport import StartSocket

NAME = "endpoint"
GRACE = 2.0
"""Seconds beyond a drain's, for the application's own end."""


class Endpoint:
    """The handle, made before the tree: `spec` puts the server into it; `roster` has everybody on a WebSocket,
    `faults` counts what clients and we did wrong. `urls` is empty until it listens."""

    def __init__(self, settings: EndpointSettings, app: App, roster: Roster | None = None) -> None:
        self.settings = settings
        self.app = app
        self.roster = Roster(settings.max_per_user) if roster is None else roster
        self.faults = FaultLog()
        self.draining = False
        self._listeners: list[socket.socket] = []
        self._server: Server | None = None
        self._owned: dict[Ref, StreamTransport] = {}

    @property
    def urls(self) -> tuple[str, ...]:
        """Where it listens, as `http://127.0.0.1:4000`."""
        return tuple(url_of(listener, bool(self.settings.certificate)) for listener in self._listeners)

    @property
    def port(self) -> int:
        """The bound port. Raises IndexError while it does not listen."""
        return int(self._listeners[0].getsockname()[1])

    @property
    def connections(self) -> int:
        """How many are connected now, by HTTP and by WebSocket."""
        return self._server.census.total if self._server else 0

    def listen(self) -> None:
        """Binds; idempotent. The process does it, but a program that wants to tell its user can do it first.

        Raises:
            UserError: `port_taken`, `bad_address` or `bad_settings` (a TLS certificate that cannot be used).
        """
        if not self._listeners:
            self._listeners = open_listeners(self.settings)

    def spec(self) -> ChildSpec:
        """The child to put last in the tree."""
        return ChildSpec(
            id=NAME, start=Start.process(self._run, name=NAME), shutdown=self.settings.drain_timeout + GRACE
        )

    async def drain(self, timeout: float | None = None) -> None:
        """Takes no newcomers, lets requests finish, tells sockets 1012 in jittered batches; returns when all have
        left, or at the timeout (seconds; the settings' by default), when the rest is dropped. Processes that are
        not clients' go on. A supervisor's shutdown does the same; call it before, when clients are to leave while
        the rest of the tree still stands."""
        self.draining = True
        if self._server is not None:
            await self._server.stop_accepting()
        self._close_listeners()
        if self._server is not None:
            await self._server.drain(self.settings.drain_timeout if timeout is None else timeout)

    # --- the process ---------------------------------------------------------------------------------

    async def _run(self) -> None:
        trap_exits()
        self._owned.clear()
        try:
            self.listen()
            self._server = Server(self.settings, self.app, self.roster, self.faults, self._adopt)
        except (UserError, ssl.SSLError, OSError) as problem:
            raise Exit(problem) from problem
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._server.run, list(self._listeners), self._listening)
            while not isinstance(message := await receive(), ExitSignal):
                self._on_message(message)
            await self.drain()
            nursery.cancel_scope.cancel()
        raise Exit(message.reason)

    async def _listening(self) -> None:
        init_ack(self.urls)

    def _on_message(self, message: object) -> None:
        if isinstance(message, Down):
            transport = self._owned.pop(message.ref, None)
            if transport is not None:
                transport.owner_ended()

    async def _adopt(self, transport: StreamTransport, start: StartSocket, early: bytes) -> bool:
        try:
            pid = await start(transport)
        except (Exit, Exception) as error:  # noqa: BLE001  # whatever it is, this client alone is refused
            self.faults.ours("socket_not_started", transport.upgrade.client, error)
            return False
        self._owned[monitor(pid)] = transport
        transport.begin(partial(send, pid), early)
        return True

    def _close_listeners(self) -> None:
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            trio.lowlevel.notify_closing(listener)
            listener.close()
