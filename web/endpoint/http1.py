"""HTTP/1.1 for one connection: hypercorn's protocol class, made safe and turned from pushing to pulling.

Hypercorn reads for itself and runs the application in a task beside; here the connection's one task runs the
application, and bytes are read when the application asks for them (`Call.receive`) or when a request is awaited. So
nothing is read that nobody wants, a send can be cancelled, what is sent leaves in one write, and a connection costs
no task but its own.

HTTP/2 is not spoken: an h2c upgrade is ignored, as RFC 9113 3.1 has it, and the preface of HTTP/2 is refused. A
WebSocket request becomes a `handshake.Handshake`. May import hypercorn, h11 and this package.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Protocol

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.events import Body, EndBody, Request
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from web.endpoint.limits import Budget
from web.endpoint.settings import EndpointSettings
from web.endpoint.upgrade import asks_for_websocket, flaw
from web.endpoint.wire import Wire

Message = dict[str, Any]
Headers = list[tuple[bytes, bytes]]

EVENTS_A_TURN = 64
"""Events that are handled before others get their turn; tiny chunks and pipelined requests can be many."""
FEW_CHUNKS = 256
SMALL_CHUNK = 64
"""Bytes: a body may come in a few chunks of any size, and in many if they are this large on average. Each costs us
twenty microseconds, and its sender six bytes."""
EXTRA_HEADERS: dict[int, Headers] = {
    426: [(b"sec-websocket-version", b"13")],
    429: [(b"retry-after", b"5")],
    503: [(b"retry-after", b"5")],
}


class ClientGone(OSError):
    """The client left, or was dropped, while it was being answered. Raised into the application by `send`."""


App = Callable[..., Awaitable[None]]
"""An ASGI application: called with scope, receive and send. Frameworks type these too variously to say more."""


class Exchange(Protocol):
    """One request being answered: what the connection runs the application with."""

    scope: Message

    async def receive(self) -> Message: ...

    async def send(self, message: Message) -> None: ...

    async def finish(self, crashed: bool) -> None:
        """Completes what the application has left undone."""
        ...


def problem(status: int, code: str, detail: str = "") -> tuple[Headers, bytes]:
    """Headers and body of a refusal in the endpoint's own name (RFC 9457)."""
    title = HTTPStatus(status).phrase
    known = {"type": "about:blank", "title": title, "status": status, "detail": detail or title, "code": code}
    body = json.dumps(known)
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    return headers + EXTRA_HEADERS.get(status, []), body.encode()


