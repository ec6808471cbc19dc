"""The way of a stream of tokens from a service: when a wait has lasted too long, and what an answer's head says.

Works on responses of httpx and of httpx2 (the SDKs'), which look alike. What is in the stream is the readers' matter.
May import `failures`, `pace` and the names of `engine.http`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

import msgspec
import trio
from attrs import evolve, frozen

from engine.http.exchange import Exchange, Overdue
from engine.http.transport import EXCHANGE
from engine.providers.failures import classify, failed
from engine.providers.pace import EVERYBODYS, Pace
from engine.providers.protocol import Failed, FailureKind

MAX_ERROR_BYTES = 65_536
ERROR_PATIENCE = 5.0
"""Seconds for the body of a refusal."""


@frozen
class Deadlines:
    """In seconds. `first_token` includes the time that the request waits for its turn at the server."""

    connect: float = 5.0
    first_token: float = 120.0
    between_tokens: float = 30.0


class Problem(Exception):
    """Ends a stream with `failure`."""

    def __init__(self, failure: Failed) -> None:
        super().__init__(failure.code)
        self.failure = failure


class Response(Protocol):
    """As much of a response as is needed, with its body still to come."""

    @property
    def status_code(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def extensions(self) -> Mapping[str, Any]: ...

    def aiter_bytes(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None: ...


Ask = Callable[[], Awaitable[Response]]
"""Sends the request and answers when the response's head is there; what it raises is explained by who made it."""


class Stream:
    """One answer on its way: `open`; within `begun`, `piece` until it is empty; `heard` after each that held a word."""

    def __init__(self, deadlines: Deadlines, pace: Pace = EVERYBODYS) -> None:
        self._between = deadlines.between_tokens
        self._pace = pace
        self._limit = deadlines.first_token
        self._deadline = trio.current_time() + self._limit
        self._read_at: float | None = None
        self._exchange: Exchange | None = None
        self._speaks = False

    async def open(self, ask: Ask) -> Response:
        """Asks. Raises Problem when no answer comes in time."""
        with trio.move_on_at(self._deadline):
            return await ask()
        raise Problem(silent("an answer", self._limit))

    @contextmanager
    def begun(self, response: Response) -> Iterator[None]:
        """Reads this response's body, for the length of the block."""
        self._chunks = aiter(response.aiter_bytes())
        self._exchange = response.extensions.get(EXCHANGE)
        with self._pace.joined():
            yield

    async def piece(self) -> bytes:
        """More of the body, empty at its end. Raises Problem when nothing comes in time."""
        if self._read_at is not None:
            await self._pace.rest(self._read_at)
        if self._exchange is None:
            with trio.move_on_at(self._deadline):
                return await anext(self._chunks, b"")
        elif trio.current_time() < self._deadline:  # else it was pings that kept us from waiting
            self._exchange.deadline = self._deadline
            piece = await self._next()
            if piece is not None:
                return piece
        raise Problem(silent("a token", self._limit))

    async def _next(self) -> bytes | None:
        """All that has arrived; None when nothing did in time."""
        try:
            piece = await anext(self._chunks, b"")
        except Overdue:
            return None
        if self._speaks:
            self._read_at = trio.current_time()
        return piece

    def heard(self, text: bool) -> None:
        """The service works: the wait begins anew, now that our own reader has dealt with what came."""
        self._limit = self._between
        self._deadline = trio.current_time() + self._limit
        self._speaks = self._speaks or text


async def check(response: Response) -> None:
    """Raises Problem unless the response is a stream of events."""
    if response.status_code == 200:
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "text/event-stream":
            return
        raise Problem(failed(FailureKind.RETRYABLE, "bad_response", raw="content type"))
    error: dict[str, Any] = {}
    with trio.move_on_after(ERROR_PATIENCE):
        error = await _error_of(response)
    raise Problem(classify(response.status_code, error, retry_after(response.headers) or _delay_in(error)))


async def _error_of(response: Response) -> dict[str, Any]:
    said = b""
    async for chunk in response.aiter_bytes():
        said += chunk
        if len(said) > MAX_ERROR_BYTES:
            return {}
    try:
        return error_in(msgspec.json.decode(said))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}


def error_in(body: Any) -> dict[str, Any]:
    """The error object of a service's answer, whether it stands alone or under `error`; empty when there is none.

    Gemini's answers to some requests are a list of one; its `status` is what others call `type`.
    """
    if isinstance(body, list) and body:
        body = body[0]
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, str):
        return {"message": error}
    if not isinstance(error, dict):
        return {}
    return {"type": error["status"], **error} if "status" in error else error


def _delay_in(error: dict[str, Any]) -> float | None:
    """Seconds, where Google's errors say them: `{"@type": "…RetryInfo", "retryDelay": "3.5s"}` among the details."""
    details = error.get("details")
    for detail in details if isinstance(details, list) else ():
        delay = detail.get("retryDelay") if isinstance(detail, dict) else None
        if isinstance(delay, str) and delay.endswith("s") and delay[:-1].replace(".", "", 1).isdigit():
            return float(delay[:-1])
    return None


def silent(what: str, seconds: float) -> Failed:
    """Nothing came for `seconds`, when `what` was due."""
    failure = failed(FailureKind.RETRYABLE, "timeout")
    return evolve(failure, message=f"The provider sent nothing for {seconds:g} s: {what} was due.")


def trouble(library: Any, problem: Exception) -> Failed | None:
    """What an exception of httpx (or httpx2, as `library`) means; None: it is none of its."""
    if not isinstance(problem, library.RequestError):
        return None
    if isinstance(problem, library.ConnectError | library.ConnectTimeout | library.PoolTimeout):
        code = "provider_down"  # nothing was sent
    elif isinstance(problem, library.DecodingError | library.LocalProtocolError):
        code = "bad_response"
    else:
        code = "stream_broken"
    return failed(FailureKind.RETRYABLE, code, raw=type(problem).__name__)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from the header in either of its forms (RFC 9110, 10.2.3), or OpenAI's own in milliseconds."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        said = headers.get(name)
        if said is None:
            continue
        try:
            seconds = float(said) * unit
        except ValueError:
            seconds = _until(said)
        if 0 <= seconds < float("inf"):
            return seconds
    return None


def _until(date: str) -> float:
    """Seconds until an HTTP date; 0 when it is over, and below when it is none."""
    try:
        at = parsedate_to_datetime(date)
    except ValueError:
        return -1.0
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
