"""JSON that PostgreSQL takes: what its text cannot hold is replaced, everything else is left alone.

`jsonb` and `text` refuse NUL and half surrogate pairs, both of which models and clients do produce; each becomes
U+FFFD. Pure; may import msgspec and psycopg's wrapper for parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from psycopg.types.json import Jsonb

NUL = b"\\u0000"


def to_json(value: object) -> bytes:
    """`value` (builtins, attrs classes, UUIDs) as JSON in UTF-8.

    Raises:
        TypeError, ValueError, RecursionError: it has no JSON form, or is nested too deeply.
    """
    try:
        encoded = msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(clean(msgspec.to_builtins(value)))
    # an escaped backslash before u0000 looks the same here: that only costs the longer way
    return msgspec.json.encode(clean(msgspec.json.decode(encoded))) if NUL in encoded else encoded


def clean(value: Any) -> Any:
    """`value`, built of builtins, with every string made storable."""
    match value:
        case str():
            return clean_text(value)
        case dict():
            return {clean(key): clean(inner) for key, inner in value.items()}
        case list() | tuple():
            return [clean(inner) for inner in value]
        case _:
            return value


def clean_text(text: str) -> str:
    """`text` without NUL and lone surrogates."""
    return text.replace("\0", "\ufffd").encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def storable(text: str) -> bool:
    """Whether PostgreSQL can hold `text`. What it cannot hold, it cannot find either."""
    return ("\0" not in text and text.isprintable()) or clean_text(text) == text


def array(rows: Iterable[bytes]) -> Jsonb:
    """Encoded rows as one parameter of type jsonb, for `jsonb_to_recordset`."""
    return Jsonb(b"[" + b",".join(rows) + b"]", dumps=_as_it_is)


def document(value: object) -> Jsonb:
    """`value` as a parameter of type jsonb."""
    return Jsonb(to_json(value), dumps=_as_it_is)


def _as_it_is(encoded: bytes) -> bytes:
    return encoded
