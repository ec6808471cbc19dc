"""Any server that speaks OpenAI's chat completions, streaming: the local model's, a gateway's, a vendor's.

Written on httpx; retries nothing.
The stream's shape is of the API reference, "Chat completions, streaming".
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import Any

import httpx
import msgspec
from attrs import field, frozen

from engine.providers.failures import classify
from engine.providers.llm import THINKING, answered, chosen, cut_short, declined, decoded
from engine.providers.protocol import Failed, Finished, ProviderEvent, ProviderRequest, TextDelta
from engine.providers.sse import ServerSentEvent
from engine.providers.streaming import Deadlines, Response, error_in, trouble
from engine.tasks.events import Usage

PASSED_ON = (
    "max_tokens", "temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias",
    "response_format", "n_probs", "min_p", "top_k", "repeat_penalty",
)  # fmt: skip
"""Fields of a task's input that go into the request's body as they are."""


@frozen
class OpenAICompatible:
    """A provider on `client`. `base_url` is asked anew for each request (with `/v1`, without a trailing slash)."""

    name: str
    client: httpx.AsyncClient
    base_url: Callable[[], Awaitable[str]]
    api_key: str = field(default="", repr=False)
    deadlines: Deadlines = field(factory=Deadlines)

    def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """Runs one attempt; see the Protocol."""
        explain = partial(trouble, httpx)
        return answered(request, partial(self._ask, request), ChatReader(), self.deadlines, explain)

    async def _ask(self, request: ProviderRequest) -> Response:
        headers = {"accept": "text/event-stream"}
        if self.api_key:
            headers["authorization"] = f"Bearer {self.api_key}"
        timeout = httpx.Timeout(None, connect=self.deadlines.connect, pool=self.deadlines.connect)
        url = f"{await self.base_url()}/chat/completions"
        http = self.client.build_request("POST", url, json=body(request), headers=headers, timeout=timeout)
        return await self.client.send(http, stream=True)


def body(request: ProviderRequest) -> dict[str, Any]:
    """The request's body: `messages` as given, or made from `system` and `prompt`."""
    given = request.input
    messages = given.get("messages")
    if messages is None:
        roles = (("system", given.get("system")), ("user", given.get("prompt")))
        messages = [{"role": role, "content": content} for role, content in roles if content is not None]
    streaming = {"stream": True, "stream_options": {"include_usage": True}}
    return {"model": request.slug, "messages": messages, **chosen(request, PASSED_ON), **streaming}


# --- the stream ---------------------------------------------------------------------------------------------


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Used(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Used | None = None
    error: Any = None


_chunks = msgspec.json.Decoder(_Chunk)


class ChatReader:
    """Reads one answer. Usage comes in a chunk of its own, without choices, between the finish reason and `[DONE]`."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self._finish: str | None = None
        self._refused = False

    def read(self, event: ServerSentEvent) -> tuple[ProviderEvent, ...]:
        if event.data == b"[DONE]":
            return (self.end(),)
        chunk = decoded(_chunks, event.data)
        if chunk.error is not None or event.event == "error":
            return (_failure(chunk.error),)
        if chunk.usage is not None:
            self.usage = Usage(chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
        if not chunk.choices:
            return ()
        choice = chunk.choices[0]
        if choice.finish_reason:
            self._finish = choice.finish_reason
        return () if choice.delta is None else self._said(choice.delta)

    def _said(self, delta: _Delta) -> tuple[ProviderEvent, ...]:
        if delta.content:
            return (TextDelta(delta.content),)
        if delta.refusal:
            self._refused = True
        return (THINKING,) if delta.reasoning_content else ()

    def end(self) -> Finished | Failed:
        """How the stream ended, judged by its last finish reason: without one it was cut off."""
        match self._finish:
            case None | "error":
                return cut_short()
            case "content_filter":
                return declined("content_filter")
            case reason:
                return declined("refusal") if self._refused else Finished(reason)


def _failure(error: Any) -> Failed:
    """An error that came after HTTP 200; its `code` is a status at some servers, a word at others."""
    known = error_in({"error": error})
    status = known.get("code")
    return classify(status if isinstance(status, int) and 400 <= status < 600 else 500, known, None)
