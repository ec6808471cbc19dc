"""A request for a WebSocket, read: is it one, is it sound, what does it offer. Pure; imports data only."""

from __future__ import annotations

import binascii
from base64 import b64decode
from typing import Any

from websockets.exceptions import InvalidHeader, NegotiationError
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.headers import build_extension, parse_extension

from web.endpoint.head import Head, tokens
from web.sockets.transport import Upgrade

EXTENSION = "elwift.socket"
"""The extension of a websocket scope by which the application hands the connection to a Socket process."""
DEFLATE = ServerPerMessageDeflateFactory(
    server_max_window_bits=12, client_max_window_bits=12, compress_settings={"memLevel": 5}
)


def asks_for_websocket(head: Head) -> bool:
    """RFC 6455 4.2.1; anything else is an ordinary request, whatever it would like to upgrade to."""
    if not head.upgrades or head.method != "GET":
        return False
    found = dict(head.headers)
    return found[b"upgrade"].lower() == b"websocket" and b"upgrade" in tokens(head.headers, b"connection")


def upgrade_of(scope: Any) -> Upgrade:
    """The request of an ASGI websocket scope, of any server."""
    return Upgrade(
        path=scope["path"],
        query=scope["query_string"].decode("latin-1"),
        headers=tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]),
        client=(scope.get("client") or ("",))[0],
        secure=scope["scheme"] in ("wss", "https"),
        subprotocols=tuple(scope.get("subprotocols", ())),
    )


def flaw(head: Head) -> tuple[int, str] | None:
    """Status and code of what is wrong with an upgrade request in itself."""
    found = dict(head.headers)
    if found.get(b"sec-websocket-version") != b"13":
        return 426, "websocket_version_not_supported"
    if head.length != 0:
        return 400, "websocket_request_with_a_body"
    try:
        key = b64decode(found.get(b"sec-websocket-key", b""), validate=True)
    except binascii.Error:
        key = b""
    return None if len(key) == 16 else (400, "bad_websocket_key")


def negotiate_deflate(offers: str) -> tuple[str | None, list[Extension]]:
    """The answer to a Sec-WebSocket-Extensions header, and what it sets up."""
    try:
        parsed = parse_extension(offers) if offers else []
    except InvalidHeader:
        return None, []
    for name, parameters in parsed:
        if name == DEFLATE.name:
            try:
                answer, extension = DEFLATE.process_request_params(parameters, [])
            except NegotiationError:
                continue
            return build_extension([(DEFLATE.name, answer)]), [extension]
    return None, []
