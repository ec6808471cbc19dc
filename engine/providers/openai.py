"""OpenAI's Responses API, by the official client, which runs under trio; its own retries are off.

Chat completions, OpenAI's and everybody's, are in `openai_compatible`.
Source: OpenAI's reference on streaming responses.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import openai

from engine.providers.failures import classify, failed
from engine.providers.llm import chosen, retry_after, turns, watched
from engine.providers.protocol import (
    Accepted,
    Failed,
    FailureKind,
    Finished,
    ProviderEvent,
    ProviderRequest,
    TextDelta,
    UsageReported,
)
from engine.providers.streaming import Deadlines
from engine.tasks.events import Usage

PASSED_ON = ("temperature", "top_p", "reasoning", "text")


class OpenAI:
    """The provider. `base_url` is for gateways and tests; empty: the service's own."""

    name = "openai"

    def __init__(self, api_key: str, base_url: str = "", deadlines: Deadlines | None = None) -> None:
        self._client = openai.AsyncOpenAI(api_key=api_key, base_url=base_url or None, max_retries=0)
        self._deadlines = deadlines or Deadlines()

    def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """Runs one attempt; see the Protocol."""
        return watched(request, self._events(request), self._deadlines, explain)

    async def aclose(self) -> None:
        await self._client.close()

    async def _events(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        async with _closing(await self._client.responses.create(**body(request), stream=True)) as events:
            async for event in events:
                match event.type:
                    case "response.created":
                        yield Accepted(event.response.id, str(event.response.status))
                    case "response.output_text.delta":
                        yield TextDelta(event.delta)
                    case "response.completed" | "response.incomplete" | "response.failed":
                        for last in _end(event.response):
                            yield last
                        return
                    case "error":
                        yield classify(_status_of(event.code), {"code": event.code}, None)
                        return


def body(request: ProviderRequest) -> dict[str, Any]:
    """The request; nothing of it is kept at the service."""
    system, messages = turns(request)
    options = chosen(request, PASSED_ON)
    if system:
        options["instructions"] = system
    if limit := request.input.get("max_tokens"):
        options["max_output_tokens"] = limit
    return {"model": request.slug, "input": messages, "store": False, **options}


def explain(problem: Exception) -> Failed | None:
    """What the client's exceptions mean."""
    if isinstance(problem, openai.APITimeoutError):
        return failed(FailureKind.RETRYABLE, "timeout")
    if isinstance(problem, openai.APIConnectionError):
        return failed(FailureKind.RETRYABLE, "provider_down", raw=type(problem.__cause__).__name__)
    if isinstance(problem, openai.APIStatusError):
        error = problem.body if isinstance(problem.body, dict) else {}
        return classify(problem.status_code, error, retry_after(problem.response.headers))
    if isinstance(problem, openai.APIError):  # an error in the stream, after HTTP 200
        return classify(_status_of(problem.code), {"code": problem.code, "type": problem.type}, None)
    if isinstance(problem, openai.OpenAIError | ValueError):
        return failed(FailureKind.RETRYABLE, "bad_response", raw=type(problem).__name__)
    return None


def _end(response: Any) -> list[ProviderEvent]:
    usage = response.usage
    events: list[ProviderEvent] = []
    if usage is not None:
        events.append(UsageReported(Usage(usage.input_tokens, usage.output_tokens)))
    if response.status == "failed":
        code = response.error.code if response.error else None
        return [*events, classify(_status_of(code), {"code": code}, None)]
    reason = response.incomplete_details.reason if response.incomplete_details else None
    if reason == "content_filter":
        return [*events, failed(FailureKind.PERMANENT, "content_policy", raw=reason)]
    return [*events, Finished(reason or str(response.status))]


def _status_of(code: Any) -> int:
    """The HTTP status that an error in the stream would have had."""
    known = {"rate_limit_exceeded": 429, "insufficient_quota": 429, "context_length_exceeded": 400}
    return known.get(str(code), 400 if str(code).startswith("invalid") else 500)


@asynccontextmanager
async def _closing(stream: Any) -> AsyncGenerator[Any, None]:
    # The client's stream leaves its inner generator open unless that is closed as well.
    try:
        async with aclosing(stream._iterator):
            yield stream
    finally:
        await stream.close()
