"""One HTTP exchange as data: what a handler gets and what it answers, without a web framework in it.

Handlers are `async (House, Ask) -> Answer` and raise `UserError` to refuse; the adapters in `app` and `direct`
turn real requests into `Ask` and write `Answer` out. may import the engine and `web.auth`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from secrets import token_hex
from typing import Any

import msgspec
from attrs import field, frozen

from web.auth import Identity
from web.http.house import House

JSON = "application/json"
UNCACHED = ("Cache-Control", "no-store")
encode = msgspec.json.Encoder().encode
"""JSON bytes of anything the views make; one encoder, re-used."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_TRACE_PARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


@frozen
class Ask:
    """A request, read whole. Header names are lower case; of a repeated query name the first value counts."""

    method: str
    path: str
    headers: Mapping[str, str]
    query: Mapping[str, str]
    args: Mapping[str, str]
    body: bytes
    identity: Identity
    request_id: str

    @property
    def trace_parent(self) -> str | None:
        """The caller's W3C trace context, if any."""
        return trace_parent(self.headers)


@frozen
class Answer:
    """A response, whole."""

    body: bytes = b""
    status: int = 200
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = field(default=())


Handler = Callable[[House, Ask], Awaitable[Answer]]


def json(value: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """An answer with a JSON body. It is somebody's own and of this moment: no cache keeps it."""
    return Answer(encode(value), status, JSON, (*headers, UNCACHED))


def trace_parent(headers: Mapping[str, str]) -> str | None:
    """W3C trace context, when it is well-formed; anything else is ignored, as the standard asks."""
    value = headers.get("traceparent")
    return value if value and _TRACE_PARENT.fullmatch(value) else None


def request_id(given: str | None) -> str:
    """The caller's id for this request when it is harmless to log and to echo, else a new one."""
    return given if given and _REQUEST_ID.fullmatch(given) else token_hex(8)
