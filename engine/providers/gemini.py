"""Gemini, on httpx: under trio, Google's own client cannot close a stream before its end.

Source: the Gemini API's reference on streamGenerateContent.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import httpx
import msgspec

from engine.providers.failures import classify, failed
from engine.providers.llm import turns, watched
from engine.providers.protocol import (
    Failed,
    FailureKind,
    Finished,
    ProviderEvent,
    ProviderRequest,
    TextDelta,
    UsageReported,
)
from engine.providers.sse import ServerSentEvent
from engine.providers.streaming import Deadlines, Problem, server_sent_events
from engine.tasks.events import Usage

BASE_URL = "https://generativelanguage.googleapis.com"
DECLINED = frozenset({"SAFETY", "PROHIBITED_CONTENT", "BLOCKLIST", "SPII", "RECITATION", "IMAGE_SAFETY"})
OPTIONS = {
    "max_tokens": "maxOutputTokens",
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "seed": "seed",
}


class _Part(msgspec.Struct):
    text: str = ""
    thought: bool = False


class _Content(msgspec.Struct):
    parts: list[_Part] = []


class _Candidate(msgspec.Struct, rename="camel"):
    content: _Content = msgspec.field(default_factory=_Content)
    finish_reason: str | None = None


class _Used(msgspec.Struct, rename="camel"):
    prompt_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None


class _Feedback(msgspec.Struct, rename="camel"):
    block_reason: str | None = None


class _Chunk(msgspec.Struct, rename="camel"):
    candidates: list[_Candidate] = []
    usage_metadata: _Used | None = None
    prompt_feedback: _Feedback | None = None
    error: Any = None


_chunks = msgspec.json.Decoder(_Chunk)


class Gemini:
    """The provider on `client`. `base_url` is for gateways and tests; empty: the service's own."""

    name = "gemini"

    def __init__(
        self, client: httpx.AsyncClient, api_key: str, base_url: str = "", deadlines: Deadlines | None = None
    ) -> None:
        self._client = client
        self._api_key = api_key
        self._base_url = (base_url or BASE_URL).rstrip("/")
        self._deadlines = deadlines or Deadlines()

    def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """Runs one attempt; see the Protocol."""
        return watched(request, self._events(request), self._deadlines, explain)

    async def _events(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        ended, used = None, Usage()
        async with aclosing(server_sent_events(self._client, self._http(request), self._deadlines)) as events:
            async for event in events:
                chunk = _decoded(event)
                ended, used = _reason(chunk) or ended, _used(chunk, used)
                for text in _texts(chunk):
                    yield TextDelta(text)
        yield UsageReported(used)
        yield _end(ended)

    def _http(self, request: ProviderRequest) -> httpx.Request:
        url = f"{self._base_url}/v1beta/models/{request.slug}:streamGenerateContent?alt=sse"
        timeout = httpx.Timeout(None, connect=self._deadlines.connect, pool=self._deadlines.connect)
        headers = {"x-goog-api-key": self._api_key}
        return self._client.build_request("POST", url, json=body(request), headers=headers, timeout=timeout)


def body(request: ProviderRequest) -> dict[str, Any]:
    """The conversation and its options, in Gemini's words."""
    system, messages = turns(request)
    contents = [
        {"role": "model" if turn["role"] == "assistant" else "user", "parts": [{"text": turn["content"]}]}
        for turn in messages
    ]
    options = {word: request.input[name] for name, word in OPTIONS.items() if request.input.get(name) is not None}
    instruction = {"systemInstruction": {"parts": [{"text": system}]}} if system else {}
    return {"contents": contents, "generationConfig": options, **instruction}


def explain(problem: Exception) -> Failed | None:
    """What an exception of the stream means; a wrong key comes as a bad request, told only by its words."""
    return problem.failure if isinstance(problem, Problem) else None


def _decoded(event: ServerSentEvent) -> _Chunk:
    try:
        chunk = _chunks.decode(event.data)
    except msgspec.MsgspecError as wrong:
        raise Problem(failed(FailureKind.RETRYABLE, "bad_response")) from wrong
    if isinstance(chunk.error, dict):
        code = chunk.error.get("code")
        status = chunk.error.get("status")
        raise Problem(classify(code if isinstance(code, int) else 500, {"type": status}, None))
    return chunk


def _texts(chunk: _Chunk) -> Iterator[str]:
    for candidate in chunk.candidates[:1]:
        text = "".join(part.text for part in candidate.content.parts if not part.thought)
        if text:
            yield text


def _reason(chunk: _Chunk) -> str | None:
    if chunk.prompt_feedback and chunk.prompt_feedback.block_reason:
        return chunk.prompt_feedback.block_reason
    return next((candidate.finish_reason for candidate in chunk.candidates[:1]), None)


def _used(chunk: _Chunk, before: Usage) -> Usage:
    said = chunk.usage_metadata
    if said is None:
        return before
    spent = (said.candidates_token_count or 0) + (said.thoughts_token_count or 0)
    return Usage(said.prompt_token_count or before.input_tokens, spent or before.output_tokens)


def _end(reason: str | None) -> ProviderEvent:
    if reason is None:
        return failed(FailureKind.RETRYABLE, "stream_broken", raw="ended without a finish reason")
    if reason in DECLINED:
        return failed(FailureKind.PERMANENT, "content_policy", raw=reason)
    return Finished(reason)
