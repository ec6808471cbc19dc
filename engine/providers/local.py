"""The model that runs here: SmolLM2-135M-Instruct in a child OS process (`model_server`), over its HTTP API."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import httpx
from attrs import evolve, frozen

from engine.providers.failures import failed
from engine.providers.openai_compatible import OpenAICompatible
from engine.providers.protocol import Failed, FailureKind, ProviderEvent, ProviderRequest
from engine.providers.streaming import Deadlines

NAME = "local"
MODEL = "SmolLM2-135M-Instruct"
DEFAULTS: dict[str, Any] = {"max_tokens": 256}

_ROLE = {"enum": ["system", "user", "assistant"]}
_CONTENT = {"type": "string", "maxLength": 200_000}
INPUT_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "prompt": {**_CONTENT, "minLength": 1, "description": "What to answer."},
        "system": {**_CONTENT, "description": "How to answer."},
        "messages": {
            "type": "array",
            "minItems": 1,
            "maxItems": 100,
            "description": "A whole conversation, instead of prompt and system.",
            "items": {
                "type": "object",
                "required": ["role", "content"],
                "additionalProperties": False,
                "properties": {"role": _ROLE, "content": _CONTENT},
            },
        },
        "max_tokens": {"type": "integer", "minimum": 1, "maximum": 8000, "description": "When to stop."},
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        "top_p": {"type": "number", "minimum": 0, "maximum": 1},
        "seed": {"type": "integer", "minimum": 0, "maximum": 4_294_967_295},
        "stop": {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": 8},
    },
    "anyOf": [{"required": ["prompt"]}, {"required": ["messages"]}],
}

DEADLINES = Deadlines(connect=2.0, first_token=300.0, between_tokens=60.0)
"""Requests wait for their turn inside the model server, so the first token may be long in coming."""

RESTARTED = frozenset({"provider_down", "stream_broken"})
RETRY_AFTER = 1.0


class ModelServerDown(Exception):
    """The model server did not come up in the time we were ready to wait."""


@frozen
class Local:
    """The provider of the model `local`. `address` waits until the server is up; raises ModelServerDown."""

    client: httpx.AsyncClient
    address: Callable[[], Awaitable[str]]
    name: str = NAME

    async def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """Runs one attempt; when the server dies under it, the attempt fails and may be tried again in a second."""
        chat = OpenAICompatible(self.name, self.client, self._base_url, deadlines=DEADLINES)
        try:
            async with aclosing(chat.run(request)) as events:
                async for event in events:
                    yield _sooner(event) if isinstance(event, Failed) else event
        except ModelServerDown:
            yield failed(FailureKind.RETRYABLE, "model_server_down", RETRY_AFTER)

    async def _base_url(self) -> str:
        return f"{await self.address()}/v1"


def _sooner(failure: Failed) -> Failed:
    if failure.code not in RESTARTED:
        return failure
    return evolve(
        failure,
        code="model_server_restarted",
        message="The local model's process ended while it was working.",
        action="It is started again, and your task with it.",
        retry_after=RETRY_AFTER,
    )
