"""The running server: accept loops, the hub and the application's lifespan in one nursery. Knows no processes.

May import this package. `endpoint` makes a process of it.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, Sequence

import trio
from attrs import evolve
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan

from web.endpoint.connection import Adopt, Connection, Service, refuse
from web.endpoint.faults import FaultLog
from web.endpoint.http1 import App
from web.endpoint.hub import Hub
from web.endpoint.limits import Census, allow_files
from web.endpoint.roster import Roster
from web.endpoint.settings import EndpointSettings
from web.endpoint.wire import Wire

ACCEPT_BATCH = 64
MAX_REFUSALS = 256
"""Newcomers that are being told at one time why they may not enter; the rest is just closed."""
LAST_WORDS = 0.1
"""Seconds of a drain kept for the sockets that are dropped at its end to be gone before it is over."""
SHORT_OF = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
BREATHER = 0.1
"""Seconds without accepting when the system is out of files or memory."""


def hypercorn_config(settings: EndpointSettings) -> Config:
    """For what is hypercorn's still: TLS, and the application's lifespan. It logs nothing of its own."""
    config = Config()
    config.accesslog = config.errorlog = None
    config.alpn_protocols = ["http/1.1"]
    config.certfile = settings.certificate or None
    config.keyfile = settings.key or None
    config.keyfile_password = settings.key_password or None
    return config


class Server:
    """`run` is its life. One is made for every start of the endpoint's process."""

    def __init__(self, settings: EndpointSettings, app: App, roster: Roster, faults: FaultLog, adopt: Adopt) -> None:
        limit = allow_files(settings.max_connections or 1_000_000)
        self.settings = settings = evolve(settings, max_connections=limit)
        self._config = hypercorn_config(settings)
        self.hub = Hub(settings, roster, faults)
        self.census = Census(settings.max_connections, settings.max_per_address, settings.proxies.trusts)
        self.service = Service(app, settings, self.hub, faults, adopt, self._config.create_ssl_context())
        self._accepting = trio.CancelScope()
        self._empty = trio.Event()
        self._drained = trio.Event()
        self._refusals = 0
        self._requests: trio.Nursery | None = None

    async def run(self, listeners: Sequence[socket.socket], ready: Callable[[], Awaitable[None]]) -> None:
        """Serves until drained or cancelled; calls `ready` once the application has started and newcomers are taken."""
        lifespan = Lifespan(ASGIWrapper(self.service.app), self._config, {})
        async with trio.open_nursery() as nursery:
            await nursery.start(lifespan.handle_lifespan)
            await lifespan.wait_for_startup()
            nursery.start_soon(self.hub.run)
            async with trio.open_nursery() as self._requests:
                self._requests.start_soon(self._accept_all, listeners)
                await ready()
                await self._drained.wait()
            await lifespan.wait_for_shutdown()
            nursery.cancel_scope.cancel()

    async def drain(self, timeout: float) -> None:
        """Takes no newcomers, lets requests finish, sends sockets away, and returns when everybody has left or the
        time is up."""
        with trio.move_on_after(timeout) as scope:
            await self.stop_accepting()
            await self.hub.roster.drain(max(0.0, timeout - LAST_WORDS))
            self._empty = trio.Event()
            if self.census.total:
                await self._empty.wait()
        self._drained.set()
        if scope.cancelled_caught and self._requests is not None:
            self._requests.cancel_scope.cancel()

    async def stop_accepting(self) -> None:
        self._accepting.cancel()
        self.service.draining = True
        for scope in tuple(self.service.idle):
            scope.cancel()

    # --- newcomers -----------------------------------------------------------------------------------

    async def _accept_all(self, listeners: Sequence[socket.socket]) -> None:
        with self._accepting:
            async with trio.open_nursery() as nursery:
                for listener in listeners:
                    nursery.start_soon(self._accept_from, listener)

    async def _accept_from(self, listener: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                self._accept_some(listener)
            except OSError as error:
                if error.errno not in SHORT_OF:
                    raise
                self.service.faults.ours("cannot_accept", "", error)
                await trio.sleep(BREATHER)  # what is short is freed by others' work, not by ours

    def _accept_some(self, listener: socket.socket) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # it left while it was waiting
            self._enter(sock, address[0])

    def _enter(self, sock: socket.socket, client: str) -> None:
        nursery = self._requests
        assert nursery is not None
        status = self.census.enter(client)
        if not status:
            wire = Wire(sock, client, self._leave)
            nursery.start_soon(Connection(self.service, wire).run)
            return
        self.service.faults.client("too_many_connections", client, f"refused with {status}")
        if self._refusals >= MAX_REFUSALS or self.service.tls is not None:
            sock.close()
        else:
            self._refusals += 1
            nursery.start_soon(self._turn_away, Wire(sock, client, self._turned_away), status)

    def _leave(self, client: str) -> None:
        self.census.leave(client)
        if not self.census.total:
            self._empty.set()

    async def _turn_away(self, wire: Wire, status: int) -> None:
        wire.tune()
        try:
            await refuse(wire, status, "too_many_connections", self.settings)
        except (OSError, trio.TooSlowError):
            return  # it did not want to know
        finally:
            wire.close()

    def _turned_away(self, client: str) -> None:
        self._refusals -= 1
