"""A request whose answer is a stream of server-sent events, on httpx: every wait has a deadline, every fault a meaning.

What is in the events is the provider's matter. May import httpx, `sse` and `failures`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import httpx
import msgspec
import trio
from attrs import evolve, frozen

from engine.providers.failures import classify, failed
from engine.providers.protocol import Failed, FailureKind
from engine.providers.sse import Decoder, EventTooLarge, ServerSentEvent

MAX_ERROR_BYTES = 65_536


@frozen
class Deadlines:
    """In seconds. `first_token` includes the time that the request waits for its turn at the server."""

    connect: float = 5.0
    first_token: float = 60.0
    between_tokens: float = 30.0


class Problem(Exception):
    """Ends a stream with `failure`."""

    def __init__(self, failure: Failed) -> None:
        super().__init__(failure.code)
        self.failure = failure


async def server_sent_events(
    client: httpx.AsyncClient, request: httpx.Request, deadlines: Deadlines
) -> AsyncGenerator[ServerSentEvent, None]:
    """Sends `request` and gives the events as they come, to the end of the response. Raises Problem."""
    try:
        with trio.move_on_after(deadlines.first_token) as scope:
            response = await client.send(request, stream=True)
        if scope.cancelled_caught:
            raise Problem(silent("an answer", deadlines.first_token))
        async with aclosing(response):
            await _check(response)
            async with aclosing(_events(response, deadlines)) as events:
                async for event in events:
                    yield event
    except httpx.TransportError as wrong:
        raise Problem(_broken(wrong)) from wrong


async def _events(response: httpx.Response, deadlines: Deadlines) -> AsyncGenerator[ServerSentEvent, None]:
    decoder, chunks = Decoder(), response.aiter_bytes()
    seconds = deadlines.first_token
    deadline = trio.current_time() + seconds
    while True:
        with trio.move_on_at(deadline) as scope:
            chunk = await anext(chunks, None)
        if scope.cancelled_caught:
            raise Problem(silent("a token", seconds))
        if chunk is None:
            return
        for event in _fed(decoder, chunk):
            seconds = deadlines.between_tokens
            yield event
            deadline = trio.current_time() + seconds  # the time our own reader took does not count


def _fed(decoder: Decoder, chunk: bytes) -> Iterator[ServerSentEvent]:
    try:
        yield from decoder.feed(chunk)
    except EventTooLarge as wrong:
        raise Problem(failed(FailureKind.RETRYABLE, "bad_response")) from wrong


def new_percent(done: int, limit: int) -> bool:
    """Whether the last of `done` pieces has begun another percent of `limit`: finer steps of progress cost CPU at
    every token, and no eye sees them."""
    return done <= 1 or 100 * done // limit > 100 * (done - 1) // limit


def silent(what: str, seconds: float) -> Failed:
    """Nothing came for `seconds`, when `what` was due."""
    failure = failed(FailureKind.RETRYABLE, "timeout")
    return evolve(failure, message=f"The provider sent nothing for {seconds:g} s: {what} was due.")


def _broken(wrong: httpx.TransportError) -> Failed:
    if isinstance(wrong, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        return failed(FailureKind.RETRYABLE, "provider_down", raw=type(wrong).__name__)
    return failed(FailureKind.RETRYABLE, "stream_broken", raw=type(wrong).__name__)


async def _check(response: httpx.Response) -> None:
    """Raises Problem unless the response is a stream of events."""
    if response.status_code == 200:
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            return
        raise Problem(failed(FailureKind.RETRYABLE, "bad_response", raw="content type"))
    with trio.move_on_after(5):
        error = await _error_of(response)
        raise Problem(classify(response.status_code, error, _retry_after(response)))
    raise Problem(classify(response.status_code, {}, _retry_after(response)))


async def _error_of(response: httpx.Response) -> dict[str, Any]:
    said = b""
    async for chunk in response.aiter_bytes():
        said += chunk
        if len(said) > MAX_ERROR_BYTES:
            return {}
    try:
        error = msgspec.json.decode(said)
    except msgspec.MsgspecError:
        return {}
    error = error.get("error") if isinstance(error, dict) else None
    return error if isinstance(error, dict) else {}


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, when the header says so; its date form is not used by these services."""
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None
