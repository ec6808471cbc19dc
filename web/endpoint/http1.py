"""HTTP/1.1 for one connection, pulled: bytes are read when the application asks for them, or a request is awaited.

The connection's one task runs the application. So nothing is read that nobody wants, a send can be cancelled, what is
sent leaves in one write, and a connection costs no task but its own. `head` and `chunks` read requests, `answer` writes
what is said to them; here is what lies between: the bytes that have come and are not understood yet, and the end.

HTTP/2 is not spoken: an h2c upgrade is ignored, as RFC 9113 3.1 has it, and the preface of HTTP/2 is refused. A
WebSocket request becomes a `handshake.Handshake`. May import this package.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

from web.endpoint.answer import refusal
from web.endpoint.chunks import Chunks
from web.endpoint.head import END, Head, Malformed, hopeless, read_head
from web.endpoint.limits import Budget
from web.endpoint.settings import EndpointSettings
from web.endpoint.wire import Wire

Message = dict[str, Any]


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


class Http1:
    """`exchange` is the request that waits to be answered, if there is one; `over` says that the connection is to be
    closed once `flush` has written what is left. `body` takes what belongs to the request at hand."""

    __slots__ = (
        "_begin",
        "_out",
        "_rest",
        "_seen",
        "answering",
        "body",
        "budget",
        "exchange",
        "fault",
        "is_last",
        "over",
        "requests",
        "settings",
        "wire",
    )

    def __init__(
        self,
        settings: EndpointSettings,
        wire: Wire,
        budget: Budget,
        is_last: Callable[[], bool],
        begin: Callable[[Http1, Head], Exchange],
    ) -> None:
        self.settings = settings
        self.wire = wire
        self.budget = budget
        self.is_last = is_last
        self.exchange: Exchange | None = None
        self.body: Body | None = None
        self.answering = False  # whether a part of the answer is out: too late for another one
        self.over = False
        self.fault: str | None = None
        self.requests = 0
        self._begin = begin
        self._rest = b""  # what has come and is not understood yet
        self._seen = 0  # how much of it is known not to hold a head's end
        self._out = b""

    @property
    def ready(self) -> bool:
        """Whether there is a request to answer, or never will be."""
        return self.exchange is not None or self.over

    @property
    def begun(self) -> bool:
        """Whether a part of the next request has come."""
        return bool(self._rest)

    def origin(self, head: Head) -> tuple[tuple[str, int] | None, bool]:
        """Who asks, as ASGI has it, and whether over TLS; a proxy that is trusted speaks for others."""
        client, secured, proxies = self.wire.client, self.wire.secured, self.settings.proxies
        if proxies:
            client, scheme = proxies.seen(client, "https" if secured else "http", head.headers)
            secured = scheme == "https"
        return (client, 0) if client else None, secured

    # --- in ------------------------------------------------------------------------------------------

    async def read(self) -> None:
        """Waits for bytes and makes of them what they are."""
        self.feed(await self.wire.read())

    def feed(self, data: bytes) -> None:
        """Takes bytes that have come; none are the end of the stream."""
        try:
            if not data:
                self._on_end()
            elif self.body is not None and not self.body.whole:
                self._take_body(data)
            else:
                self._rest = self._rest + data if self._rest else data
                if self.exchange is None:
                    self._look()
        except Malformed as wrong:
            self.refuse(wrong.status, wrong.code, wrong.detail)

    def proceed(self) -> bool:
        """Goes on to the next request; whether a part of it had been read together with the one before."""
        self.exchange = self.body = None
        self.answering = False
        if not self._rest:
            return False
        self.feed_again()
        return True

    def feed_again(self) -> None:
        data, self._rest, self._seen = self._rest, b"", 0
        self.feed(data)

    def take_rest(self) -> bytes:
        """What the client sent right behind its request, for whoever takes the connection over."""
        rest, self._rest = self._rest, b""
        return rest

    def _look(self) -> None:
        """Is there a whole head? And does what there is of one have any hope?"""
        data, most = self._rest, self.settings.max_header
        end = data.find(END, max(0, self._seen - len(END) + 1))
        if end < 0:
            if hopeless(data):
                raise Malformed(400, "bad_request", "this is not HTTP")
            self._seen = len(data)
        if (end if end >= 0 else len(data)) > most:
            raise Malformed(431, "headers_too_large", f"headers of more than {most} bytes")
        if end < 0:
            return
        end += len(END)
        head = read_head(data[:end])
        self._rest, self._seen = b"", 0
        self.requests += 1
        self.body = Body(head.length, self.settings.most_for(head.target), self.budget)
        self.exchange = self._begin(self, head)
        self._take_body(data[end:])

    def _take_body(self, data: bytes) -> None:
        body = self.body
        assert body is not None
        self._rest = body.take(data)

    def _on_end(self) -> None:
        if self.body is not None and not self.body.whole:
            raise Malformed(400, "bad_request", "a body that ends too early")
        if self._rest and self.exchange is None:
            raise Malformed(400, "bad_request", "a request that ends too early")
        self.leave()

    # --- out -----------------------------------------------------------------------------------------

    async def write(self, data: bytes) -> None:
        """Sends this, and whatever waits before it. Raises ClientGone when the client does not take it in time, or
        has left."""
        if self._out:
            data, self._out = self._out + data, b""
        if not data:
            return
        try:
            await self.wire.write(data, self.settings.write_timeout)
        except (OSError, trio.TooSlowError, trio.ClosedResourceError) as error:
            if isinstance(error, trio.TooSlowError):
                self.fault = "client_does_not_read"
            self.abort()
            raise ClientGone from error

    async def flush(self) -> None:
        """Sends what waits. Raises ClientGone."""
        await self.write(b"")

    def refuse(self, status: int, code: str, detail: str) -> None:
        """Ends the connection with this status, when no answer has begun."""
        self.fault = f"{code}: {detail}"
        self.apologise(status, code, detail)

    def apologise(self, status: int, code: str, detail: str = "") -> None:
        """As `refuse`, for what is no fault of the client's."""
        if not (self.answering or self.over):
            self.answering = True
            self._out += refusal(status, code, detail)
        self.leave()

    def leave(self) -> None:
        """Nothing more is read, and the application hears that its client has gone."""
        self.over = True
        if self.body is not None:
            self.body.release()

    def abort(self) -> None:
        """As `leave`, and what has not been written never will be."""
        self._out = b""
        self.wire.close()
        self.leave()


