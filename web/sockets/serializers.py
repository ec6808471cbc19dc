"""The two wires of Phoenix: V1 (objects) and V2 (arrays, and a binary form for raw payloads).

Pure: messages in, frames out, and back. The JSON is compact, because one common client cuts frames at their commas
instead of parsing them; and text is not escaped to ASCII, for the same client. The page docs/protocol.md has the
frames in full; the layouts are those of phoenix's `lib/phoenix/socket/serializers`.
"""

from __future__ import annotations

import re
from typing import Any, Final, Protocol

import msgspec

from web.sockets.frames import REPLY, BadFrame, Binary, Inbound, Ref, Unencodable, Wire

_PUSH: Final = 0
_REPLY: Final = 1
_BROADCAST: Final = 2

_encode = msgspec.json.Encoder().encode
_decode_array = msgspec.json.Decoder(Inbound).decode


class Serializer(Protocol):
    """One version of the wire.

    `lead(J) + tail(T, E, payload)` is the frame of an event for the member that joined with J: the tail is the same
    for all members, so it is encoded once and each member's lead is put before it.
    """

    @property
    def version(self) -> str: ...

    def decode(self, message: str | bytes) -> Inbound:
        """A frame from a text (str) or binary (bytes) message. Raises BadFrame."""
        ...

    def frame(self, join_ref: Ref, ref: Ref, topic: str, event: str, payload: Any) -> Wire:
        """A frame with all five fields. Raises Unencodable."""
        ...

    def reply(self, join_ref: Ref, ref: Ref, topic: str, status: str, response: Any) -> Wire:
        """The answer to message R. Raises Unencodable."""
        ...

    def lead(self, join_ref: Ref) -> bytes: ...

    def tail(self, topic: str, event: str, payload: Any) -> Wire:
        """The part of an event's frame that all members share. A Binary one is whole and takes no lead.

        Raises Unencodable: the payload is neither a JSON object nor bytes.
        """
        ...

    def push_binary(self, join_ref: Ref, topic: str, event: str, payload: bytes) -> Binary:
        """A binary event for one member alone, with its join_ref. Raises Unencodable."""
        ...


def negotiate(vsn: str | None) -> Serializer | None:
    """The serializer for the `vsn` of a handshake; None refuses it. A missing vsn means 1.0.0, the first wire.

    Full semantic versions only: `~> 1.0.0` and `~> 2.0.0` in Elixir's terms, as phoenix asks for.
    """
    match = _VERSION.fullmatch("1.0.0" if vsn is None else vsn)
    return _SERIALIZERS.get(match[1]) if match else None


class V2:
    """`[J, R, topic, event, payload]`, and the binary form when the payload is bytes."""

    version: Final = "2.0.0"

    def decode(self, message: str | bytes) -> Inbound:
        if isinstance(message, bytes):
            return _unpack_push(message)
        try:
            return _decode_array(message)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as problem:
            raise BadFrame(f"not a V2 frame: {_kind(problem)}") from None

    def frame(self, join_ref: Ref, ref: Ref, topic: str, event: str, payload: Any) -> Wire:
        return _json((join_ref, ref, topic, event, payload))

    def reply(self, join_ref: Ref, ref: Ref, topic: str, status: str, response: Any) -> Wire:
        if isinstance(response, bytes):
            return _pack(_REPLY, (_text(join_ref), _text(ref), topic, status), response)
        return _json((join_ref, ref, topic, REPLY, {"status": status, "response": response}))

    def lead(self, join_ref: Ref) -> bytes:
        return b"[" + _encode(join_ref) + b",null,"

    def tail(self, topic: str, event: str, payload: Any) -> Wire:
        if isinstance(payload, bytes):
            return _pack(_BROADCAST, (topic, event), payload)
        return _json((topic, event, _object(payload)))[1:]

    def push_binary(self, join_ref: Ref, topic: str, event: str, payload: bytes) -> Binary:
        return _pack(_PUSH, (_text(join_ref), topic, event), payload)


