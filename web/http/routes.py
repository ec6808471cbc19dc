"""The calls of the API, in one table: what is served, what is described, what is tested."""

from __future__ import annotations

from web.http import health, models, tasks, users
from web.http.route import Parameter, Route

_BODY = ("invalid_json", "invalid_encoding", "invalid_request", "body_too_large", "unsupported_media_type")
_CURSOR = Parameter("cursor", {"type": "string"}, "Where the next page starts: the `cursor` of the page before.")
_USER = Parameter("user", {"type": "string"}, "Whose tasks; other users' for operators only.")
_STATUS = Parameter(
    "status",
    {"type": "string", "enum": ["queued", "processing", "completed", "failed", "cancelled"]},
    "Only tasks with this status.",
)
_KEY = Parameter(
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": 255},
    "The same key of the same user answers the same task, also after a restart.",
    "header",
)


def _limit(default: int, most: int) -> Parameter:
    schema = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    return Parameter("limit", schema, "How many at most.")


CREATE = Route(
    "POST",
    "/api/tasks",
    tasks.create,
    "Create a task",
    answer="Acknowledgement",
    status=202,
    body="CreateTask",
    parameters=(_KEY,),
    direct=True,
    refusals=(
        *_BODY,
        "forbidden",
        "unknown_model",
        "inactive_model",
        "invalid_input",
        "idempotency_conflict",
        "conflict",
        "over_capacity",
        "over_quota",
        "over_budget",
        "draining",
        "journal_full",
        "storage_down",
        "timeout",
    ),
)

ROUTES: tuple[Route, ...] = (
    CREATE,
    Route(
        "GET",
        "/api/tasks",
        tasks.index,
        "List tasks, newest first",
        answer="TaskPage",
        parameters=(
            _STATUS,
            Parameter("model", {"type": "string"}, "Only tasks of this model."),
            _CURSOR,
            _limit(50, 200),
            _USER,
        ),
        refusals=("invalid_request", "invalid_cursor", "forbidden", "storage_down"),
    ),
    Route(
        "GET",
        "/api/tasks/<task_id>",
        tasks.show,
        "Read a task",
        answer="Task",
        refusals=("unknown_task", "storage_down"),
    ),
    Route(
        "POST",
        "/api/tasks/<task_id>/cancel",
        tasks.cancel,
        "Cancel a task",
        answer="Task",
        refusals=("unknown_task", "storage_down", "timeout"),
    ),
    Route(
        "POST",
        "/api/tasks/<task_id>/retry",
        tasks.retry,
        "Retry a failed task",
        answer="Task",
        status=202,
        refusals=(
            "unknown_task",
            "not_failed",
            "conflict",
            "over_capacity",
            "over_quota",
            "over_budget",
            "journal_full",
            "storage_down",
            "timeout",
        ),
    ),
    Route(
        "GET",
        "/api/tasks/<task_id>/events",
        tasks.events,
        "Read a task's log",
        answer="Log",
        parameters=(
            Parameter("after", {"type": "integer", "minimum": 0, "default": 0}, "Only events with a higher seq."),
            _limit(500, 500),
        ),
        refusals=("unknown_task", "invalid_request", "storage_down"),
    ),
    Route("GET", "/api/models", models.index, "List the models in use", answer="Models", tag="models"),
    Route(
        "GET",
        "/api/models/<name>",
        models.show,
        "Read a model",
        answer="Model",
        refusals=("no_such_model",),
        tag="models",
    ),
    Route(
        "POST",
        "/api/models",
        models.create,
        "Add a model",
        answer="Model",
        status=201,
        body="WriteModel",
        refusals=(*_BODY, "invalid_schema", "name_taken", "storage_down"),
        operator=True,
        tag="models",
    ),
    Route(
        "PUT",
        "/api/models/<model_id>",
        models.replace,
        "Replace a model",
        answer="Model",
        body="WriteModel",
        refusals=(*_BODY, "no_such_model", "invalid_schema", "name_taken", "storage_down"),
        operator=True,
        tag="models",
    ),
    Route(
        "PATCH",
        "/api/models/<model_id>",
        models.change,
        "Change a model",
        answer="Model",
        body="ChangeModel",
        refusals=(*_BODY, "no_such_model", "invalid_schema", "name_taken", "storage_down"),
        operator=True,
        tag="models",
    ),
    Route(
        "DELETE",
        "/api/models/<model_id>",
        models.remove,
        "Remove a model",
        status=204,
        refusals=("no_such_model", "seeded_model", "storage_down"),
        operator=True,
        tag="models",
    ),
    Route("GET", "/api/users/me", users.me, "Who the token says you are", answer="Me", tag="users"),
    Route(
        "GET",
        "/api/users/me/preferences",
        users.preferences,
        "Read your preferences",
        answer="Preferences",
        refusals=("storage_down",),
        tag="users",
    ),
    Route(
        "PUT",
        "/api/users/me/preferences",
        users.put_preferences,
        "Replace your preferences",
        answer="Preferences",
        body="Preferences",
        refusals=(*_BODY, "storage_down"),
        tag="users",
    ),
    Route("GET", "/healthz", health.live, "Is it alive", answer="Health", open=True, tag="health"),
    Route("GET", "/readyz", health.ready, "May work be sent here", answer="Readiness", open=True, tag="health"),
    Route("GET", "/metrics", health.metrics, "Prometheus metrics", open=True, media_type="text/plain", tag="health"),
)