class Body:
    """A request's body as it comes, within bounds: `held` is what nobody has asked for yet."""

    __slots__ = ("_budget", "_chunks", "_left", "_most", "got", "held", "whole")

    def __init__(self, length: int | None, most: int, budget: Budget) -> None:
        self.held = b""
        self.got = 0
        self.whole = length == 0
        self._left = length or 0
        self._chunks = Chunks() if length is None else None
        self._most = most
        self._budget = budget

    def take(self, data: bytes) -> bytes:
        """Takes what is the body's, and gives back what is not. Raises Malformed."""
        if self.whole or not data:
            return data
        if self._chunks is None:
            part, rest = (data, b"") if len(data) <= self._left else (data[: self._left], data[self._left :])
            self._left -= len(part)
            self.whole = not self._left
        else:
            part, rest = self._chunks.feed(data), b""
            if self._chunks.done:
                self.whole, rest = True, self._chunks.rest
        self._count(len(part))
        self.held = self.held + part if self.held else part
        return rest

    def _count(self, size: int) -> None:
        self.got += size
        within = self._budget.change(size)
        if self._most and self.got > self._most:
            raise Malformed(413, "body_too_large", f"a body of more than {self._most} bytes")
        if not within:
            raise Malformed(503, "too_much_buffered", "all clients together sent too much")

    def hand_over(self) -> bytes:
        """What has come since the last time."""
        held, self.held = self.held, b""
        return held

    def release(self) -> None:
        """The body is over, one way or another."""
        self._budget.change(-self.got)
        self.got = 0
