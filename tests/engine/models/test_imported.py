"""Models of Replicate's in the registry: schemas read, versions pinned, kinds guessed, and operators' changes kept."""

from __future__ import annotations

import copy
from typing import Any
from uuid import uuid4

import pytest
from attrs import evolve

from engine.errors import UserError
from engine.models import Models
from engine.models.imported import Reference, read_model, refreshed
from engine.ports import Model
from tests.engine.fakes import MemoryModels

ONE, TWO = "a" * 64, "b" * 64
SCHEMAS: dict[str, Any] = {
    "Input": {
        "type": "object",
        "title": "Input",
        "required": ["prompt"],
        "properties": {
            "prompt": {"type": "string", "title": "Prompt", "x-order": 0, "description": "What to show"},
            "aspect_ratio": {
                "allOf": [{"$ref": "#/components/schemas/aspect_ratio"}],
                "default": "1:1",
                "x-order": 1,
                "description": "Its shape",
            },
            "seed": {"type": "integer", "nullable": True, "x-order": 2},
            "steps": {"type": "integer", "minimum": 1, "maximum": 4, "default": 4},
            "guidance": {"type": "number", "maximum": 5, "default": 7},
            "nullable": {"type": "boolean", "default": False},
        },
    },
    "aspect_ratio": {
        "enum": ["1:1", "16:9"],
        "type": "string",
        "title": "aspect_ratio",
        "description": "An enumeration.",
    },
    "Output": {"type": "array", "items": {"type": "string", "format": "uri"}, "title": "Output"},
}


def version(identifier: str = ONE, **schemas: Any) -> dict[str, Any]:
    return {"id": identifier, "openapi_schema": {"openapi": "3.0.2", "components": {"schemas": {**SCHEMAS, **schemas}}}}


def said(**more: Any) -> dict[str, Any]:
    return {"owner": "acme", "name": "painter", "description": "Paints", "latest_version": version(), **more}


def imported(model: Any = None, chosen: Any = None, reference: str = "acme/painter") -> Model:
    return read_model(uuid4(), Reference.parse(reference), said() if model is None else model, chosen)


async def test_an_imported_model_checks_its_input_and_has_its_defaults() -> None:
    model = imported()
    assert (model.provider, model.owner, model.slug, model.version) == ("replicate", "acme", "acme/painter", ONE)
    assert model.defaults == {"aspect_ratio": "1:1", "steps": 4, "nullable": False}  # 7 is more than 5
    ratio = model.input_schema["properties"]["aspect_ratio"]
    assert (ratio["enum"], ratio["description"]) == (["1:1", "16:9"], "Its shape")
    registry = Models(MemoryModels())
    await registry.put(model)
    fitted = registry.fit("painter", {"prompt": "a cat", "seed": None})
    assert fitted.input == {"prompt": "a cat", "seed": None, **model.defaults}
    for wrong in (
        {"prompt": "a", "aspect_ratio": "2:1"},
        {"prompt": "a", "stepz": 1},
        {},
        {"prompt": "a", "seed": "x"},
    ):
        with pytest.raises(UserError, match="invalid_input"):
            registry.fit("painter", wrong)


def test_a_version_is_pinned_unless_the_model_is_official() -> None:
    assert imported().version == ONE
    assert imported(chosen=version(TWO), reference=f"acme/painter:{TWO}").version == TWO
    assert imported(said(is_official=True)).version == "official"
    assert imported(said(is_official=True), version(TWO), f"acme/painter:{TWO}").version == TWO


