"""Reading what a client sent: content type, JSON, shape. Pure functions on bytes; every fault is a `UserError`."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from engine.errors import Problem, UserError

T = TypeVar("T")
JsonObject = dict[str, Any]

_JSON_TYPE = re.compile(r"application/(json|[\w.+-]+\+json)\s*(;.*)?", re.IGNORECASE)
_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]+)`)?$", re.DOTALL)


def decode(content_type: str | None, body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """The body as `decoder`'s type.

    Raises:
        UserError: `unsupported_media_type`, `invalid_encoding`, `invalid_json` or `invalid_request`.
    """
    if not _JSON_TYPE.fullmatch(content_type or ""):
        raise UserError("unsupported_media_type", "Send the body as JSON, with Content-Type: application/json.")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _misshapen(error) from None
    except UnicodeDecodeError as error:
        raise UserError("invalid_encoding", f"Byte {error.start} of a string is not UTF-8; send UTF-8.") from None
    except RecursionError:
        raise UserError("invalid_json", "The JSON is nested too deeply; send a flatter one.") from None
    except msgspec.DecodeError as error:
        raise UserError("invalid_json", f"The body cannot be read as JSON: {error}.") from None


def _misshapen(error: msgspec.ValidationError) -> UserError:
    found = _AT.match(str(error))
    what, path = (found["what"], found["path"]) if found else (str(error), None)
    where = pointer(path or "$")
    place = where or "the body"
    return UserError("invalid_request", f"{place}: {what}.", details=(Problem(what, where),))


def pointer(path: str) -> str:
    """A JSON pointer (RFC 6901) from msgspec's path: `$.input.steps` is `/input/steps`, `$.a[0]` is `/a/0`."""
    parts = re.findall(r"\.([^.\[\]]+)|\[([^\]]*)\]", path)
    return "".join("/" + (name or index).replace("~", "~0").replace("/", "~1") for name, index in parts)


def nul_at(value: Any, where: str = "") -> str | None:
    """A JSON pointer to the first string with a NUL in it (PostgreSQL has no room for one), or None."""
    match value:
        case str():
            return where if "\0" in value else None
        case dict():
            found = (where if "\0" in key else nul_at(item, f"{where}/{key}") for key, item in value.items())
        case list():
            found = (nul_at(item, f"{where}/{index}") for index, item in enumerate(value))
        case _:
            return None
    return next((place for place in found if place is not None), None)


def bounded_int(text: str | None, name: str, default: int, low: int, high: int) -> int:
    """A number of the query string. Raises UserError `invalid_request` when it is none, or out of bounds."""
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
        message = f"{name} must be a whole number from {low} to {high}."
        raise UserError("invalid_request", message, details=(Problem(message, f"?{name}"),))
    return int(text)


def one_of(text: str | None, name: str, choices: dict[str, T]) -> T | None:
    """A word of the query string. Raises UserError `invalid_request` when it is not among `choices`."""
    if text is None:
        return None
    if text not in choices:
        message = f"{name} must be one of {', '.join(choices)}."
        raise UserError("invalid_request", message, details=(Problem(message, f"?{name}"),))
    return choices[text]
