"""Cross-origin resource sharing (Fetch standard): which pages of other sites may read answers.

Those whose origin the operator allowed, no others; nothing is said to same-origin pages and native clients. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from web.auth import OriginPolicy
from web.http.exchange import Answer

_EXPOSED = "Location, Retry-After, X-Request-Id, Idempotency-Replayed"
_METHODS = "GET, POST, PUT, PATCH, DELETE"
_HEADERS = "Authorization, Content-Type, Idempotency-Key, X-Request-Id, traceparent, tracestate"
Headers = tuple[tuple[str, str], ...]


def sharing(origins: OriginPolicy, headers: Mapping[str, str]) -> Headers:
    """What to add to an answer, so that the asking page may read it."""
    origin = headers.get("origin")
    if origin is None:
        return ()
    host = headers.get("host", "")
    if origin.partition("://")[2] == host or not origins.allows(origin, host):
        return ()
    return (("Access-Control-Allow-Origin", origin), ("Access-Control-Expose-Headers", _EXPOSED), ("Vary", "Origin"))


def preflight(origins: OriginPolicy, headers: Mapping[str, str]) -> Answer:
    """The answer to a browser that asks before it sends (OPTIONS)."""
    shared = sharing(origins, headers)
    if not shared:
        return Answer(status=204, headers=(("Vary", "Origin"),))
    allowed = (
        ("Access-Control-Allow-Methods", _METHODS),
        ("Access-Control-Allow-Headers", _HEADERS),
        ("Access-Control-Max-Age", "600"),
    )
    return Answer(status=204, headers=(*shared, *allowed))
