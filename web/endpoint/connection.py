"""One client's connection, from its first byte until it leaves or becomes a WebSocket. May import this package."""

from __future__ import annotations

import math
import ssl
from collections.abc import Awaitable, Callable

import trio
from attrs import define, field

from engine.otp import Exit
from engine.otp.preempt_reports import Preempted
from web.endpoint.answer import refusal
from web.endpoint.call import Call
from web.endpoint.faults import FaultLog
from web.endpoint.handshake import Handshake
from web.endpoint.head import Head, Malformed
from web.endpoint.http1 import App, ClientGone, Exchange, Http1
from web.endpoint.hub import Hub
from web.endpoint.settings import EndpointSettings
from web.endpoint.stream import StreamTransport
from web.endpoint.upgrade import asks_for_websocket, flaw
from web.endpoint.wire import Wire
from web.sockets.transport import StartSocket

CRASHES = (Exception, Exit, Preempted)
"""What ends one request only; anything else, as Cancelled, is not the application's doing."""
LINGER_BYTES = 32 * 1024 * 1024

Adopt = Callable[[StreamTransport, StartSocket, bytes], Awaitable[bool]]
"""Starts the Socket process of a transport and lets the transport begin; whether that worked."""


@define
class Service:
    """What all connections share. `idle`: the patience with those between two requests, to be ended by a drain, after
    which `draining` lets nobody ask a second time."""

    app: App
    settings: EndpointSettings
    hub: Hub
    faults: FaultLog
    adopt: Adopt
    tls: ssl.SSLContext | None
    idle: set[trio.CancelScope] = field(factory=set)
    draining: bool = False


class Connection:
    def __init__(self, service: Service, wire: Wire) -> None:
        self._service = service
        self._wire = wire
        self._kept = False  # whether the wire belongs to a transport now
        # one scope for all the waits for a request, with a deadline while there is one: a scope each would cost more
        # than what is waited for
        self._patience = trio.CancelScope()

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
        protocol = Http1(service.settings, self._wire, service.hub.budget, self._is_last, self._begin)
        await self._serve(protocol)
        if self._kept:
            return
        if protocol.fault is not None:
            kind, _, detail = protocol.fault.partition(": ")
            service.faults.client(kind, self._wire.client, detail)
        await linger(self._wire, service.settings)

    def _is_last(self) -> bool:
        """Whether no request is taken after the one at hand."""
        return self._service.draining or self._patience.cancel_called

    def _begin(self, protocol: Http1, head: Head) -> Exchange:
        """What a request is: a call, or the handshake of a WebSocket. Raises Malformed."""
        if not asks_for_websocket(head):
            return Call(protocol, head)
        if (wrong := flaw(head)) is not None:
            raise Malformed(*wrong, "an upgrade request that is not sound")
        return Handshake(protocol, head, self._service.hub)

    async def _serve(self, protocol: Http1) -> None:
        late = False  # whether a request came in the very moment in which there was no more patience
        try:
            with self._patience:
                while not late and await self._next(protocol):
                    late = self._patience.cancel_called
                    if not late:
                        await self._answer(protocol)
            if late:
                await self._answer(protocol)
                protocol.leave()
            elif self._patience.cancelled_caught and protocol.begun:
                protocol.refuse(408, "request_timeout", "headers that do not come")
            if not self._kept:
                await protocol.flush()
        except ClientGone:
            return

    async def _next(self, protocol: Http1) -> bool:
        """Waits for the next request; False when there will be none. Cancels `_patience` when it takes too long."""
        if protocol.proceed():
            await trio.lowlevel.checkpoint()  # a thousand requests in one read are still one client's
        if not (protocol.ready or protocol.begun):
            await self._first_bytes(protocol)
        if not protocol.ready:
            self._patience.deadline = trio.current_time() + self._service.settings.header_timeout
            while not protocol.ready:
                await protocol.read()
        self._patience.deadline = math.inf
        return not protocol.over

    async def _first_bytes(self, protocol: Http1) -> None:
        settings, idle = self._service.settings, self._service.idle
        if protocol.requests and self._service.draining:
            protocol.leave()
            return
        patience = settings.keep_alive_timeout if protocol.requests else settings.header_timeout
        self._patience.deadline = trio.current_time() + patience
        idle.add(self._patience)
        try:
            await protocol.read()
        finally:
            idle.discard(self._patience)

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
    await wire.write(refusal(status, code), settings.linger)
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
