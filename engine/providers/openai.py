"""OpenAI's Responses API, asked through the official client; the stream is read here (see `sdk` why).

Chat completions, OpenAI's and everybody's, are in `openai_compatible`.
Source: OpenAI's reference on streaming responses.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Any

import msgspec
import openai

from engine.providers.failures import classify
from engine.providers.llm import THINKING, chosen, cut_short, declined, decoded, kind_of, turns
from engine.providers.protocol import Finished, ProviderEvent, ProviderRequest, TextDelta
from engine.providers.sdk import SdkProvider
from engine.providers.sse import ServerSentEvent
from engine.tasks.events import Usage

PASSED_ON = ("temperature", "top_p", "reasoning", "text")
STATUS_OF = {
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "context_length_exceeded": 400,
    "invalid_prompt": 400,
    "model_not_found": 404,
}
"""An error in the stream comes after HTTP 200: its code is all there is to go by."""


class OpenAI(SdkProvider):
    """The provider."""

    name = "openai"
    library = openai
    client_class = openai.AsyncOpenAI

    def _ask(self, request: ProviderRequest) -> Awaitable[Any]:
        raw: Awaitable[Any] = self._client.responses.with_raw_response.create(**body(request), stream=True)
        return raw

    def _reader(self, request: ProviderRequest) -> ResponsesReader:
        return ResponsesReader()


def body(request: ProviderRequest) -> dict[str, Any]:
    """The request; nothing of it is kept at the service."""
    system, messages = turns(request)
    options = chosen(request, PASSED_ON)
    if system:
        options["instructions"] = system
    if limit := request.input.get("max_tokens"):
        options["max_output_tokens"] = limit
    return {"model": request.slug, "input": messages, "store": False, **options}


# --- the stream ---------------------------------------------------------------------------------------------


class _Used(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Error(msgspec.Struct):
    code: str | None = None
    message: str | None = None


class _Incomplete(msgspec.Struct):
    reason: str | None = None


class _Response(msgspec.Struct):
    id: str = ""
    status: str = ""
    usage: _Used | None = None
    error: _Error | None = None
    incomplete_details: _Incomplete | None = None


class _Event(msgspec.Struct):
    type: str = ""
    delta: Any = None
    response: _Response | None = None
    code: str | None = None
    message: str | None = None
    error: _Error | None = None


_events = msgspec.json.Decoder(_Event)
_KNOWN = frozenset(
    {
        "response.output_text.delta",
        "response.refusal.delta",
        "response.completed",
        "response.incomplete",
        "response.failed",
        "error",
    }
)


class ResponsesReader:
    """Reads one answer of the Responses API."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self._refused = False

    def read(self, event: ServerSentEvent) -> Iterable[ProviderEvent]:
        kind = "" if event.data == b"[DONE]" else kind_of(event.data)
        if kind.startswith("response.reasoning"):
            return (THINKING,)
        if kind not in _KNOWN:
            return ()
        said = decoded(_events, event.data)
        match kind:
            case "response.output_text.delta":
                return (TextDelta(str(said.delta)),) if said.delta else ()
            case "response.completed" | "response.incomplete" | "response.failed" if said.response:
                return (self._ended(said.response),)
            case "error":
                return (_failure(said.error or _Error(said.code, said.message)),)
            case "response.refusal.delta":
                self._refused = True
        return ()

    def end(self) -> ProviderEvent:
        return cut_short()

    def _ended(self, response: _Response) -> ProviderEvent:
        if response.usage is not None:
            self.usage = Usage(response.usage.input_tokens, response.usage.output_tokens)
        if response.status == "failed":
            return _failure(response.error or _Error())
        reason = response.incomplete_details.reason if response.incomplete_details else None
        if reason == "content_filter" or self._refused:
            return declined(reason or "refusal")
        return Finished(reason or response.status, {"response_id": response.id})


def _failure(error: _Error) -> ProviderEvent:
    code = str(error.code)
    status = STATUS_OF.get(code, 400 if code.startswith("invalid") else 500)
    return classify(status, {"code": error.code, "message": error.message}, None)
