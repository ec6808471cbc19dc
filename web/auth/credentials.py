"""Where a client may put its token, and how it is found there. Pure; imports nothing of ours.

In order: the `base64url.bearer.phx.…` entry of Sec-WebSocket-Protocol (option `authToken` of phoenix.js), an
Authorization header, the headers of Phoenix's long-poll and of the Python client, then the query.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode
from collections.abc import Iterable, Sequence
from urllib.parse import parse_qsl

from attrs import frozen

BEARER_PROTOCOL = "base64url.bearer.phx."
HEADERS = ("x-phoenix-authtoken", "x-auth-token", "x-api-key")
PARAMETERS = ("token", "api_key")
LONGEST = 8192
"""Characters; a longer token is not looked at."""


@frozen
class Credentials:
    """What a client shows. A token that was there but cannot be read leaves `malformed` set and `token` None."""

    token: str | None = None
    malformed: bool = False

    @classmethod
    def of(
        cls, headers: Iterable[tuple[str, str]] = (), query: str = "", subprotocols: Sequence[str] = ()
    ) -> Credentials:
        """Finds the token of a request. Header names are in lower case; `query` is still percent-encoded."""
        for found in (_in_subprotocols(subprotocols), _in_headers(headers), _in_query(query)):
            if found is not None:
                return found if len(found.token or "") <= LONGEST else cls(malformed=True)
        return cls()


def negotiate(offered: Sequence[str], spoken: Sequence[str] = ("phoenix",)) -> tuple[bool, str | None]:
    """Whether the handshake may go on, and the subprotocol to answer; the bearer entry is not one of the offers."""
    offers = [name for name in offered if not name.startswith(BEARER_PROTOCOL)]
    chosen = next((name for name in offers if name in spoken), None)
    return chosen is not None or not offers, chosen


def _in_subprotocols(offered: Sequence[str]) -> Credentials | None:
    entry = next((name for name in offered if name.startswith(BEARER_PROTOCOL)), None)
    return None if entry is None else _decode(entry.removeprefix(BEARER_PROTOCOL))


def _decode(text: str) -> Credentials:
    """Both alphabets are met in the field: clients write standard base64 under the name of base64url."""
    padded = text.rstrip("=").translate(str.maketrans("+/", "-_"))
    try:
        raw = urlsafe_b64decode(padded + "=" * (-len(padded) % 4)) if padded.isascii() else b""
        return Credentials(raw.decode()) if raw else Credentials(malformed=True)
    except (binascii.Error, UnicodeDecodeError):
        return Credentials(malformed=True)


def _in_headers(headers: Iterable[tuple[str, str]]) -> Credentials | None:
    found = dict(headers)
    if "authorization" in found:
        scheme, _, token = found["authorization"].strip().partition(" ")
        return Credentials(token.strip()) if scheme.lower() == "bearer" and token else Credentials(malformed=True)
    return next((Credentials(found[name].strip()) for name in HEADERS if found.get(name)), None)


def _in_query(query: str) -> Credentials | None:
    if not any(name in query for name in PARAMETERS):
        return None
    found = dict(parse_qsl(query, max_num_fields=100)) if query.count("&") < 100 else {}
    return next((Credentials(found[name]) for name in PARAMETERS if name in found), None)
