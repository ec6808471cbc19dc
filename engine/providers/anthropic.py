"""Claude, by Anthropic's official client, which runs under trio; its own retries are off.

Sources: Anthropic's reference on streaming messages and on errors.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anthropic

from engine.providers.failures import classify, failed
from engine.providers.llm import chosen, retry_after, turns, watched
from engine.providers.protocol import (
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

PASSED_ON = ("temperature", "top_p", "top_k", "stop_sequences")
STATUS_OF = {
    "overloaded_error": 529,
    "api_error": 500,
    "timeout_error": 504,
    "rate_limit_error": 429,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "billing_error": 402,
    "invalid_request_error": 400,
}
"""An error in the stream comes after HTTP 200: its type is all there is to go by."""


class Anthropic:
    """The provider. `base_url` is for gateways and tests; empty: the service's own."""

    name = "anthropic"

    def __init__(self, api_key: str, base_url: str = "", deadlines: Deadlines | None = None) -> None:
        self._client = anthropic.AsyncAnthropic(api_key=api_key, base_url=base_url or None, max_retries=0)
        self._deadlines = deadlines or Deadlines()

    def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """Runs one attempt; see the Protocol."""
        return watched(request, self._events(request), self._deadlines, explain)

    async def aclose(self) -> None:
        await self._client.close()

    async def _events(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        used, stop = Usage(), None
        async with _closing(await self._client.messages.create(**body(request), stream=True)) as stream:
            async for event in stream:
                match event.type:
                    case "message_start":
                        used = Usage(input_tokens=event.message.usage.input_tokens)
                    case "content_block_delta" if event.delta.type == "text_delta":
                        yield TextDelta(event.delta.text)
                    case "message_delta":
                        stop = event.delta.stop_reason
                        used = Usage(used.input_tokens, event.usage.output_tokens)  # cumulative
                    case "message_stop":
                        yield UsageReported(used)
                        yield _end(stop)
                        return


def body(request: ProviderRequest) -> dict[str, Any]:
    """The request: a limit is obligatory here, so there is always one."""
    system, messages = turns(request)
    options = chosen(request, PASSED_ON)
    if system:
        options["system"] = system
    limit = request.input.get("max_tokens") or 1024
    # not every model takes every option any more, and the client knows those of the newest alone
    return {"model": request.slug, "messages": messages, "max_tokens": limit, "extra_body": options}


def explain(problem: Exception) -> Failed | None:
    """What the client's exceptions mean."""
    if isinstance(problem, anthropic.APITimeoutError):
        return failed(FailureKind.RETRYABLE, "timeout")
    if isinstance(problem, anthropic.APIConnectionError):
        return failed(FailureKind.RETRYABLE, "provider_down", raw=type(problem.__cause__).__name__)
    if isinstance(problem, anthropic.APIStatusError):
        return _refusal(problem)
    if isinstance(problem, anthropic.AnthropicError | ValueError):
        return failed(FailureKind.RETRYABLE, "bad_response", raw=type(problem).__name__)
    return None


def _refusal(problem: anthropic.APIStatusError) -> Failed:
    said = problem.body.get("error") if isinstance(problem.body, dict) else None
    error: dict[str, Any] = said if isinstance(said, dict) else {}
    status = problem.status_code if problem.status_code >= 300 else STATUS_OF.get(str(error.get("type")), 500)
    return classify(status, error, retry_after(problem.response.headers))


def _end(stop: str | None) -> ProviderEvent:
    if stop == "refusal":
        return failed(FailureKind.PERMANENT, "content_policy", raw=stop)
    return Finished(stop or "end_turn")


@asynccontextmanager
async def _closing(stream: Any) -> AsyncGenerator[Any, None]:
    try:
        yield stream
    finally:
        await stream.close()
