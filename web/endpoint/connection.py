"""One client's connection, from its first byte until it leaves or becomes a WebSocket. May import this package."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable

import h11
import trio
from attrs import define, field
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext

from engine.otp import Exit
from engine.otp.preempt_reports import Preempted
from web.endpoint.faults import FaultLog
from web.endpoint.handshake import Handshake
from web.endpoint.http1 import App, ClientGone, Exchange, Http1, problem
from web.endpoint.hub import Hub
from web.endpoint.settings import EndpointSettings
from web.endpoint.stream import StreamTransport
from web.endpoint.wire import Wire
from web.sockets.transport import StartSocket

CRASHES = (Exception, Exit, Preempted)
"""What ends one request only; anything else, as Cancelled, is not the application's doing."""
LINGER_BYTES = 32 * 1024 * 1024

Adopt = Callable[[StreamTransport, StartSocket, bytes], Awaitable[bool]]
"""Starts the Socket process of a transport and lets the transport begin; whether that worked."""


@define
class Service:
    """What all connections share. `idle`: the waits of those between two requests, to be cut short by a drain."""

    app: App
    settings: EndpointSettings
    config: Config
    context: WorkerContext
    hub: Hub
    faults: FaultLog
    adopt: Adopt
    tls: ssl.SSLContext | None
    address: tuple[str, int] | None
    idle: set[trio.CancelScope] = field(factory=set)


class Connection:
    def __init__(self, service: Service, wire: Wire) -> None:
        self._service = service
        self._wire = wire
        self._kept = False  # whether the wire belongs to a transport now

    async def run(self) -> None:
        """Never raises but Cancelled: a connection's fault is its own."""
        try:
            if await self._secure():
                await self._speak()
        except (OSError, trio.TooSlowError, trio.ClosedResourceError):
            return  # it left in the middle of something; that is its right
        except Exception as error:  # noqa: BLE001  # the connection's root: nothing of one client's may reach another
            self._service.faults.ours("endpoint_error", self._wire.client, error)
        finally:
            if not self._kept:
                self._wire.close()

    async def _secure(self) -> bool:
        """The TLS handshake, where there is one to make; whether the connection may be used."""
        self._wire.tune()
        if self._service.tls is None:
            return True
        try:
            with trio.fail_after(self._service.settings.write_timeout):
                await self._wire.secure(self._service.tls)
        except (ssl.SSLError, trio.TooSlowError) as error:
            self._service.faults.client("tls_handshake_failed", self._wire.client, type(error).__name__)
            return False
        return True

    async def _speak(self) -> None:
        service = self._service
        protocol = Http1(
            service.config,
            service.context,
            service.settings,
            self._wire,
            service.address,
            service.hub.budget,
            self._on_upgrade,
        )
        await self._serve(protocol)
        if self._kept:
            return
        if protocol.fault is not None:
            kind, _, detail = protocol.fault.partition(": ")
            service.faults.client(kind, self._wire.client, detail)
        await linger(self._wire, service.settings)

    def _on_upgrade(self, protocol: Http1, request: h11.Request) -> Exchange:
        return Handshake(protocol, request, self._service.hub)

    async def _serve(self, protocol: Http1) -> None:
        try:
            while await self._next(protocol):
                await self._answer(protocol)
            if not self._kept:
                await protocol.flush()
        except ClientGone:
            return

    async def _next(self, protocol: Http1) -> bool:
        """Waits for the next request; False when there will be none."""
        await protocol.proceed()
        if not (protocol.ready or protocol.begun):
            await self._first_bytes(protocol)
        if not protocol.ready:
            with trio.move_on_after(self._service.settings.header_timeout) as scope:
                while not protocol.ready:
                    await protocol.read()
            if scope.cancelled_caught:
                await protocol.refuse(408, "request_timeout", "headers that do not come")
        return not protocol.over

    async def _first_bytes(self, protocol: Http1) -> None:
        settings, idle = self._service.settings, self._service.idle
        newcomer = protocol.keep_alive_requests == 0
        with trio.move_on_after(settings.header_timeout if newcomer else settings.keep_alive_timeout) as scope:
            idle.add(scope)
            try:
                await protocol.read()
            finally:
                idle.discard(scope)
        if scope.cancelled_caught:
            protocol.over = True

    async def _answer(self, protocol: Http1) -> None:
        exchange = protocol.exchange
        assert exchange is not None
        crashed = False
        try:
            await self._service.app(exchange.scope, exchange.receive, exchange.send)
        except (*CRASHES, BaseExceptionGroup) as error:  # the application's root
            crashed = True
            self._note(protocol, error)
        await exchange.finish(crashed)
        if isinstance(exchange, Handshake) and exchange.taken is not None:
            await self._hand_over(exchange, exchange.taken)

    def _note(self, protocol: Http1, error: BaseException) -> None:
        """Reports a crash of the application; lets through what is no crash (Cancelled and its like)."""
        if isinstance(error, BaseExceptionGroup):
            crashes, others = error.split(CRASHES)
            if others is not None:
                raise others
            error = crashes or error
            gone, rest = error.split(ClientGone) if isinstance(error, BaseExceptionGroup) else (None, error)
            if gone is not None and rest is None:
                return
        if not isinstance(error, ClientGone):
            self._service.faults.ours("application_error", self._wire.client, error)

    async def _hand_over(self, handshake: Handshake, transport: StreamTransport) -> None:
        self._kept = True
        if handshake.start is None:
            return  # a plain WebSocket, which has ended
        try:
            if not await self._service.adopt(transport, handshake.start, handshake.early()):
                await self._refuse_late()
        except BaseException:
            transport.abort()
            raise

    async def _refuse_late(self) -> None:
        """Its Socket process could not start; nothing has been accepted yet, as far as the client knows."""
        self._kept = False
        await refuse(self._wire, 503, "cannot_accept_now", self._service.settings)


async def refuse(wire: Wire, status: int, code: str, settings: EndpointSettings) -> None:
    """Answers without having read anything, and lingers. Raises OSError or trio.TooSlowError when nobody listens."""
    headers, body = problem(status, code)
    head = b"".join(b"%b: %b\r\n" % header for header in headers)
    await wire.write(b"HTTP/1.1 %d Refused\r\n%b\r\n%b" % (status, head, body), settings.linger)
    await linger(wire, settings)


async def linger(wire: Wire, settings: EndpointSettings) -> None:
    """Ends our side, and throws away what the client still sends: closing at once would reset the connection, and
    with it the answer that the client has not read yet."""
    wire.end()
    left = LINGER_BYTES
    with trio.move_on_after(settings.linger):
        while left > 0 and (data := await wire.read()):
            left -= len(data)
            await trio.lowlevel.checkpoint()  # it may send as fast as we read
