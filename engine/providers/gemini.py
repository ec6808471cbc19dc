"""Gemini, on httpx: under trio, Google's own client cannot close a stream before its end.

Source: the Gemini API's reference on streamGenerateContent.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from functools import partial
from typing import Any

import httpx
import msgspec

from engine.providers.failures import classify
from engine.providers.llm import THINKING, answered, cut_short, declined, decoded, turns
from engine.providers.protocol import Failed, Finished, ProviderEvent, ProviderRequest, TextDelta, UsageReported
from engine.providers.sse import ServerSentEvent
from engine.providers.streaming import Deadlines, Response, error_in, trouble
from engine.tasks.events import Usage

BASE_URL = "https://generativelanguage.googleapis.com"
DECLINED = frozenset(
    {"SAFETY", "PROHIBITED_CONTENT", "BLOCKLIST", "SPII", "RECITATION", "LANGUAGE", "IMAGE_SAFETY", "OTHER"}
)
"""Reasons to end, or to block a prompt, that another try would not change."""
BROKEN = frozenset({"MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "MALFORMED_RESPONSE"})
OPTIONS = {
    "max_tokens": "maxOutputTokens",
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "seed": "seed",
}


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
        explain = partial(trouble, httpx)
        return answered(request, partial(self._ask, request), GenerateReader(), self._deadlines, explain)

    async def _ask(self, request: ProviderRequest) -> Response:
        url = f"{self._base_url}/v1beta/models/{request.slug}:streamGenerateContent?alt=sse"
        timeout = httpx.Timeout(None, connect=self._deadlines.connect, pool=self._deadlines.connect)
        headers = {"x-goog-api-key": self._api_key}
        http = self._client.build_request("POST", url, json=body(request), headers=headers, timeout=timeout)
        return await self._client.send(http, stream=True)


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


# --- the stream ---------------------------------------------------------------------------------------------


class _Part(msgspec.Struct):
    text: str = ""
    thought: bool = False


class _Content(msgspec.Struct):
    parts: list[_Part] = []


class _Candidate(msgspec.Struct, rename="camel"):
    content: _Content | None = None
    finish_reason: str | None = None


class _Used(msgspec.Struct, rename="camel"):
    prompt_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None


class _Feedback(msgspec.Struct, rename="camel"):
    block_reason: str | None = None


class _Chunk(msgspec.Struct, rename="camel"):
    candidates: list[_Candidate] = []
    usage_metadata: _Used | None = None
    prompt_feedback: _Feedback | None = None
    error: Any = None


_chunks = msgspec.json.Decoder(_Chunk)


class GenerateReader:
    """Reads one answer. There is no last word but a finish reason; the response's end comes after it."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self._reason: str | None = None

    def read(self, event: ServerSentEvent) -> Iterator[ProviderEvent]:
        chunk = decoded(_chunks, event.data)
        if chunk.error is not None:
            yield _failure(chunk.error)
            return
        if chunk.usage_metadata is not None:
            first, self.usage = self.usage is None, _used(chunk.usage_metadata, self.usage or Usage())
            if first:
                yield UsageReported(self.usage)
        if chunk.prompt_feedback and chunk.prompt_feedback.block_reason:
            self._reason = "PROHIBITED_CONTENT"
        for candidate in chunk.candidates[:1]:
            self._reason = self._reason or candidate.finish_reason
            for part in candidate.content.parts if candidate.content else ():
                if part.text:
                    yield THINKING if part.thought else TextDelta(part.text)

    def end(self) -> ProviderEvent:
        if self._reason is None or self._reason in BROKEN:
            return cut_short()
        return declined(self._reason) if self._reason in DECLINED else Finished(self._reason)


def _failure(error: Any) -> Failed:
    known = error_in({"error": error})
    code = known.get("code")
    return classify(code if isinstance(code, int) and 400 <= code < 600 else 500, known, None)


def _used(said: _Used, before: Usage) -> Usage:
    """Counts are of the whole answer so far; what the model thought is billed as output."""
    asked = (said.prompt_token_count or 0) + (said.tool_use_prompt_token_count or 0)
    spent = (said.candidates_token_count or 0) + (said.thoughts_token_count or 0)
    return Usage(asked or before.input_tokens, spent or before.output_tokens)
