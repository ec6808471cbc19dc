"""One HTTP request being answered: ASGI's `receive` and `send` over a connection. May import this package."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import trio

from web.endpoint.answer import CONTINUE, Answer
from web.endpoint.head import Head
from web.endpoint.http1 import Body, ClientGone, Http1, Message

WHOLE_BODY = "elwift.body"
"""The extension of an http scope that answers the whole body at once when it has come already, else None: then
`receive` is to be asked. Who uses it needs no deadline for a wait that there is not."""
ASGI = {"spec_version": "2.1", "version": "3.0"}


class Call:
    """See `http1.Exchange`."""

    __slots__ = ("_answer", "_body", "_expects", "_handed_over", "_head", "_protocol", "_since", "scope")

    def __init__(self, protocol: Http1, head: Head) -> None:
        body = protocol.body
        assert body is not None
        self._protocol = protocol
        self._head = head
        self._body: Body = body
        self._answer = Answer()
        self._expects = head.expects_continue
        self._handed_over = False  # whether the application knows that the body is whole
        self._since = 0.0  # when it was first waited for, by trio's clock
        path, _, query = head.target.partition(b"?")
        text = path.decode("ascii")
        client, secured = protocol.origin(head)
        self.scope: Message = {
            "type": "http",
            "asgi": ASGI,
            "http_version": head.version,
            "method": head.method,
            "scheme": "https" if secured else "http",
            "path": unquote(text) if "%" in text else text,
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": head.headers,
            "client": client,
            "server": None,
            "state": {},
            "extensions": {WHOLE_BODY: self._whole_body},
        }

    # --- in ------------------------------------------------------------------------------------------

    def _whole_body(self) -> bytes | None:
        if not self._body.whole or self._handed_over or self._protocol.over:
            return None
        self._handed_over = True
        return self._body.hand_over()

    async def receive(self) -> Message:
        body, protocol = self._body, self._protocol
        while not body.held and (self._handed_over or not body.whole):
            if protocol.over:
                return {"type": "http.disconnect"}
            if body.whole:
                await self._watch()
            else:
                await self._read_body()
        self._handed_over = body.whole
        return {"type": "http.request", "body": body.hand_over(), "more_body": not body.whole}

    async def _watch(self) -> None:
        """Waits for the client to leave; without a deadline, for it is waiting for its answer."""
        if self._protocol.begun:
            await trio.sleep_forever()  # the next request is here already; the end of this one ends the wait
        await self._read()

    async def _read_body(self) -> None:
        settings = self._protocol.settings
        self._since = self._since or trio.current_time()
        extra = self._body.got / settings.min_body_rate if settings.min_body_rate else 0.0
        with trio.move_on_at(self._since + settings.body_timeout + extra) as scope:
            if self._expects and not (self._body.got or self._answer.begun):
                self._expects = False
                await self._protocol.write(CONTINUE)
            await self._read()
        if scope.cancelled_caught:
            self._protocol.refuse(408, "request_timeout", "a body that does not come")

    async def _read(self) -> None:
        try:
            await self._protocol.read()
        except (OSError, trio.ClosedResourceError):
            self._protocol.abort()

    # --- out -----------------------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        answer, kind = self._answer, message["type"]
        if self._protocol.over and not answer.done:
            raise ClientGone
        if kind == "http.response.start" and not answer.started:
            self._start(int(message["status"]), message.get("headers", ()))
        elif kind == "http.response.body" and answer.started and not answer.done:
            await self._send_body(bytes(message.get("body", b"")), bool(message.get("more_body", False)))
        else:
            raise RuntimeError(f"{kind} is out of place in this answer")

    def _start(self, status: int, headers: Any) -> None:
        close = not self._head.keep_alive or not self._body.whole or self._protocol.is_last()
        self._answer.start(status, headers, self._head.method, self._head.version, close)

    async def _send_body(self, data: bytes, more: bool) -> None:
        out = self._answer.body(data, more)
        self._protocol.answering = True
        if not more:
            self._end()
        await self._protocol.write(out)

    def _end(self) -> None:
        self._body.release()
        if self._answer.close or not self._body.whole:
            self._protocol.leave()

    async def finish(self, crashed: bool) -> None:
        """An answer that was not begun is a 500; one that was not finished ends with its connection, and nothing else
        tells the client that it is not whole."""
        if not (self._answer.done or self._protocol.over):
            self._protocol.apologise(500, "internal_error")
        await self._protocol.flush()
