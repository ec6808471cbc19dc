"""What a WebSocket request may become: a refusal, a socket of ours, or a plain ASGI WebSocket.

The application decides, being run with an ASGI scope of type `websocket`. It may answer as ASGI has it, or call the
scope's extension `elwift.socket` with an `Accept`: then the connection is taken over by a Socket process, and what
the application returns or sends afterwards is of no account. Nothing is accepted before the decision (RFC 6455 4.2.2).
May import this package.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import trio
from websockets.extensions import Extension
from websockets.utils import accept_key

from web.endpoint.answer import Answer, head_of
from web.endpoint.bridge import Bridge
from web.endpoint.head import Head
from web.endpoint.http1 import ClientGone, Http1, Message
from web.endpoint.hub import Hub
from web.endpoint.stream import StreamTransport
from web.endpoint.upgrade import EXTENSION, negotiate_deflate, upgrade_of
from web.sockets.transport import Accept, CloseCode, StartSocket


class Handshake:
    """The exchange of a WebSocket request (see `http1.Exchange`). `taken` is set once it was accepted."""

    def __init__(self, protocol: Http1, head: Head, hub: Hub) -> None:
        self._protocol = protocol
        self._hub = hub
        self._decided = trio.Event()
        self._greeted = False
        self._refusal: Message | None = None
        self._answer = Answer()
        self._bridge: Bridge | None = None
        self.start: StartSocket | None = None
        self.taken: StreamTransport | None = None
        headers = head.headers
        path, _, query = head.target.partition(b"?")
        client, secured = protocol.origin(head)
        offered = b",".join(value for name, value in headers if name == b"sec-websocket-protocol").decode("latin-1")
        self.scope: Message = {
            "type": "websocket",
            "asgi": {"spec_version": "2.3", "version": "3.0"},
            "scheme": "wss" if secured else "ws",
            "http_version": "1.1",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "client": client,
            "server": None,
            "state": {},
            "subprotocols": [name.strip() for name in offered.split(",") if name.strip()],
            "extensions": {"websocket.http.response": {}, EXTENSION: self.take},
        }

    # --- decided by the application ------------------------------------------------------------------

    def take(self, accept: Accept) -> int:
        """Accepts; or, when the server or this user has too many sockets, answers the status to refuse it with."""
        if self._decided.is_set():
            raise RuntimeError("this WebSocket has been answered already")
        status = self._hub.roster.refusal(accept)
        if not status:
            self._accept(accept)
            self.start = accept.start
        return status

    async def receive(self) -> Message:
        if not self._greeted:
            self._greeted = True
            return {"type": "websocket.connect"}
        await self._decided.wait()  # no bytes are looked at before; the decision is the application's own
        if self._bridge is None:
            return {"type": "websocket.disconnect", "code": int(CloseCode.GOING_AWAY)}
        return await self._bridge.receive()

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if self._bridge is not None:
            await self._bridge.send(message)
        elif kind == "websocket.accept":
            await self._accept_plainly(message)
        elif self.taken is not None:
            return  # the connection is a Socket process's now; what a framework adds by itself is not wanted
        elif kind == "websocket.close":
            await self._refuse(403, [], b"", more=False)
        elif kind == "websocket.http.response.start":
            self._refusal = message
        elif kind == "websocket.http.response.body" and self._refusal is not None:
            more = bool(message.get("more_body"))
            await self._refuse(self._refusal["status"], self._refusal["headers"], message.get("body", b""), more)
        else:
            raise RuntimeError(f"{kind} is out of place in a WebSocket handshake")

    async def finish(self, crashed: bool) -> None:
        """A handshake left open is refused; a plain WebSocket left open is closed as crashed, never with 1000."""
        if self._bridge is not None:
            self._bridge.transport.close(CloseCode.CRASHED)
        elif self.taken is None and not self._protocol.over:
            self._protocol.apologise(500, "internal_error", "the handshake was not answered")
        await self._protocol.flush()

    # --- done ----------------------------------------------------------------------------------------

    def _accept(self, accept: Accept, more: list[tuple[bytes, bytes]] | None = None) -> StreamTransport:
        found = dict(self.scope["headers"])
        headers = [
            (b"upgrade", b"websocket"),
            (b"connection", b"Upgrade"),
            (b"sec-websocket-accept", accept_key(found[b"sec-websocket-key"].decode("ascii")).encode()),
        ]
        if accept.subprotocol is not None:
            if accept.subprotocol not in self.scope["subprotocols"]:
                raise RuntimeError("a subprotocol can be accepted only when it was offered")
            headers.append((b"sec-websocket-protocol", accept.subprotocol.encode()))
        answer, extensions = None, list[Extension]()
        if self._hub.settings.compression:
            answer, extensions = negotiate_deflate(found.get(b"sec-websocket-extensions", b"").decode("latin-1"))
        if answer is not None:
            headers.append((b"sec-websocket-extensions", answer.encode()))
        head = head_of(101, headers + (more or [])) + b"\r\n"
        self.taken = StreamTransport(self._hub, self._protocol.wire, upgrade_of(self.scope), accept, head, extensions)
        self._protocol.over = True
        self._decided.set()
        return self.taken

    async def _accept_plainly(self, message: Message) -> None:
        status = self._hub.roster.refusal(_PLAIN)
        if status:
            await self._refuse(status, [], b"", more=False)
            return
        subprotocol = message.get("subprotocol")
        transport = self._accept(Accept(start=_nobody, subprotocol=subprotocol), list(message.get("headers", [])))
        self._bridge = Bridge(transport)
        transport.begin(self._bridge.deliver, self.early())

    def early(self) -> bytes:
        """What the client sent right behind its request."""
        return self._protocol.take_rest()

    async def _refuse(self, status: int, headers: Any, body: bytes, more: bool) -> None:
        protocol, answer = self._protocol, self._answer
        if protocol.over:
            raise ClientGone
        if not answer.started:
            self._decided.set()
            kept = [header for header in headers if header[0].lower() != b"content-length"]
            if not more:
                kept.append((b"content-length", b"%d" % len(body)))
            answer.start(status, kept, close=True)
        out = answer.body(body, more)
        protocol.answering = True
        if not more:
            protocol.leave()
        await protocol.write(out)


async def _nobody(transport: object) -> Any:
    raise RuntimeError("a plain WebSocket has no Socket process")


_PLAIN = Accept(start=_nobody)
