"""The OpenAPI 3.1 description, made from the table of routes, so that it cannot name what is not served.

The schemas of answers stand here; tests check real answers against them. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from web.http import problems
from web.http.exchange import Answer, Ask
from web.http.house import House
from web.http.models import WriteModel
from web.http.route import Parameter, Route, Schema
from web.http.tasks import CreateTask

_EVERYWHERE = ("internal_error",)
_GUARDED = ("unauthorized",)


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


# --- the schemas of answers ---------------------------------------------------------------------------


def schemas() -> dict[str, Schema]:
    """Every named schema; those of bodies come from the types that decode them."""
    _, bodies = msgspec.json.schema_components([CreateTask, WriteModel], ref_template="#/components/schemas/{name}")
    return {**bodies, **ANSWERS}


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_STRING: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_WHOLE: Schema = {"type": "integer"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_ANY_OBJECT: Schema = {"type": "object"}
_TIME: Schema = {"type": "number", "description": "Unix time in seconds"}
_STATUS: Schema = {"type": "string", "enum": ["queued", "processing", "completed", "failed", "cancelled"]}
_ID: Schema = {"type": "string", "format": "uuid"}

ANSWERS: dict[str, Schema] = {
    "Acknowledgement": _object(
        {
            "task_id": _ID,
            "status": _STATUS,
            "durability": {"type": "string", "enum": ["durable", "memory"]},
            "topic": {"type": "string", "description": "Join it on the socket to watch the task."},
        },
        {"queue_position": _COUNT, "estimated_wait_seconds": {"type": "number", "minimum": 0}},
    ),
    "Task": _object(
        {
            "id": _ID,
            "user": _STRING,
            "model": _STRING,
            "provider": _STRING,
            "status": _STATUS,
            "progress": {"type": "number", "minimum": 0, "maximum": 1},
            "step": _nullable(_STRING),
            "message": _nullable(_STRING),
            "eta_seconds": _nullable(_NUMBER),
            "attempt": _COUNT,
            "max_attempts": _COUNT,
            "priority": _WHOLE,
            "input": _ANY_OBJECT,
            "response": {"type": "string", "description": "The text so far"},
            "outputs": _list(_ref("Output")),
            "usage": _nullable(_ref("Usage")),
            "error": _nullable(_ref("TaskError")),
            "seq": {"type": "integer", "description": "The last durable event; resume a channel from here"},
            "created_at": _TIME,
            "started_at": _nullable(_TIME),
            "completed_at": _nullable(_TIME),
        }
    ),
    "Output": _object(
        {
            "index": _COUNT,
            "type": _STRING,
            "format": _STRING,
            "content_url": _STRING,
            "content_type": _STRING,
            "file_size_bytes": _COUNT,
            "sha256": _STRING,
        },
        {
            "dimensions": {"type": "object", "additionalProperties": _WHOLE},
            "duration_seconds": _NUMBER,
            "metadata": _ANY_OBJECT,
            "expires_at": _TIME,
        },
    ),
    "Usage": _object(
        {}, {"input_tokens": _COUNT, "output_tokens": _COUNT, "predict_seconds": _NUMBER, "cost": _NUMBER}
    ),
    "TaskError": _object(
        {"code": _STRING, "message": _STRING, "action": _STRING, "retryable": _FLAG}, {"will_retry_at": _TIME}
    ),
    "TaskPage": _object({"tasks": _list(_ref("Task")), "cursor": _nullable(_STRING), "partial": _FLAG}),
    "LogEvent": _object(
        {"seq": _WHOLE, "type": _STRING, "at": _TIME, "attempt": _COUNT, "actor": _STRING, "payload": _ANY_OBJECT}
    ),
    "Log": _object({"events": _list(_ref("LogEvent")), "has_more": _FLAG}),
    "Model": _object(
        {
            "id": _ID,
            "name": _STRING,
            "provider": _STRING,
            "owner": _nullable(_STRING),
            "slug": _STRING,
            "version": _STRING,
            "category": _STRING,
            "description": _nullable(_STRING),
            "documentation_url": _nullable(_STRING),
            "input_schema": _ANY_OBJECT,
            "defaults": _ANY_OBJECT,
            "price": _ANY_OBJECT,
            "is_active": _FLAG,
            "default": _FLAG,
        }
    ),
    "Models": _object({"models": _list(_ref("Model")), "default": _nullable(_STRING)}),
    "Me": _object({"user": _STRING, "operator": _FLAG}),
    "Preferences": _ANY_OBJECT,
    "Health": _object({"status": {"const": "ok"}}),
    "Journal": _object(
        {"up": _FLAG, "since": _TIME, "buffered": _COUNT, "bound": _COUNT, "last_error": _nullable(_STRING)}
    ),
    "Readiness": _object(
        {
            "status": {"type": "string", "enum": ["ready", "degraded", "unready"]},
            "draining": _FLAG,
            "journal": _ref("Journal"),
        }
    ),
    "Problem": _object(
        {
            "type": _STRING,
            "title": _STRING,
            "status": _WHOLE,
            "detail": {"type": "string", "description": "What happened and what to do, for a person"},
            "code": {"type": "string", "description": "Stable; for programs", "enum": sorted(problems.KNOWN)},
            "request_id": _STRING,
        },
        {
            "details": _list(_object({"message": _STRING}, {"where": _STRING})),
            "retry_after": {"type": "number", "description": "Seconds"},
        },
    ),
}
ANSWERS["Problem"]["additionalProperties"] = True
