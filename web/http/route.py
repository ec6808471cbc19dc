"""A route as data: the adapters serve it, the OpenAPI document and the documentation's test read it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen

from web.http.exchange import Handler

Schema = dict[str, Any]


@frozen
class Parameter:
    """One name of the query string, or a header when `place` says so."""

    name: str
    schema: Schema
    description: str
    place: str = "query"


@frozen
class Route:
    """One call of the API. `path` is in Quart's notation; `refusals` are the codes of `problems.KNOWN` it can answer
    beside those that every call can (`unauthorized`, `internal_error`, …). `direct`: often called, and served past the
    web framework (`web.http.direct`); its path has no arguments. `most`: how many bytes a direct request's body
    may have, told from its query before it is read; None: the house's limit."""

    method: str
    path: str
    handler: Handler
    summary: str
    answer: str | None = None
    status: int = 200
    body: str | None = None
    parameters: tuple[Parameter, ...] = ()
    refusals: tuple[str, ...] = ()
    operator: bool = False
    open: bool = False
    direct: bool = False
    most: Callable[[Mapping[str, str]], int | None] | None = None
    media_type: str = "application/json"
    tag: str = "tasks"

    @property
    def name(self) -> str:
        """A stable name for metrics, logs and `operationId`: `tasks.create`, `models.show`, …"""
        return f"{self.tag}.{self.handler.__name__}"

    @property
    def template(self) -> str:
        """The path in OpenAPI's notation: `/api/tasks/{task_id}`."""
        return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", self.path)

    @property
    def args(self) -> tuple[str, ...]:
        """The names in the path."""
        return tuple(re.findall(r"<(?:\w+:)?(\w+)>", self.path))
