"""Refusals as `application/problem+json` (RFC 9457): one table from stable codes to statuses and titles.

Pure. Every refusal that a client can meet is a row of `KNOWN`; the OpenAPI document and docs/http.md list the same
codes. A `UserError` whose code is not listed is a 400: it is the user's, whatever it is.
"""

from __future__ import annotations

from typing import Any

import msgspec
from attrs import frozen

from engine.errors import Problem, UserError

MEDIA_TYPE = "application/problem+json"


@frozen
class Kind:
    """What a code means over HTTP. `title` never changes with the occasion."""

    status: int
    title: str


KNOWN: dict[str, Kind] = {
    # the request itself
    "invalid_json": Kind(400, "The body is not JSON"),
    "invalid_encoding": Kind(400, "The body is not UTF-8"),
    "invalid_request": Kind(400, "The request has the wrong shape"),
    "invalid_cursor": Kind(400, "The cursor is not one of ours"),
    "body_too_large": Kind(413, "The body is too large"),
    "range_not_satisfiable": Kind(416, "The file has no such range"),
    "unsupported_media_type": Kind(415, "The body must be JSON"),
    "not_found": Kind(404, "There is nothing here"),
    "link_expired": Kind(410, "The link has expired"),
    "output_gone": Kind(410, "The file is not kept any more"),
    "precondition_failed": Kind(412, "It is another version"),
    "method_not_allowed": Kind(405, "The method is not allowed here"),
    "request_timeout": Kind(408, "The body did not arrive in time"),
    # who asks
    "unauthorized": Kind(401, "A valid token is needed"),
    "forbidden": Kind(403, "Not allowed"),
    "cross_origin": Kind(403, "Pages of other sites may not do this"),
    "bad_signature": Kind(401, "The delivery is not genuine"),
    "stale_delivery": Kind(400, "The delivery is too old"),
    # what is asked for
    "unknown_task": Kind(404, "No such task"),
    "unknown_model": Kind(422, "No such model"),
    "inactive_model": Kind(422, "The model is not in use"),
    "no_such_model": Kind(404, "No such model"),
    "no_such_process": Kind(404, "No such process"),
    "no_such_queue": Kind(404, "No such queue"),
    "no_such_job": Kind(404, "No such job"),
    "invalid_schema": Kind(422, "The schema is no JSON Schema"),
    "invalid_input": Kind(422, "The input does not fit the model"),
    "task_exists": Kind(409, "The task exists already"),
    "idempotency_conflict": Kind(409, "The key was used for something else"),
    "not_failed": Kind(409, "Only a failed task can be retried"),
    "not_over": Kind(409, "The task is not over"),
    "terminal": Kind(409, "The task is over"),
    "conflict": Kind(409, "Something else was first"),
    "import_unavailable": Kind(409, "There is nowhere to import from"),
    "import_failed": Kind(502, "The other side did not give the model"),
    "not_importable": Kind(422, "The model has no schema that can be used"),
    "name_taken": Kind(409, "The name is taken"),
    "seeded_model": Kind(409, "The model belongs to the system"),
    "job_exists": Kind(409, "Another job has the unique key"),
    "not_stoppable": Kind(409, "This process may not be killed"),
    # how much is asked for
    "over_capacity": Kind(429, "Too much is waiting already"),
    "over_quota": Kind(429, "Too much is waiting for this user"),
    "over_budget": Kind(429, "The budget is used up"),
    "too_many_requests": Kind(429, "Too many requests"),
    # not now
    "draining": Kind(503, "The server is going down"),
    "journal_full": Kind(503, "The database is away and memory is full"),
    "storage_down": Kind(503, "The database is away"),
    "overloaded": Kind(503, "The server is overloaded"),
    "timeout": Kind(503, "No answer in time"),
    "internal_error": Kind(500, "Something broke on our side"),
}
UNKNOWN = Kind(400, "The request was refused")


def kind(code: str) -> Kind:
    """The status and title that belong to a code."""
    return KNOWN.get(code, UNKNOWN)


def document(error: UserError, request_id: str) -> bytes:
    """The body of a refusal: type, title, status, detail, code, request_id, and details / retry_after when known."""
    known = kind(error.code)
    body: dict[str, Any] = {
        "type": f"/docs/problems#{error.code}",
        "title": known.title,
        "status": known.status,
        "detail": error.message,
        "code": error.code,
        "request_id": request_id,
        **error.extra,
    }
    if error.details:
        body["details"] = [_detail(problem) for problem in error.details]
    if error.retry_after is not None:
        body["retry_after"] = error.retry_after
    return msgspec.json.encode(body)


def _detail(problem: Problem) -> dict[str, str]:
    if problem.where is None:
        return {"message": problem.message}
    return {"message": problem.message, "where": problem.where}
