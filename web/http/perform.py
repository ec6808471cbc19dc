"""One request through one route: who asks, may they, the handler, and every refusal as a problem document.

The only place where HTTP meets failure. What the user caused is a `UserError`; what the house lacks for a moment
(database, room, time) is a 503 with Retry-After; a bug is logged with its traceback and costs one request.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from urllib.parse import parse_qsl

import structlog
from attrs import frozen
from opentelemetry.trace import SpanKind

from engine import tracing
from engine.errors import UserError
from engine.otp import CallFailed
from engine.ports import JournalFull, StorageDown
from web.auth import Credentials, Denied, Identity
from web.auth.origins import LOOPBACK
from web.http import problems
from web.http.cors import sharing
from web.http.exchange import Answer, Ask, request_id, trace_parent
from web.http.house import House
from web.http.route import Route

log = structlog.get_logger("elwift.http")

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_RETRY_SOON = 2.0

NOBODY = Identity("")
"""Who asks on an open route: it does not matter."""


@frozen
class Incoming:
    """A request before anybody looked at it."""

    method: str
    path: str
    headers: Mapping[str, str]
    raw_query: str
    request_id: str
    client: str


def incoming(scope: Mapping[str, object]) -> Incoming:
    """The head of a request from its ASGI scope."""
    raw: list[tuple[bytes, bytes]] = scope["headers"]  # type: ignore[assignment]
    headers = {name.decode("latin1").lower(): value.decode("latin1") for name, value in raw}
    query: bytes = scope.get("query_string", b"")  # type: ignore[assignment]
    client: tuple[str, int] | None = scope.get("client")  # type: ignore[assignment]
    return Incoming(
        method=str(scope["method"]),
        path=str(scope["path"]),
        headers=headers,
        raw_query=query.decode("latin1"),
        request_id=request_id(headers.get("x-request-id")),
        client=client[0] if client else "",
    )


def parse_query(text: str) -> dict[str, str]:
    """The query string; the first value of a repeated name counts, and more than 100 fields count as none."""
    if not text:
        return {}
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=100)
    except ValueError:
        return {}
    return dict(reversed(pairs))


async def perform(house: House, route: Route, head: Incoming, args: Mapping[str, str], body: bytes) -> Answer:
    """The answer to one request, whatever happens inside. Open routes have no span: machines ask them all the time."""
    spans = house.runtime.spans
    if route.open or not spans.on:
        return await _perform(house, route, head, args, body)
    name = f"{route.method} {route.template}"
    with spans.span(name, trace_parent(head.headers), SpanKind.SERVER, _about(route, head)) as span:
        answer = await _perform(house, route, head, args, body)
        assert span is not None
        span.set_attribute("http.response.status_code", answer.status)
        if answer.status >= 500:
            tracing.failed(span, str(answer.status))
        return answer


def _about(route: Route, head: Incoming) -> tracing.Attributes:
    """A request in the words of OpenTelemetry's conventions for HTTP servers."""
    return {
        "http.request.method": head.method,
        "http.route": route.template,
        "url.path": head.path,
        "client.address": head.client,
        "elwift.request.id": head.request_id,
    }


async def _perform(house: House, route: Route, head: Incoming, args: Mapping[str, str], body: bytes) -> Answer:
    started = time.perf_counter()
    identity = NOBODY
    try:
        identity = admit(house, route, head)
        query = parse_query(head.raw_query)
        ask = Ask(head.method, head.path, head.headers, query, args, body, identity, head.request_id)
        answer = await route.handler(house, ask)
    except UserError as error:
        answer = refusal(error, head.request_id)
    except JournalFull as full:
        answer = refusal(_journal_full(full), head.request_id)
    except StorageDown:
        answer = refusal(_STORAGE_DOWN, head.request_id)
    except CallFailed as failed:
        answer = refusal(_no_answer(failed), head.request_id)
    except Exception:  # the edge of the house: a bug costs its own request, and is told in full
        log.exception("request failed", route=route.name, request_id=head.request_id, user=identity.user)
        answer = refusal(_BUG, head.request_id)
    quiet = route.open and answer.status < 400
    return concluded(house, route.name, head, answer, time.perf_counter() - started, identity.user, quiet)


