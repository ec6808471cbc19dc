"""Errors that a user can cause: values with a stable code and a sentence on what to do. Imports nothing of ours."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen


@frozen
class Problem:
    """One thing wrong with a request. `where` is a JSON pointer into the request, when there is one place to name."""

    message: str
    where: str | None = None


@frozen
class UserError(Exception):
    """A refusal that loses nothing.

    `code` is stable (`unknown_model`, `invalid_input`, `over_quota`, …); the doors map it to an HTTP status or a
    channel reason. `retry_after` is in seconds.
    """

    code: str
    message: str
    details: tuple[Problem, ...] = ()
    retry_after: float | None = None
    extra: dict[str, Any] = field(factory=dict)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"
