"""The short way of the hot calls, `POST /api/tasks` and webhooks: straight from ASGI to handler, past the framework.

Same handler, same refusals, same headers as by the long way; it saves the framework's request and response objects, its
context and two tasks a request: 25 µs of CPU instead of 220 around the handler. `post_us` of scripts/bench sockets has
the whole call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from engine.errors import UserError
from web.endpoint.call import WHOLE_BODY
from web.http.exchange import Answer
from web.http.house import House
from web.http.perform import Incoming, concluded, incoming, parse_query, perform, refusal
from web.http.route import Route

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODILESS = frozenset({204, 304})
"""Answers with these statuses have no body, and say nothing of its type and length (RFC 9110 8.6)."""


class ClientLeft(Exception):
    """The connection ended before the body was there."""


async def serve(house: House, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body, performs the route, writes the answer."""
    head = incoming(scope)
    try:
        limit = (route.most and route.most(parse_query(head.raw_query))) or house.limits.body
        body = whole_body(scope, limit)
        if body is None:
            body = await read_body(head, receive, limit, house.limits.body_timeout)
    except ClientLeft:
        return
    except UserError as error:
        await write(send, concluded(house, route.name, head, refusal(error, head.request_id)))
        return
    await write(send, await perform(house, route, head, {}, body))


def whole_body(scope: Scope, limit: int) -> bytes | None:
    """The body when it came together with the head, as nearly always. Raises UserError `body_too_large`."""
    at_once: Callable[[], bytes | None] | None = scope.get("extensions", {}).get(WHOLE_BODY)
    body = at_once() if at_once is not None else None
    if body is not None:
        within(body, limit)
    return body


async def read_body(head: Incoming, receive: Receive, limit: int, timeout: float) -> bytes:
    """The whole body. Raises UserError `body_too_large` or `request_timeout`, or ClientLeft."""
    check_length(head.headers.get("content-length"), limit)
    with trio.move_on_after(timeout):
        return await _gather(await receive(), receive, limit)
    raise UserError("request_timeout", f"The body must arrive within {timeout:.0f} seconds.")


async def _gather(message: Message, receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while message["type"] == "http.request":
        body += message.get("body", b"")
        within(body, limit)
        if not message.get("more_body", False):
            return bytes(body)
        message = await receive()
    raise ClientLeft


def check_length(declared: str | None, limit: int) -> None:
    """Refuses by the declared length, before anything is read. Raises UserError `body_too_large`."""
    if declared is not None and declared.isdecimal() and int(declared[:12]) > limit:
        raise too_large(limit)


def within(body: bytes | bytearray, limit: int) -> None:
    """Raises UserError `body_too_large` when the body is longer than the limit."""
    if len(body) > limit:
        raise too_large(limit)


def too_large(limit: int) -> UserError:
    """How a body above the limit is refused."""
    return UserError("body_too_large", f"A body may have {limit} bytes. Send less, or send a URL instead of the data.")


async def write(send: Send, answer: Answer) -> None:
    """Head and body, each in one message."""
    headers = [(name.lower().encode("latin1"), value.encode("latin1")) for name, value in answer.headers]
    if answer.status not in BODILESS:
        headers.append((b"content-type", answer.content_type.encode()))
        headers.append((b"content-length", b"%d" % len(answer.body)))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})
