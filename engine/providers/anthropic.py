"""Claude, asked through Anthropic's official client; the stream is read here (see `sdk` why).

Sources: Anthropic's reference on streaming messages and on errors.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Any

import anthropic
import msgspec

from engine.providers.failures import classify
from engine.providers.llm import THINKING, chosen, cut_short, declined, decoded, kind_of, turns
from engine.providers.protocol import Finished, ProviderEvent, ProviderRequest, TextDelta, UsageReported
from engine.providers.sdk import SdkProvider
from engine.providers.sse import ServerSentEvent
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
    "request_too_large": 413,
}
"""An error in the stream comes after HTTP 200: its type is all there is to go by."""


class Anthropic(SdkProvider):
    """The provider."""

    name = "anthropic"
    library = anthropic
    client_class = anthropic.AsyncAnthropic

    def _ask(self, request: ProviderRequest) -> Awaitable[Any]:
        raw: Awaitable[Any] = self._client.messages.with_raw_response.create(**body(request), stream=True)
        return raw

    def _reader(self, request: ProviderRequest) -> MessagesReader:
        return MessagesReader()


def body(request: ProviderRequest) -> dict[str, Any]:
    """The request: a limit is obligatory here, so there is always one."""
    system, messages = turns(request)
    options = chosen(request, PASSED_ON)
    if system:
        options["system"] = system
    limit = request.input.get("max_tokens") or 1024
    # not every model takes every option any more, and the client knows those of the newest alone
    return {"model": request.slug, "messages": messages, "max_tokens": limit, "extra_body": options}


# --- the stream ---------------------------------------------------------------------------------------------


class _Used(msgspec.Struct):
    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int | None = None


class _Message(msgspec.Struct):
    usage: _Used | None = None


class _Delta(msgspec.Struct):
    type: str = ""
    text: str = ""
    stop_reason: str | None = None


class _Error(msgspec.Struct):
    type: str = ""
    message: str = ""


class _Event(msgspec.Struct):
    type: str = ""
    delta: _Delta | None = None
    message: _Message | None = None
    usage: _Used | None = None
    error: _Error | None = None


_events = msgspec.json.Decoder(_Event)
_KNOWN = frozenset({"message_start", "content_block_delta", "message_delta", "message_stop", "error"})


class MessagesReader:
    """Reads one answer of the Messages API. Kinds of events that are not known are read over, as its rules ask."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self._stop: str | None = None

    def read(self, event: ServerSentEvent) -> Iterable[ProviderEvent]:
        kind = kind_of(event.data)
        if kind not in _KNOWN:
            return ()
        said = decoded(_events, event.data)
        match kind:
            case "content_block_delta" if said.delta:
                if said.delta.type == "text_delta":
                    return (TextDelta(said.delta.text),) if said.delta.text else ()
                return (THINKING,)
            case "message_start" if said.message and said.message.usage:
                said.message.usage.output_tokens = None  # of a text that has not begun
                self._add(said.message.usage)
                return (UsageReported(self.usage),) if self.usage else ()
            case "message_delta":
                if said.delta:
                    self._stop = said.delta.stop_reason or self._stop
                self._add(said.usage or _Used())
            case "message_stop":
                return (declined("refusal") if self._stop == "refusal" else Finished(self._stop or "end_turn"),)
            case "error":
                error = said.error or _Error()
                told = {"type": error.type, "message": error.message}
                return (classify(STATUS_OF.get(error.type, 500), told, None),)
        return ()

    def end(self) -> ProviderEvent:
        return cut_short()

    def _add(self, used: _Used) -> None:
        """Output tokens are cumulative; input tokens that were cached are counted apart by the service."""
        before = self.usage or Usage()
        parts = (used.input_tokens, used.cache_creation_input_tokens, used.cache_read_input_tokens)
        asked = sum(part or 0 for part in parts) if used.input_tokens is not None else before.input_tokens
        said = before.output_tokens if used.output_tokens is None else used.output_tokens
        self.usage = Usage(asked, said)
