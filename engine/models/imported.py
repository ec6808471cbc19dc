"""A model of Replicate's, read into a row of the registry, and read again without losing what operators changed. Pure.

Source: Replicate's HTTP API (models.get, models.versions.get); Cog's schemas of inputs and outputs, which are those of
OpenAPI: choices stand behind references, wrapped in `allOf`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Literal
from uuid import UUID

import msgspec
from attrs import evolve, frozen

from engine.errors import UserError
from engine.models.check import InputCheck
from engine.ports import Model

Category = Literal["image", "video", "audio", "text", "code"]
LARGEST_SCHEMA = 256 * 1024
DEEPEST = 16
_REFERENCE = re.compile(
    r"(?P<owner>[A-Za-z0-9][\w.-]{0,99})/(?P<name>[A-Za-z0-9][\w.-]{0,99})(?::(?P<version>[0-9a-f]{64}))?"
)
_WORDS: tuple[tuple[Category, re.Pattern[str]], ...] = (
    ("video", re.compile(r"\b(video|movie|animat\w+|film)s?\b", re.IGNORECASE)),
    ("audio", re.compile(r"\b(audio|music|speech|voice|sound|song|tts)s?\b", re.IGNORECASE)),
)
_CODE = re.compile(r"\bcod(e|er|ing)\b", re.IGNORECASE)
_canonical = msgspec.json.Encoder(order="sorted")


@frozen
class Reference:
    """Which model of Replicate's is meant; without a version, the one that Replicate runs now."""

    owner: str
    name: str
    version: str | None = None

    @property
    def slug(self) -> str:
        return f"{self.owner}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Reads `owner/name` or `owner/name:version`. Raises UserError (`invalid_request`)."""
        found = _REFERENCE.fullmatch(text)
        if found is None:
            words = "Name the model as owner/name, or owner/name:version with the version's 64 hexadecimal digits."
            raise UserError("invalid_request", words)
        return cls(found["owner"], found["name"], found["version"])


def read_model(model_id: UUID, wanted: Reference, model: Any, version: Any, name: str | None = None) -> Model:
    """The row for what Replicate says of a model and of one of its versions (None: the latest that the model names).

    An official model that was asked for without a version runs as such, at its published price; any other is pinned.

    Raises:
        UserError: `not_importable`: there is no schema that can be used.
    """
    said = model if isinstance(model, Mapping) else {}
    chosen = version if version is not None else said.get("latest_version")
    chosen = chosen if isinstance(chosen, Mapping) else {}
    schemas = _schemas(chosen)
    official = said.get("is_official") is True and wanted.version is None
    pinned = "official" if official else chosen.get("id")
    if not isinstance(pinned, str):
        raise UserError("not_importable", f"Replicate names no version of {wanted.slug} that could be pinned.")
    schema = input_schema(schemas)
    output = output_shape(schemas)
    description = _text(said.get("description"))
    return _with_memory(
        Model(
            id=model_id,
            name=name or wanted.name,
            provider="replicate",
            slug=wanted.slug,
            version=pinned,
            category=category_of(output, f"{wanted.name.replace('-', ' ')} {description or ''}"),
            owner=wanted.owner,
            description=description,
            documentation_url=f"https://replicate.com/{wanted.slug}",
            input_schema=schema,
            defaults=defaults_of(schema),
            settings={"output": output},
        )
    )


def _schemas(version: Mapping[str, Any]) -> dict[str, Any]:
    found: Any = version.get("openapi_schema")
    for step in ("components", "schemas"):
        found = found.get(step) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping) or not isinstance(found.get("Input"), Mapping):
        raise UserError("not_importable", "Replicate gives no schema of this model's input.")
    if len(_canonical.encode(found)) > LARGEST_SCHEMA:
        raise UserError("not_importable", f"The model's schema has more than {LARGEST_SCHEMA} bytes.")
    return dict(found)


# --- schemas ----------------------------------------------------------------------------------------------


