"""The OpenAPI 3.1 description, made from the table of routes, so that it cannot name what is not served.

The schemas are in `schemas`. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from web.http import problems
from web.http.exchange import Answer, Ask
from web.http.house import House
from web.http.route import Parameter, Route, Schema
from web.http.schemas import schemas

_EVERYWHERE = ("internal_error",)
_GUARDED = ("unauthorized", "cross_origin")


def describe(routes: Iterable[Route], version: str) -> Schema:
    """The whole document."""
    paths: dict[str, dict[str, Schema]] = {}
    for route in routes:
        paths.setdefault(route.template, {})[route.method.lower()] = operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Elwift",
            "version": version,
            "description": "AI requests as supervised, live processes. Watch a task on `task:<id>` over a socket.",
        },
        "paths": paths,
        "components": {"schemas": schemas(), "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def operation(route: Route) -> Schema:
    """One call."""
    described: Schema = {
        "operationId": route.name,
        "summary": route.summary,
        "description": (route.handler.__doc__ or "").strip(),
        "tags": [route.tag],
        "parameters": [*map(_in_path, route.args), *map(_parameter, route.parameters)],
        "responses": responses(route),
        "security": [] if route.open else [{"token": []}],
    }
    if route.body is not None:
        described["requestBody"] = {"required": True, "content": _content("application/json", route.body)}
    return described


def responses(route: Route) -> dict[str, Schema]:
    """The good answer, and one entry for each status of a refusal, naming its codes."""
    good: Schema = {"description": route.summary + ": done."}
    if route.answer is not None:
        good["content"] = _content(route.media_type, route.answer)
    elif route.status != 204:
        good["content"] = {route.media_type: {}}
    found = {str(route.status): good}
    if route.answer == "Readiness":
        found["503"] = {**good, "description": "New work should not be sent here."}
    for status, codes in sorted(by_status(refusals(route)).items()):
        found[str(status)] = {
            "description": ", ".join(f"`{code}`" for code in codes),
            "content": _content(problems.MEDIA_TYPE, "Problem"),
        }
    return found


def refusals(route: Route) -> tuple[str, ...]:
    """Every code this call can answer."""
    who = () if route.open else (*_GUARDED, *(("forbidden",) if route.operator else ()))
    return tuple(dict.fromkeys((*who, *route.refusals, *_EVERYWHERE)))


def by_status(codes: Iterable[str]) -> dict[int, list[str]]:
    """Codes gathered under their status."""
    found: dict[int, list[str]] = {}
    for code in codes:
        found.setdefault(problems.kind(code).status, []).append(code)
    return found


def _content(media_type: str, schema: str) -> Schema:
    return {media_type: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _in_path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _parameter(parameter: Parameter) -> Schema:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": False,
        "schema": parameter.schema,
        "description": parameter.description,
    }


def route(routes: Iterable[Route], version: str) -> Route:
    """The route of the document of `routes`, which is encoded once."""
    body = msgspec.json.format(msgspec.json.encode(describe(routes, version)))

    async def document(house: House, ask: Ask) -> Answer:
        """This description of the API."""
        return Answer(body, headers=(("Cache-Control", "no-cache"),))

    return Route("GET", "/api/openapi.json", document, "This description", open=True, tag="health")
