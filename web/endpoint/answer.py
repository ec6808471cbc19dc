"""An answer's bytes: its head, and its body framed by length, by chunks or by the connection's end (RFC 9112 6).

The framing is ours, whatever the application says of it; what it declares must be true. Pure; imports `head`'s types.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Iterable
from http import HTTPStatus
from wsgiref.handlers import format_date_time

from web.endpoint.head import Headers

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
EXTRA_HEADERS: dict[int, Headers] = {
    426: [(b"sec-websocket-version", b"13")],
    429: [(b"retry-after", b"5")],
    503: [(b"retry-after", b"5")],
}
_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_HEAD = re.compile(rb"[^\r\n]*+\r\n(?:[-!#$%&'*+.^_`|~0-9A-Za-z]++: [\t\x20-\x7e\x80-\xff]*+\r\n)*+")
_OURS = frozenset({b"connection", b"content-length", b"transfer-encoding", b"date"})


def head_of(status: int, headers: Collection[tuple[bytes, bytes]]) -> bytes:
    """Line and headers without the empty line. Raises ValueError when they would say more than they are meant to."""
    line = _LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
    head = line + b"".join([b"%b: %b\r\n" % header for header in headers])
    if head.count(b"\n") != len(headers) + 1 or _HEAD.fullmatch(head) is None:
        raise ValueError("a header of the answer has characters that no header may have")
    return head


def problem(status: int, code: str, detail: str = "") -> tuple[Headers, bytes]:
    """Headers and body of a refusal in the endpoint's own name (RFC 9457)."""
    title = HTTPStatus(status).phrase
    known = {"type": "about:blank", "title": title, "status": status, "detail": detail or title, "code": code}
    body = json.dumps(known).encode()
    headers = [(b"content-type", b"application/problem+json"), *EXTRA_HEADERS.get(status, [])]
    return headers, body


def refusal(status: int, code: str, detail: str = "") -> bytes:
    """A whole answer of the endpoint's own, after which the connection is closed."""
    headers, body = problem(status, code, detail)
    framing = [(b"content-length", b"%d" % len(body)), (b"connection", b"close"), (b"date", date())]
    return head_of(status, headers + framing) + b"\r\n" + body


class _Clock:
    """The Date header's value, made once a second."""

    at = 0
    value = b""


def date() -> bytes:
    """Now, as HTTP writes it."""
    now = int(time.time())
    if now != _Clock.at:
        _Clock.at, _Clock.value = now, format_date_time(now).encode("ascii")
    return _Clock.value


class Answer:
    """Makes the bytes of one answer. `begun` once there are any; `done` once there will be no more; `close` says that
    the connection must end with it."""

    __slots__ = ("_chunked", "_head", "_left", "_silent", "begun", "close", "done")

    def __init__(self) -> None:
        self.begun = self.done = self.close = False
        self._head: bytes | None = None
        self._left: int | None = None  # of the declared length
        self._chunked = False
        self._silent = False  # an answer to HEAD, or one that has no body

    @property
    def started(self) -> bool:
        """Whether the application has said what it answers with."""
        return self._head is not None

    def start(
        self,
        status: int,
        headers: Iterable[tuple[bytes, bytes]],
        method: str = "GET",
        version: str = "1.1",
        close: bool = False,
    ) -> None:
        """Decides the framing. Nothing is to be sent yet: until the body comes, there may be another answer.

        Raises ValueError when the headers are none.
        """
        kept, length = [], None
        for header in headers:
            name = header[0].lower()
            if name not in _OURS:
                kept.append(header)
            elif name == b"content-length":
                length = header[1]
                self._left = int(length)
            elif name == b"connection":
                close = close or b"close" in header[1].lower()
        bodiless = status in (204, 304)
        self._silent = bodiless or method == "HEAD"
        if length is not None:
            kept.append((b"content-length", length))
        elif not bodiless and version == "1.1":
            self._chunked = True
            kept.append((b"transfer-encoding", b"chunked"))
        elif not self._silent:
            close = True
        kept.append((b"date", date()))
        if close:
            kept.append((b"connection", b"close"))
        self.close = close
        self._head = head_of(status, kept) + b"\r\n"

    def body(self, data: bytes, more: bool) -> bytes:
        """The bytes to send for this part of the body. Raises ValueError when it is not as long as was declared."""
        assert self._head is not None
        if self._silent:
            data = b""
        elif self._left is not None:
            self._left -= len(data)
            if self._left < 0 or (self._left and not more):
                raise ValueError("the body is not as long as its Content-Length says")
        elif self._chunked:
            data = (b"%x\r\n%b\r\n" % (len(data), data) if data else b"") + (b"" if more else LAST_CHUNK)
        if not self.begun:
            self.begun, data = True, self._head + data
        self.done = not more
        return data
