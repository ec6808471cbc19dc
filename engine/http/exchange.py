"""One request and its response on a connection, HTTP/1.1 (RFC 9112). The bytes are parsed by httptools.

Imports `wire` alone. The waits are bounded by the caller's timeouts: each is for one step, as in httpx.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable

import httptools
import trio
from attrs import frozen

from engine.http.wire import Wire

MAX_HEAD = 100_000
"""Bytes of a response before its body; a server that sends more is broken, and must not fill the memory."""
BREATH = 4
"""Reads in a row that need not wait for the server, before other tasks get their turn."""
_FORBIDDEN = re.compile(rb"[\r\n\0]")

Headers = list[tuple[bytes, bytes]]


class Broken(Exception):
    """The server broke the protocol, or the connection off."""


class BadRequest(Exception):
    """The request cannot be written: something in it would be read as more than it is."""


class Overdue(Exception):
    """The deadline that a reader has set has passed; no exception of httpx's, for it was not httpx that set it."""


class TimedOut(Exception):
    """A wait has taken too long; `what` is `read` or `write`."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the {what} took too long")
        self.what = what


@frozen
class Ask:
    """A request. `target` as it goes into the first line. Timeouts are in seconds, for each read and write."""

    method: bytes
    target: bytes
    headers: Headers
    body: AsyncIterable[bytes]
    read_timeout: float | None = None
    write_timeout: float | None = None


class Exchange:
    """Reads one response. `head` first, then `piece` until it is empty."""

    def __init__(self, wire: Wire, ask: Ask) -> None:
        self.status = 0
        self.reason = b""
        self.version = "1.1"
        self.headers: Headers = []
        self._wire = wire
        self._ask = ask
        self._parser = httptools.HttpResponseParser(self)
        self._begun = False
        self._whole = False
        self._keeps = False
        self._size = 0
        self.deadline = float("inf")
        """Until when a read may wait (of trio's clock), whatever the timeout is. Costs nothing while nothing waits."""
        self._pieces: list[bytes] = []
        self._unwaited = 0

    # --- asking --------------------------------------------------------------------------------------------

    async def head(self) -> None:
        """Sends the request and reads the response up to its body. Raises Broken, BadRequest, TimedOut, OSError."""
        try:
            await self._send()
        except OSError as problem:  # a server that has enough of a request may have said why
            await self._read_head(problem)
        else:
            await self._read_head(None)

    async def _send(self) -> None:
        gathered, chunked = _written(self._ask), _chunked(self._ask.headers)
        async for data in self._ask.body:
            if data:
                gathered += b"%x\r\n%b\r\n" % (len(data), data) if chunked else data
                await self._write(gathered)
                gathered = b""
        await self._write(gathered + b"0\r\n\r\n" if chunked else gathered)

    async def _write(self, data: bytes) -> None:
        if data:
            with trio.move_on_after(_seconds(self._ask.write_timeout)) as scope:
                await self._wire.write(data)
            if scope.cancelled_caught:
                raise TimedOut("write")

    async def _read_head(self, problem: OSError | None) -> None:
        while not self._begun:
            data = await self._read()
            self._size += len(data)
            if problem is not None and not data:
                raise problem
            if not data:
                raise Broken("the server closed the connection without an answer")
            self._feed(data)
            if self._size > MAX_HEAD and not self._begun:
                raise Broken("the head of the answer does not end")
        if self._ask.method == b"HEAD":
            self._whole = True

    # --- the response --------------------------------------------------------------------------------------

    async def piece(self) -> bytes:
        """More of the body: all that has arrived. Empty at its end. Raises Broken, TimedOut, OSError."""
        while not self._pieces and not self._whole:
            data = await self._read()
            if data:
                self._feed(data)
            elif self._bounded:
                raise Broken("the connection ended before the body did")
            else:
                self._whole = True  # such a body ends with its connection
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def settle(self) -> None:
        """Takes in what has arrived of a body that nobody reads on: its last bytes come after its last word."""
        try:
            if self._begun and not self._whole and (data := self._wire.receive()):
                self._feed(data)
        except (Broken, OSError):
            self._keeps = False

    @property
    def reusable(self) -> bool:
        """Whether the connection may carry another exchange."""
        return self._whole and self._keeps and self._bounded and self._ask.method != b"HEAD"

    @property
    def _bounded(self) -> bool:
        return self.status in (204, 304) or any(
            name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self.headers
        )

    async def _read(self) -> bytes:
        """Bytes of the response; without a wait when they are here, but for a breath now and then."""
        self._unwaited += 1
        if self._unwaited > BREATH:
            await trio.lowlevel.checkpoint()
            self._unwaited = 0
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        data = self._wire.receive()
        if data is not None:
            return data
        self._unwaited = 0
        with trio.move_on_at(min(self.deadline, trio.current_time() + _seconds(self._ask.read_timeout))):
            return await self._wire.read()
        raise Overdue if trio.current_time() >= self.deadline else TimedOut("read")

    def _feed(self, data: bytes) -> None:
        if self._whole:
            raise Broken("the server said more than its answer")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as odd:
            raise Broken("the server changed the protocol unasked") from odd
        except httptools.HttpParserError as wrong:
            raise Broken(f"the server does not speak HTTP: {type(wrong).__name__}") from wrong

    # --- called by the parser ------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._whole:
            raise Broken("the server answered twice")
        self.headers, self.reason = [], b""

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self.version = self._parser.get_http_version()
        self._begun = self.status >= 200  # 1xx come before the answer
        self._keeps = self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        self._whole = self._begun


def _written(ask: Ask) -> bytes:
    """The head of a request. Raises BadRequest: a line's end within it would smuggle in another."""
    lines = [b"%b %b HTTP/1.1" % (ask.method, ask.target), *(b"%b: %b" % header for header in ask.headers)]
    if any(_FORBIDDEN.search(line) for line in lines) or b" " in ask.target:
        raise BadRequest("a control character in the request's head")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _chunked(headers: Headers) -> bool:
    return any(name.lower() == b"transfer-encoding" and value.lower() == b"chunked" for name, value in headers)


def _seconds(timeout: float | None) -> float:
    return float("inf") if timeout is None else timeout