@pytest.mark.parametrize(
    ("output", "words", "kind", "category"),
    [
        ({"type": "string", "format": "uri"}, "Paints", "file", "image"),
        ({"type": "array", "items": {"type": "string", "format": "uri"}}, "Makes a short video", "files", "video"),
        ({"type": "string", "format": "uri"}, "Music from words", "file", "audio"),
        ({"type": "array", "items": {"type": "string"}, "x-cog-array-type": "iterator"}, "Talks", "text", "text"),
        ({"type": "string"}, "Writes code", "text", "code"),
        ({"type": "object", "properties": {"text": {"type": "string"}}}, "Transcribes audio", "structure", "text"),
        ({"allOf": [{"$ref": "#/components/schemas/Uri"}]}, "Paints", "file", "image"),
        ({}, "Paints", "structure", "text"),
    ],
)
def test_what_comes_out_is_noted_and_the_category_guessed(output: Any, words: str, kind: str, category: str) -> None:
    uri = {"type": "string", "format": "uri"}
    model = imported(said(description=words, latest_version=version(Output=output, Uri=uri)))
    assert (model.settings["output"], model.category) == (kind, category)


@pytest.mark.parametrize(
    "broken",
    [
        {},
        [],
        said(latest_version=None),
        said(latest_version={"id": ONE}),
        said(latest_version={"id": ONE, "openapi_schema": {"components": {"schemas": {}}}}),
        said(latest_version=version(Input={"type": "object"})),
        said(latest_version=version(Input={"properties": {"a": {"$ref": "#/components/schemas/none"}}})),
        said(latest_version=version(Input={"properties": {"a": {"$ref": "#/components/schemas/Input"}}})),
        said(latest_version=version(Input={"properties": {"a": {"type": "smell"}}})),
        said(latest_version=version(Input={"properties": {"a": {"enum": ["x" * 300_000]}}})),
        said(latest_version={**version(), "id": 7}),
    ],
)
def test_what_cannot_be_used_is_said_to_be_so(broken: Any) -> None:
    with pytest.raises(UserError, match="not_importable"):
        imported(broken)


@pytest.mark.parametrize("text", ["painter", "acme/painter:1", "a/b/c", "../x", "acme/..", "acme/painter?", "é/x"])
def test_only_a_model_of_replicates_is_a_reference(text: str) -> None:
    with pytest.raises(UserError, match="invalid_request"):
        Reference.parse(text)


def test_a_refresh_keeps_what_operators_changed_and_brings_the_rest() -> None:
    known = evolve(
        imported(),
        name="brush",
        price={"second": 0.001},
        is_active=False,
        category="video",
        defaults={"aspect_ratio": "16:9", "nullable": False},  # one changed, one taken out
    )
    known = evolve(known, settings={**known.settings, "max_concurrency": 2})
    schemas = copy.deepcopy(SCHEMAS)
    schemas["Input"]["properties"]["steps"]["default"] = 2
    schemas["Input"]["properties"]["nullable"]["default"] = True
    schemas["Input"]["properties"]["fast"] = {"type": "boolean", "default": True}
    fresh = imported(said(description="Paints better", latest_version=version(**schemas)))
    again = refreshed(known, fresh)
    assert (again.id, again.name, again.price, again.is_active) == (known.id, "brush", {"second": 0.001}, False)
    assert (again.category, again.description) == ("video", "Paints better")
    assert again.defaults == {"aspect_ratio": "16:9", "nullable": True, "fast": True}
    assert "fast" in again.input_schema["properties"]
    assert (again.settings["max_concurrency"], again.settings["output"]) == (2, "files")
    assert refreshed(again, fresh) == again


@pytest.mark.parametrize(
    ("settings", "price"),
    [
        ({"requests_per_minute": 0}, {}),
        ({"max_concurrency": "many"}, {}),
        ({"cache_seconds": -1}, {}),
        ({"queue": "nowhere"}, {}),
        ({"queue": 7}, {}),
        ({"backoff": {"floor": "soon"}}, {}),
        ({"content_policy_fallback": "yes"}, {}),
        ({}, {"second": -1.0}),
        ({}, {"second": float("nan")}),
    ],
)
async def test_settings_and_prices_that_nobody_could_use_are_refused(settings: Any, price: Any) -> None:
    registry = Models(MemoryModels(), queues=("default", "local"))
    with pytest.raises(UserError, match="invalid_request"):
        await registry.put(evolve(imported(), settings=settings, price=price))
    await registry.put(evolve(imported(), settings={"queue": "local", "max_concurrency": 1}, price={"run": 0.04}))