class V1:
    """`{"topic", "event", "payload", "ref"}` and nothing else: some clients take the keys as arguments."""

    version: Final = "1.0.0"

    def decode(self, message: str | bytes) -> Inbound:
        if isinstance(message, bytes):
            raise BadFrame("the V1 wire has no binary messages")
        try:
            frame = _decode_object(message)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as problem:
            raise BadFrame(f"not a V1 frame: {_kind(problem)}") from None
        return Inbound(None, frame.ref, frame.topic, frame.event, frame.payload)

    def frame(self, join_ref: Ref, ref: Ref, topic: str, event: str, payload: Any) -> Wire:
        if isinstance(payload, bytes):
            raise Unencodable("the V1 wire carries no bytes")
        return _json({"topic": topic, "event": event, "payload": payload, "ref": ref})

    def reply(self, join_ref: Ref, ref: Ref, topic: str, status: str, response: Any) -> Wire:
        return self.frame(None, ref, topic, REPLY, {"status": status, "response": response})

    def lead(self, join_ref: Ref) -> bytes:
        return b""

    def tail(self, topic: str, event: str, payload: Any) -> Wire:
        return self.frame(None, None, topic, event, _object(payload))

    def push_binary(self, join_ref: Ref, topic: str, event: str, payload: bytes) -> Binary:
        raise Unencodable("the V1 wire carries no bytes")


_VERSION: Final = re.compile(r"([12]\.0)\.(?:0|[1-9][0-9]*)(?:\+[0-9A-Za-z.-]+)?")
_SERIALIZERS: Final[dict[str, Serializer]] = {"1.0": V1(), "2.0": V2()}


# --- JSON ---------------------------------------------------------------------------------------------


class _ObjectFrame(msgspec.Struct, frozen=True, gc=False):
    topic: str
    event: str
    payload: Any
    ref: Ref


_decode_object = msgspec.json.Decoder(_ObjectFrame).decode


def _json(value: object) -> bytes:
    try:
        return _encode(value)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as problem:
        raise Unencodable(str(problem)) from problem


_OBJECTS: Final = (dict, msgspec.Struct, msgspec.Raw)


def _object(payload: Any) -> Any:
    """Events carry objects: clients drop, or fail on, anything else."""
    if isinstance(payload, _OBJECTS):
        return payload
    raise Unencodable(f"an event's payload is a JSON object, not {type(payload).__name__}")


def _kind(problem: Exception) -> str:
    """What was wrong, without a word of what the client sent."""
    match problem:
        case msgspec.ValidationError():
            return "wrong shape"
        case UnicodeError():
            return "not UTF-8"
        case RecursionError():
            return "nested too deep"
    return "not JSON"


# --- the binary form: kind, one length byte a header field, the fields, the rest is data ---------------------------


def _pack(kind: int, fields: tuple[str, ...], data: bytes) -> Binary:
    encoded = [field.encode() for field in fields]
    if any(len(field) > 255 for field in encoded):
        raise Unencodable("a header field of a binary frame is at most 255 bytes of UTF-8")
    return Binary(b"".join((bytes((kind, *map(len, encoded))), *encoded, data)))


def _unpack_push(message: bytes) -> Inbound:
    if len(message) < 5 or message[0] != _PUSH:
        raise BadFrame("not a binary push")
    fields: list[str] = []
    start = 5
    try:
        for length in message[1:5]:
            fields.append(_field(message, start, length))
            start += length
    except UnicodeDecodeError:
        raise BadFrame("a header field is not UTF-8") from None
    join_ref, ref, topic, event = fields
    return Inbound(join_ref or None, ref or None, topic, event, message[start:])


def _field(message: bytes, start: int, length: int) -> str:
    field = message[start : start + length]
    if len(field) < length:
        raise BadFrame("a binary push ends inside its header")
    return field.decode()


def _text(ref: Ref) -> str:
    return "" if ref is None else str(ref)