def input_schema(schemas: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON Schema of the input, with its references put in. Fields that it does not name are refused.

    Raises UserError (`not_importable`).
    """
    resolved = _resolved(schemas["Input"], schemas, DEEPEST)
    fields = resolved.get("properties")
    if not isinstance(fields, dict):
        raise UserError("not_importable", "The schema of the model's input names no fields.")
    required = [name for name in resolved.get("required", ()) if name in fields]
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": fields,
        "additionalProperties": False,
    }
    schema |= {"required": required} if required else {}
    try:
        InputCheck(schema)
    except UserError as wrong:
        raise UserError("not_importable", f"The model's schema cannot be used. {wrong.message}") from wrong
    return schema


def _resolved(schema: Any, schemas: Mapping[str, Any], depth: int) -> Any:
    """A schema without references and wrappers of one part, and with OpenAPI's `nullable` in JSON Schema's words."""
    if isinstance(schema, list):
        return [_resolved(part, schemas, depth) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    if depth == 0:
        raise UserError("not_importable", "The model's schema is nested too deeply, or refers to itself.")
    whole = {key: _part(key, part, schemas, depth - 1) for key, part in schema.items() if key != "$ref"}
    if "$ref" in schema:
        whole = {**_resolved(_target(schema["$ref"], schemas), schemas, depth - 1), **whole}
    parts = whole.get("allOf")
    if isinstance(parts, list) and len(parts) == 1 and isinstance(parts[0], dict):
        whole = {**parts[0], **{key: part for key, part in whole.items() if key != "allOf"}}
    return _with_null(whole)


def _part(key: str, part: Any, schemas: Mapping[str, Any], depth: int) -> Any:
    """Under `properties` stand names of fields, which may be any words, also those of schemas."""
    if key == "properties" and isinstance(part, Mapping):
        return {str(name): _resolved(field, schemas, depth) for name, field in part.items()}
    return part if key in ("default", "enum", "const", "example", "examples") else _resolved(part, schemas, depth)


def _target(reference: Any, schemas: Mapping[str, Any]) -> Any:
    name = str(reference).removeprefix("#/components/schemas/")
    if name not in schemas:
        raise UserError("not_importable", f"The model's schema refers to {str(reference)[:100]}, which is not there.")
    return schemas[name]


def _with_null(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.pop("nullable", False) is not True:
        return schema
    if isinstance(schema.get("type"), str):
        schema["type"] = [schema["type"], "null"]
    if isinstance(schema.get("enum"), list) and None not in schema["enum"]:
        schema["enum"] = [*schema["enum"], None]
    return schema


def defaults_of(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What fields have when nothing is given: where the schema names it, and it fits its own field."""
    found = {}
    for name, field in schema["properties"].items():
        if isinstance(field, Mapping) and field.get("default") is not None:
            try:
                InputCheck({"properties": {name: field}})({name: field["default"]})
            except UserError:
                continue
            found[name] = field["default"]
    return found


def output_shape(schemas: Mapping[str, Any]) -> str:
    """What comes out: `file`, `files`, `text`, or `structure` for anything else; `unknown` when nothing is said."""
    if "Output" not in schemas:
        return "unknown"
    match _resolved(schemas["Output"], schemas, DEEPEST):
        case {"type": "string", "format": "uri"}:
            return "file"
        case {"type": "string"}:
            return "text"
        case {"type": "array", "items": {"type": "string", "format": "uri"}}:
            return "files"
        case {"type": "array", "items": {"type": "string"}}:
            return "text"
        case _:
            return "structure"


def category_of(output: str, words: str) -> Category:
    """A guess, from what comes out and what is said of it."""
    if output in ("text", "structure"):
        return "code" if output == "text" and _CODE.search(words) else "text"
    return next((category for category, pattern in _WORDS if pattern.search(words)), "image")


def _text(value: Any) -> str | None:
    return value.replace("\0", "")[:4000] if isinstance(value, str) else None


# --- again, later -----------------------------------------------------------------------------------------

FIELDS = ("category", "description", "documentation_url", "input_schema")


def refreshed(known: Model, fresh: Model) -> Model:
    """`fresh` with what operators had changed of `known` since it was imported: whole fields, and defaults one by one.

    Price, fallbacks, name, settings and whether it is in use are theirs altogether.
    """
    before = known.settings.get("imported")
    before = before if isinstance(before, Mapping) else {}
    kept = {name: getattr(known, name) for name in FIELDS if _digest(getattr(known, name)) != before.get(name)}
    defaults = _defaults(known, fresh, before.get("defaults"))
    settings = {**known.settings, **{name: fresh.settings[name] for name in ("output", "imported")}}
    return evolve(
        fresh,
        id=known.id,
        name=known.name,
        price=known.price,
        fallbacks=known.fallbacks,
        is_active=known.is_active,
        settings=settings,
        defaults=defaults,
        **kept,
    )


def _defaults(known: Model, fresh: Model, before: Any) -> dict[str, Any]:
    """An operator's own default stays, and one that they took out stays out, as long as there is such a field."""
    before = before if isinstance(before, Mapping) else {}
    fields = fresh.input_schema.get("properties", {})
    theirs = {name: value for name, value in known.defaults.items() if _digest(value) != before.get(name)}
    gone = before.keys() - known.defaults.keys()
    own = {name: value for name, value in theirs.items() if name in fields}
    return {**{name: value for name, value in fresh.defaults.items() if name not in gone}, **own}


def _with_memory(model: Model) -> Model:
    """Notes what was imported, by digests, so that a later import knows what has been changed by hand."""
    noted: dict[str, Any] = {name: _digest(getattr(model, name)) for name in FIELDS}
    noted["defaults"] = {name: _digest(value) for name, value in model.defaults.items()}
    return evolve(model, settings={**model.settings, "imported": noted})


def _digest(value: Any) -> str:
    return hashlib.sha256(_canonical.encode(value)).hexdigest()[:16]
