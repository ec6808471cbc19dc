"""Phoenix frames as data, and events that are encoded once however many members they go to.

Pure. A frame is (join_ref, ref, topic, event, payload) whatever the version of the wire; `serializers` says how it
looks as bytes. J and R below stand for join_ref and ref. Payloads are JSON values, or `bytes` on the binary wire.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct

Ref = str | int | None
"""What a client chose to name a join or a message; echoed verbatim, its type included."""

PHOENIX: Final = "phoenix"
HEARTBEAT: Final = "heartbeat"
JOIN: Final = "phx_join"
LEAVE: Final = "phx_leave"
REPLY: Final = "phx_reply"
CLOSE: Final = "phx_close"
ERROR: Final = "phx_error"


class Binary(bytes):
    """A whole binary WebSocket message. Plain `bytes` to be sent are a text message in UTF-8."""

    __slots__ = ()


Wire = bytes | Binary


class Inbound(Struct, array_like=True, frozen=True, gc=False):
    """A frame from a client, in the order of its fields on the V2 wire. Further elements are ignored."""

    join_ref: Ref
    ref: Ref
    topic: str
    event: str
    payload: Any


class BadFrame(Exception):
    """Not a frame of this wire: the socket closes with 1011. The message never quotes what the client sent."""


class Unencodable(ValueError):
    """A payload or header that the wire cannot carry: an error of the server's own code; nothing was sent."""