class Http1(H11Protocol):
    """`exchange` is the request that waits to be answered, if there is one; `over` says that the connection is to be
    closed once `flush` has written what is left."""

    def __init__(
        self,
        config: Config,
        context: WorkerContext,
        settings: EndpointSettings,
        wire: Wire,
        server: tuple[str, int] | None,
        budget: Budget,
        upgrade: Callable[[Http1, h11.Request], Exchange],
    ) -> None:
        client = (wire.client, 0) if wire.client else None
        # hypercorn calls its application through the task group only, and the task group is this object
        super().__init__(None, config, context, self, ConnectionState({}), wire.secured, client, server, self._gather)  # type: ignore[arg-type]
        self.settings = settings
        self.wire = wire
        self.budget = budget
        self.exchange: Exchange | None = None
        self.over = False
        self.fault: str | None = None
        self.paused = False
        self._upgrade = upgrade
        self._out = bytearray()

    @property
    def ready(self) -> bool:
        """Whether there is a request to answer, or never will be."""
        return self.exchange is not None or self.over

    @property
    def begun(self) -> bool:
        """Whether a part of the next request has come."""
        return bool(self.connection.trailing_data[0])

    # --- in ------------------------------------------------------------------------------------------

    async def read(self) -> None:
        """Waits for bytes and makes events of them."""
        await self.feed(await self.wire.read())

    async def feed(self, data: bytes) -> None:
        self.connection.receive_data(data)
        await self._handle_events()

    async def proceed(self) -> None:
        """Goes on with what had been read together with the request before."""
        self.exchange, self.paused = None, False
        await self._handle_events()

    async def _handle_events(self) -> None:
        events = 0
        while not self.over:
            events += 1
            if events % EVENTS_A_TURN == 0:
                await trio.lowlevel.cancel_shielded_checkpoint()
            try:
                event = self.connection.next_event()
            except h11.RemoteProtocolError as error:
                await self.refuse(error.error_status_hint, "bad_request", str(error))
                return
            if isinstance(event, h11.Request):
                await self._begin(event)
            elif isinstance(event, h11.Data):
                await self._on_body(Body(stream_id=STREAM_ID, data=bytes(event.data)))
            elif isinstance(event, h11.EndOfMessage):
                await self._on_body(EndBody(stream_id=STREAM_ID))
            else:
                self.paused = event is h11.PAUSED
                if isinstance(event, h11.ConnectionClosed):
                    await self.leave()
                return

    async def _begin(self, request: h11.Request) -> None:
        if request.http_version not in (b"1.0", b"1.1"):
            await self.refuse(505, "http_version_not_supported", "a version of HTTP that is not spoken here")
        elif size_of(request) > self.settings.max_header:
            await self.refuse(431, "headers_too_large", f"headers of more than {self.settings.max_header} bytes")
        elif is_ambiguous(request):
            await self.refuse(400, "bad_request", "two ways of telling where the body ends")
        elif not asks_for_websocket(request):
            await self._create_stream(request)
        elif (wrong := flaw(request)) is not None:
            await self.refuse(*wrong, "an upgrade request that is not sound")
        else:
            self.exchange = self._upgrade(self, request)

    async def _create_stream(self, request: h11.Request) -> None:
        stream = HTTPStream(
            self.app,
            self.config,
            self.context,
            self,  # type: ignore[arg-type]  # of a task group it needs `spawn_app` only
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        self.stream = stream
        self.keep_alive_requests += 1
        method, version = request.method.decode("ascii").upper(), request.http_version.decode()
        headers = list(request.headers)
        await stream.handle(Request(STREAM_ID, headers, version, method, request.target, self.connection_state))

    async def spawn_app(self, app: Any, config: Config, scope: Any, send: Any) -> Callable[[Any], Awaitable[None]]:
        """Hypercorn's way of running the application: here it only makes the call ready."""
        call = Call(self, scope, send)
        self.exchange = call
        return call.put

    async def _on_body(self, event: Body | EndBody) -> None:
        call = self.exchange
        if self.stream is None or not isinstance(call, Call):
            return  # of a request that has been answered, or of an upgrade: nobody wants it
        refusal = call.count(len(event.data)) if isinstance(event, Body) else None
        if refusal is not None:
            await self.refuse(*refusal)
        else:
            await self.stream.handle(event)

    async def _close_stream(self) -> None:
        if isinstance(self.exchange, Call):
            self.exchange.release()
        await super()._close_stream()

    # --- out -----------------------------------------------------------------------------------------

    async def _gather(self, event: Event) -> None:
        """What hypercorn sends: bytes are kept for `flush`, and a close is done by the connection's task."""
        if isinstance(event, RawData):
            self._out += event.data
        elif isinstance(event, Closed):
            self.over = True

    async def flush(self) -> None:
        """Raises ClientGone when the client does not take it in time, or has left."""
        if not self._out:
            return
        data, self._out = bytes(self._out), bytearray()
        try:
            await self.wire.write(data, self.settings.write_timeout)
        except (OSError, trio.TooSlowError, trio.ClosedResourceError) as error:
            if isinstance(error, trio.TooSlowError):
                self.fault = "client_does_not_read"
            await self.abort()
            raise ClientGone from error

    async def refuse(self, status: int, code: str, detail: str) -> None:
        """Ends the connection with this status, when no answer has begun."""
        self.fault = f"{code}: {detail}"
        if self.connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers, body = problem(status, code, detail)
            await self._send_h11_event(h11.Response(status_code=status, headers=headers))
            await self._send_h11_event(h11.Data(data=body))
            await self._send_h11_event(h11.EndOfMessage())
        await self.leave()

    async def leave(self) -> None:
        """Nothing more is read, and the application hears that its client has gone."""
        self.over = True
        await self._close_stream()

    async def abort(self) -> None:
        """As `leave`, and what has not been written never will be."""
        self._out.clear()
        self.wire.close()
        await self.leave()

    async def ask_to_continue(self) -> None:
        """Tells a client that waits for it (Expect: 100-continue) that its body is wanted."""
        if self.connection.they_are_waiting_for_100_continue:
            await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=[]))
            await self.flush()

    async def stream_send(self, event: Any) -> None:
        if getattr(event, "status_code", 0) >= 200 and self.context.terminated.is_set():
            event.headers.append((b"connection", b"close"))  # so that a keep-alive client goes elsewhere
        await super().stream_send(event)


