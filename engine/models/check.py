"""Checks a task's input against its model's JSON Schema, and says which field is wrong, in our own words.

The words never repeat the value: it may be a long or a private prompt. May import jsonschema-rs and the errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jsonschema_rs import Draft202012Validator, ReferencingError, ValidationError

from engine.errors import Problem, UserError

MAX_DEPTH = 32
MAX_PROBLEMS = 20


class InputCheck:
    """The compiled check of one schema. Raises UserError (`invalid_schema`) when it is none."""

    def __init__(self, schema: dict[str, Any]) -> None:
        try:
            self._validator = Draft202012Validator(schema, retriever=_nothing_from_elsewhere)
        except (ValidationError, ReferencingError, ValueError) as wrong:
            reason = getattr(wrong, "message", str(wrong))
            raise UserError("invalid_schema", f"The input schema is no JSON Schema: {reason[:200]}") from wrong
        self._schema = schema

    def __call__(self, given: dict[str, Any]) -> None:
        """Raises UserError (`invalid_input`), with the fields that are wrong, unless `given` fits."""
        problems = tuple(_unsafe(given))
        if not problems:
            if self._validator.is_valid(given):
                return
            found = (problem for error in self._validator.iter_errors(given) for problem in self._problems(error))
            problems = tuple(dict.fromkeys(found))
        first = problems[0]
        message = f"{first.where or 'The input'} {first.message}."
        raise UserError("invalid_input", message, details=problems[:MAX_PROBLEMS])

    def _problems(self, error: ValidationError) -> Iterator[Problem]:
        """What is wrong, once for each field."""
        path, name, rule = error.instance_path, error.kind.name, self._rule(error)
        match name:
            case "required":
                yield Problem("is missing", pointer([*path, str(error.kind.value)]))
            case "additionalProperties" if rule is False:
                unknown = error.kind.value
                yield from (Problem("is not a field of this model's input", pointer([*path, key])) for key in unknown)
            case "anyOf" | "oneOf" if isinstance(rule, list) and all("required" in branch for branch in rule):
                names = " or ".join(" with ".join(branch["required"]) for branch in rule)
                yield Problem(f"needs {names}", pointer(path))
            case _ if name in _WORDS:
                yield Problem(_WORDS[name](rule), pointer(path))
            case _:
                yield Problem(f"does not fit the schema's rule {name!r}", pointer(path))

    def _rule(self, error: ValidationError) -> Any:
        """The value of the rule that was broken: as the schema has it, or, behind a reference, as the error does."""
        rule: Any = self._schema
        for step in error.schema_path:
            try:
                rule = rule[step]
            except (KeyError, IndexError, TypeError):
                return error.kind.value
        return rule


def _nothing_from_elsewhere(uri: str) -> Any:
    """A `$ref` to somewhere else must not make the server fetch it."""
    raise ValueError(f"it refers to something outside itself: {uri}")


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