def concluded(
    house: House, route: str, head: Incoming, answer: Answer, seconds: float = 0.0, user: str = "", quiet: bool = False
) -> Answer:
    """The answer with what every answer carries, once it is counted and logged. For refusals before a route, too."""
    house.telemetry.answered(route, answer.status, seconds)
    if house.access_log and not quiet:
        _log(route, head, user, answer.status, seconds)
    shared = sharing(house.origins, head.headers)
    headers = (*answer.headers, *shared, ("X-Request-Id", head.request_id))
    return Answer(answer.body, answer.status, answer.content_type, headers)


def admit(house: House, route: Route, head: Incoming) -> Identity:
    """Who asks. Raises UserError `unauthorized`, `forbidden` or `cross_origin`."""
    if route.open:
        return NOBODY
    check_origin(house, head)
    identity = house.guard.authenticate(Credentials.of(head.headers.items(), head.raw_query))
    if isinstance(identity, Denied):
        raise UserError("unauthorized", f"{identity.message} Send one as Authorization: Bearer ….")
    if route.operator and not identity.operator:
        raise UserError("forbidden", "This is for operators. Use a token with the role operator.")
    return identity


def check_origin(house: House, head: Incoming) -> None:
    """Another site's page may not change things in its visitor's name. Raises UserError `cross_origin`.

    Nor may it read them by a name of its own that resolves to this machine (DNS rebinding) where no token is needed.
    """
    if house.origins.loopback_only and not is_loopback(head.headers.get("host", "")):
        raise UserError("cross_origin", "Without tokens this server answers to localhost alone. Use that name.")
    if head.method not in _SAFE and not house.origins.allows(head.headers.get("origin"), head.headers.get("host")):
        raise UserError("cross_origin", "Pages of this origin may not call here; the operator can allow the origin.")


def is_loopback(host: str) -> bool:
    """Whether a Host header names this machine itself; an absent one comes from no browser."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    return not host or name.strip("[]").lower() in LOOPBACK


def refusal(error: UserError, for_request: str) -> Answer:
    """A problem document, with Retry-After and WWW-Authenticate where they belong."""
    status = problems.kind(error.code).status
    headers: tuple[tuple[str, str], ...] = (("Cache-Control", "no-store"),)
    if error.retry_after is not None:
        headers += (("Retry-After", str(max(1, round(error.retry_after)))),)
    if status == 401:
        headers += (("WWW-Authenticate", "Bearer"),)
    return Answer(problems.document(error, for_request), status, problems.MEDIA_TYPE, headers)


def _journal_full(full: JournalFull) -> UserError:
    message = "The database is away and no more can be kept in memory. Send the request again a little later."
    return UserError("journal_full", message, retry_after=full.retry_after)


def _no_answer(failed: CallFailed) -> UserError:
    log.warning("call failed", reason=str(failed.reason))
    message = "A part of the server did not answer. Ask again; what was accepted before is not lost."
    return UserError("timeout", message, retry_after=_RETRY_SOON)


_STORAGE_DOWN = UserError(
    "storage_down",
    "The database cannot be reached now. Running tasks go on and can be watched; ask for history a little later.",
    retry_after=5.0,
)
_BUG = UserError("internal_error", "This is a fault of the server, and logged. Name the request_id to report it.")


def _log(route: str, head: Incoming, user: str, status: int, seconds: float) -> None:
    log.info(
        "request",
        method=head.method,
        route=route,
        status=status,
        ms=round(seconds * 1000, 2),
        request_id=head.request_id,
        user=user,
        client=head.client,
    )
