"""Any server that speaks OpenAI's chat completions, streaming: the local model's, a gateway's, a vendor's.

Written on httpx; retries nothing.
The stream's shape is of the API reference, "Chat completions, streaming".
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any

import httpx
import msgspec
from attrs import field, frozen

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
from engine.providers.sse import ServerSentEvent
from engine.providers.streaming import Deadlines, Problem, new_percent, server_sent_events
from engine.tasks.events import Usage

PASSED_ON = (
    "max_tokens", "temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias",
    "response_format", "n_probs", "min_p", "top_k", "repeat_penalty",
)  # fmt: skip
"""Fields of a task's input that go into the request's body as they are."""


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
    deadlines: Deadlines = field(factory=Deadlines)

    async def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """Runs one attempt; see the Protocol."""
        limit = request.input.get("max_tokens")
        stream = _Stream(int(limit) if isinstance(limit, int | float) else None)
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
        http = self._request(await self.base_url(), request)
        async with aclosing(server_sent_events(self.client, http, self.deadlines)) as events:
            async for event in events:
                if event.data == "[DONE]":
                    return
                yield _decoded(event)

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
                if self._limit and new_percent(self._tokens, self._limit):
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


def _decoded(event: ServerSentEvent) -> _Chunk:
    try:
        chunk = _chunks.decode(event.data)
    except msgspec.MsgspecError as wrong:
        raise Problem(failed(FailureKind.RETRYABLE, "bad_response")) from wrong
    if event.event == "error" and chunk.error is None:
        chunk.error = event.data
    return chunk


def _cut_short() -> Failed:
    return failed(FailureKind.RETRYABLE, "stream_broken", raw="ended without a finish reason")


def _in_stream(error: Any) -> Failed:
    """An error that came after HTTP 200; its `code` is a status at some servers, a word at others."""
    known = error if isinstance(error, dict) else {}
    status = known.get("code")
    return classify(status if isinstance(status, int) and 400 <= status < 600 else 500, known, None)
