"""Any server that speaks OpenAI's chat completions, streaming: the local model's, a gateway's, a vendor's.

Written on httpx; retries nothing. Every wait has a deadline: to connect, to the first token, between tokens.
The stream's shape is of the API reference, "Chat completions, streaming".
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any

import httpx
import msgspec
import trio
from attrs import evolve, field, frozen

from engine.providers.failures import classify, failed
from engine.providers.protocol import (
    Failed,
    FailureKind,
    Finished,
    Progress,
    ProviderEvent,
    ProviderRequest,
    TextDelta,
    UsageReported,
)
from engine.providers.sse import Decoder, EventTooLarge, ServerSentEvent
from engine.tasks.events import Usage

PASSED_ON = (
    "max_tokens", "temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias",
    "response_format", "n_probs", "min_p", "top_k", "repeat_penalty",
)  # fmt: skip
"""Fields of a task's input that go into the request's body as they are."""

MAX_ERROR_BYTES = 65_536


@frozen
class Deadlines:
    """In seconds. `first_token` includes the time that the request waits for its turn at the server."""

    connect: float = 5.0
    first_token: float = 60.0
    between_tokens: float = 30.0


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_chunks = msgspec.json.Decoder(_Chunk)


@frozen
class OpenAICompatible:
    """A provider on `client`. `base_url` is asked anew for each request (with `/v1`, without a trailing slash)."""

    name: str
    client: httpx.AsyncClient
    base_url: Callable[[], Awaitable[str]]
    api_key: str = field(default="", repr=False)
    deadlines: Deadlines = Deadlines()

    async def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """Runs one attempt; see the Protocol."""
        limit = request.input.get("max_tokens")
        stream = _Stream(limit if isinstance(limit, int) else None)
        try:
            async with aclosing(self._chunks(request)) as chunks:
                async for chunk in chunks:
                    for event in stream.take(chunk):
                        yield event
                    if stream.ended:
                        return
        except Problem as problem:
            yield problem.failure
        else:
            yield stream.end()

    async def _chunks(self, request: ProviderRequest) -> AsyncGenerator[_Chunk, None]:
        """The decoded stream, up to `[DONE]` or the end of the response. Raises Problem."""
        try:
            http = self._request(await self.base_url(), request)
            with trio.move_on_after(self.deadlines.first_token) as scope:
                response = await self.client.send(http, stream=True)
            if scope.cancelled_caught:
                raise Problem(_silent("an answer", self.deadlines.first_token))
            async with aclosing(response):
                await _check(response)
                async with aclosing(self._events(response)) as events:
                    async for event in events:
                        if event.data == "[DONE]":
                            return
                        yield _decoded(event)
        except httpx.TransportError as wrong:
            raise Problem(_broken(wrong)) from wrong

    async def _events(self, response: httpx.Response) -> AsyncGenerator[ServerSentEvent, None]:
        decoder, chunks = Decoder(), response.aiter_bytes()
        seconds = self.deadlines.first_token
        deadline = trio.current_time() + seconds
        while True:
            with trio.move_on_at(deadline) as scope:
                chunk = await anext(chunks, None)
            if scope.cancelled_caught:
                raise Problem(_silent("a token", seconds))
            if chunk is None:
                return
            for event in _fed(decoder, chunk):
                seconds = self.deadlines.between_tokens
                yield event
                deadline = trio.current_time() + seconds  # the time our own reader took does not count

    def _request(self, base_url: str, request: ProviderRequest) -> httpx.Request:
        headers = {"accept": "text/event-stream"}
        if self.api_key:
            headers["authorization"] = f"Bearer {self.api_key}"
        timeout = httpx.Timeout(None, connect=self.deadlines.connect, pool=self.deadlines.connect)
        url = f"{base_url}/chat/completions"
        return self.client.build_request("POST", url, json=body(request), headers=headers, timeout=timeout)


def body(request: ProviderRequest) -> dict[str, Any]:
    """The request's body: `messages` as given, or made from `system` and `prompt`."""
    given = request.input
    messages = given.get("messages")
    if messages is None:
        roles = (("system", given.get("system")), ("user", given.get("prompt")))
        messages = [{"role": role, "content": content} for role, content in roles if content is not None]
    options = {name: given[name] for name in PASSED_ON if given.get(name) is not None}
    streaming = {"stream": True, "stream_options": {"include_usage": True}}
    return {"model": request.slug, "messages": messages, **options, **streaming}


class Problem(Exception):
    """Ends a stream with `failure`."""

    def __init__(self, failure: Failed) -> None:
        super().__init__(failure.code)
        self.failure = failure


class _Stream:
    """What has been seen of one answer: counts tokens (one a chunk, as these servers send them) and the end."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._tokens = 0
        self._finish: str | None = None
        self.ended = False

    def take(self, chunk: _Chunk) -> Iterator[ProviderEvent]:
        """What `chunk` means; after an error, `ended` is true and the failure was given."""
        if chunk.error is not None:
            self.ended = True
            yield _in_stream(chunk.error)
            return
        for choice in chunk.choices[:1]:
            self._finish = choice.finish_reason or self._finish
            if choice.delta.content:
                self._tokens += 1
                yield TextDelta(choice.delta.content)
                if self._limit:
                    yield Progress(min(1.0, self._tokens / self._limit), step=f"{self._tokens} tokens")
        if chunk.usage is not None:
            yield UsageReported(Usage(chunk.usage.prompt_tokens, chunk.usage.completion_tokens))

    def end(self) -> ProviderEvent:
        """How the stream ended, judged by its last finish reason."""
        match self._finish:
            case None:
                return _cut_short()
            case "content_filter":
                return failed(FailureKind.PERMANENT, "content_policy")
            case reason:
                return Finished(reason)


def _fed(decoder: Decoder, chunk: bytes) -> Iterator[ServerSentEvent]:
    try:
        yield from decoder.feed(chunk)
    except EventTooLarge as wrong:
        raise Problem(failed(FailureKind.RETRYABLE, "bad_response")) from wrong


def _decoded(event: ServerSentEvent) -> _Chunk:
    try:
        chunk = _chunks.decode(event.data)
    except msgspec.MsgspecError as wrong:
        raise Problem(failed(FailureKind.RETRYABLE, "bad_response")) from wrong
    if event.event == "error" and chunk.error is None:
        chunk.error = event.data
    return chunk


def _silent(what: str, seconds: float) -> Failed:
    failure = failed(FailureKind.RETRYABLE, "timeout")
    return evolve(failure, message=f"The provider sent nothing for {seconds:g} s: {what} was due.")


def _broken(wrong: httpx.TransportError) -> Failed:
    if isinstance(wrong, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        return failed(FailureKind.RETRYABLE, "provider_down", raw=type(wrong).__name__)
    return failed(FailureKind.RETRYABLE, "stream_broken", raw=type(wrong).__name__)


def _cut_short() -> Failed:
    return failed(FailureKind.RETRYABLE, "stream_broken", raw="ended without a finish reason")


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


def _in_stream(error: Any) -> Failed:
    """An error that came after HTTP 200; its `code` is a status at some servers, a word at others."""
    known = error if isinstance(error, dict) else {}
    status = known.get("code")
    return classify(status if isinstance(status, int) and 400 <= status < 600 else 500, known, None)