def size_of(request: h11.Request) -> int:
    """Bytes of its line and headers. H11 minds its own limit only while it waits for the rest of them."""
    return len(request.target) + sum(len(name) + len(value) for name, value in request.headers)


def is_ambiguous(request: h11.Request) -> bool:
    """Whether a proxy could see another end of the body than we do: the door to smuggled requests (RFC 9112 6.3)."""
    names = {name for name, _ in request.headers}
    return b"transfer-encoding" in names and b"content-length" in names


class Call:
    """One HTTP request: what the application receives comes from the connection when it asks for it."""

    __slots__ = ("_body", "_deadline", "_forward", "_got", "_handed_over", "_parts", "_protocol", "_whole", "scope")

    def __init__(self, protocol: Http1, scope: Message, forward: Callable[[Any], Awaitable[None]]) -> None:
        self.scope = scope
        self._protocol = protocol
        self._forward = forward
        self._body = bytearray()  # what has come and was not asked for yet
        self._whole = False  # whether there is no more to come
        self._handed_over = False  # whether the application knows that
        self._got = 0
        self._parts = 0
        self._deadline = trio.current_time() + protocol.settings.body_timeout

    async def put(self, event: Message) -> None:
        """Takes hypercorn's events. That the client has left shows in the connection's being over."""
        if event["type"] == "http.request":
            self._body += event["body"]
            self._whole = not event["more_body"]

    def count(self, size: int) -> tuple[int, str, str] | None:
        """Counts a part of the body; how to refuse it when it is too much, for this client or for all together."""
        protocol, self._got, self._parts = self._protocol, self._got + size, self._parts + 1
        within = protocol.budget.change(size)
        limit = protocol.settings.max_body
        if limit and self._got > limit:
            return 413, "body_too_large", f"a body of more than {limit} bytes"
        if self._parts > FEW_CHUNKS + self._got // SMALL_CHUNK:
            return 400, "bad_request", "a body in very many, very small chunks"
        return None if within else (503, "too_much_buffered", "all clients together sent too much")

    def release(self) -> None:
        """The body is over, one way or another."""
        self._protocol.budget.change(-self._got)
        self._got = 0

    async def receive(self) -> Message:
        while not self._body and (self._handed_over or not self._whole):
            if self._protocol.over:
                return {"type": "http.disconnect"}
            if self._whole:
                await self._watch()
            else:
                await self._read_body()
        body, self._body = bytes(self._body), bytearray()
        self._handed_over = self._whole
        return {"type": "http.request", "body": body, "more_body": not self._whole}

    async def _watch(self) -> None:
        """Waits for the client to leave; without a deadline, for it is waiting for its answer."""
        protocol = self._protocol
        if protocol.paused:
            await trio.sleep_forever()  # the next request is here already; the end of this one ends the wait
        await self._read()

    async def _read_body(self) -> None:
        settings = self._protocol.settings
        extra = self._got / settings.min_body_rate if settings.min_body_rate else 0.0
        with trio.move_on_at(self._deadline + extra) as scope:
            await self._protocol.ask_to_continue()
            await self._read()
        if scope.cancelled_caught:
            await self._protocol.refuse(408, "request_timeout", "a body that does not come")

    async def _read(self) -> None:
        try:
            await self._protocol.read()
        except (OSError, trio.ClosedResourceError):
            await self._protocol.abort()

    async def send(self, message: Message) -> None:
        protocol = self._protocol
        if protocol.over and protocol.stream is None:
            raise ClientGone
        await self._forward(message)
        if message["type"] != "http.response.start":
            await protocol.flush()

    async def finish(self, crashed: bool) -> None:
        await self._forward(None)
        await self._protocol.flush()
