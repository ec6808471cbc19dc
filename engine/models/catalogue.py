"""Useful models of services whose keys are set: a start, which operators change through the registry. Pure data.

Names are those that the services' own clients knew when this was written. Prices change too often to stand here: set
them in the registry, and costs are reckoned from then on.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from engine.models.seeds import SEEDS
from engine.ports import Model
from engine.providers import local

CHAT_SCHEMA: dict[str, Any] = {
    **local.INPUT_SCHEMA,
    "properties": {
        **local.INPUT_SCHEMA["properties"],
        "max_tokens": {"type": "integer", "minimum": 1, "maximum": 200_000, "description": "When to stop."},
    },
}
PICTURE_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "prompt": {"type": "string", "minLength": 1, "maxLength": 10_000, "description": "What to show."},
        "seed": {"type": "integer", "minimum": 0},
        "aspect_ratio": {"type": "string", "description": "As 1:1 or 16:9."},
        "num_outputs": {"type": "integer", "minimum": 1, "maximum": 4},
    },
    "required": ["prompt"],
}


def _id(provider: str, slug: str) -> UUID:
    return uuid5(NAMESPACE_URL, f"elwift:{provider}/{slug}")


def _chat(provider: str, slug: str, owner: str, fallback: str | None = None) -> Model:
    return Model(
        id=_id(provider, slug),
        name=slug,
        provider=provider,
        slug=slug,
        version="1",
        category="text",
        owner=owner,
        input_schema=CHAT_SCHEMA,
        defaults={"max_tokens": 1024},
        fallbacks=(_id(provider, fallback),) if fallback else (),
    )


def _picture(slug: str, description: str) -> Model:
    owner, _, name = slug.partition("/")
    return Model(
        id=_id("replicate", slug),
        name=name,
        provider="replicate",
        slug=slug,
        version="official",
        category="image",
        owner=owner,
        description=description,
        documentation_url=f"https://replicate.com/{slug}",
        input_schema=PICTURE_SCHEMA,
    )


CATALOGUE = (
    _chat("openai", "gpt-6.2-sol", "openai", "gpt-5.4-mini"),
    _chat("openai", "gpt-5.4-mini", "openai"),
    _chat("anthropic", "claude-opus-5-5", "anthropic", "claude-sonnet-5-5"),
    _chat("anthropic", "claude-sonnet-5-5", "anthropic", "claude-haiku-5-5"),
    _chat("anthropic", "claude-haiku-5-5", "anthropic"),
    _chat("gemini", "gemini-3.8-flash", "google", "gemini-3.1-flash-lite"),
    _chat("gemini", "gemini-3.1-flash-lite", "google"),
    _picture("black-forest-labs/flux-schnell", "FLUX.1 schnell: pictures from words, in a few seconds."),
    _picture("stability-ai/sdxl", "Stable Diffusion XL: pictures from words."),
)


def seeds_for(providers: Collection[str]) -> tuple[Model, ...]:
    """The models that a node with these providers starts with."""
    return tuple(model for model in (*SEEDS, *CATALOGUE) if model.provider in providers)
