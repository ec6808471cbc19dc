"""Checks a task's input against its model's JSON Schema, and says which field is wrong, in our own words.

The words never repeat the value: it may be a long or a private prompt. May import jsonschema and the errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jsonschema
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

from engine.errors import Problem, UserError

MAX_DEPTH = 32
MAX_PROBLEMS = 20


class InputCheck:
    """The compiled check of one schema. Raises UserError (`invalid_schema`) when it is none."""

    def __init__(self, schema: dict[str, Any]) -> None:
        try:
            jsonschema.Draft202012Validator.check_schema(schema)
        except SchemaError as wrong:
            raise UserError("invalid_schema", f"The input schema is no JSON Schema: {wrong.message[:200]}") from wrong
        # An empty registry of its own: a `$ref` to somewhere else must not make the server fetch it.
        self._validator = jsonschema.Draft202012Validator(schema, registry=Registry())

    def __call__(self, given: dict[str, Any]) -> None:
        """Raises UserError (`invalid_input`), with the fields that are wrong, unless `given` fits."""
        problems = tuple(dict.fromkeys([*_unsafe(given), *self._unfit(given)]))[:MAX_PROBLEMS]
        if problems:
            first = problems[0]
            raise UserError("invalid_input", f"{first.where or 'The input'} {first.message}.", details=problems)

    def _unfit(self, given: dict[str, Any]) -> Iterator[Problem]:
        try:
            for error in self._validator.iter_errors(given):
                yield from _problems(error)
        except Unresolvable as wrong:
            raise UserError("invalid_schema", "The model's schema refers to something outside itself.") from wrong


def pointer(path: Sequence[str | int]) -> str:
    """A JSON pointer into the request: the prompt stands at its top, everything else under `input`."""
    parts = [str(part).replace("~", "~0").replace("/", "~1") for part in path]
    return "/" + "/".join(parts if parts[:1] == ["prompt"] else ["input", *parts])


def _unsafe(given: dict[str, Any]) -> Iterator[Problem]:
    """Text that PostgreSQL cannot hold or UTF-8 cannot carry, and nesting beyond reason."""
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), given)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, str):
            yield from _unsafe_text(path, value)
        elif isinstance(value, dict | list) and len(path) >= MAX_DEPTH:
            yield Problem(f"is nested deeper than {MAX_DEPTH} levels", pointer(path[:3]))
            return
        elif isinstance(value, dict):
            for name, inner in value.items():
                yield from _unsafe_text(path, name)
                waiting.append(((*path, name), inner))
        elif isinstance(value, list):
            waiting.extend(((*path, index), inner) for index, inner in enumerate(value))


def _unsafe_text(path: tuple[str | int, ...], text: str) -> Iterator[Problem]:
    if "\0" in text:
        yield Problem("must not contain a NUL character", pointer(path))
    elif not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            yield Problem("must be text that UTF-8 can carry: it contains half of a surrogate pair", pointer(path))


def _problems(error: ValidationError) -> Iterator[Problem]:
    path, rule = list(error.absolute_path), error.validator_value
    match error.validator:
        case "required":
            yield from (Problem("is missing", pointer([*path, name])) for name in rule if name not in error.instance)
        case "additionalProperties" if rule is False:
            known = error.schema.get("properties", {})
            unknown = (name for name in error.instance if name not in known)
            yield from (Problem("is not a field of this model's input", pointer([*path, name])) for name in unknown)
        case "anyOf" | "oneOf" if all("required" in branch for branch in rule):
            names = " or ".join(" with ".join(branch["required"]) for branch in rule)
            yield Problem(f"needs {names}", pointer(path))
        case str(name) if name in _WORDS:
            yield Problem(_WORDS[name](rule), pointer(path))
        case name:
            yield Problem(f"does not fit the schema's rule {name!r}", pointer(path))


_TYPES = {
    "string": "text", "integer": "a whole number", "number": "a number", "boolean": "true or false",
    "array": "a list", "object": "an object", "null": "null",
}  # fmt: skip


def _type(rule: str | list[str]) -> str:
    names = [rule] if isinstance(rule, str) else rule
    return "must be " + " or ".join(_TYPES.get(name, name) for name in names)


_WORDS: dict[str, Callable[[Any], str]] = {
    "type": _type,
    "enum": lambda rule: "must be one of " + ", ".join(map(str, rule[:20])),
    "const": lambda rule: f"must be {rule}",
    "minimum": lambda rule: f"must be at least {rule}",
    "maximum": lambda rule: f"must be at most {rule}",
    "exclusiveMinimum": lambda rule: f"must be more than {rule}",
    "exclusiveMaximum": lambda rule: f"must be less than {rule}",
    "multipleOf": lambda rule: f"must be a multiple of {rule}",
    "minLength": lambda rule: f"must have at least {rule} characters" if rule > 1 else "must not be empty",
    "maxLength": lambda rule: f"must have at most {rule} characters",
    "pattern": lambda rule: f"must match the pattern {rule}",
    "format": lambda rule: f"must be a valid {rule}",
    "minItems": lambda rule: f"must have at least {rule} items",
    "maxItems": lambda rule: f"must have at most {rule} items",
    "uniqueItems": lambda rule: "must not have the same item twice",
}
