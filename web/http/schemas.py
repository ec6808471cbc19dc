"""The schemas of bodies and answers, by the names that the table of routes uses. Tests hold real answers against them.

Bodies' schemas come from the types that decode them; answers' are written here. Pure.
"""

from __future__ import annotations

import msgspec

from engine.jobs.job import JobState
from web.http import problems
from web.http.imports import ImportModel
from web.http.models import ChangeModel, WriteModel
from web.http.route import Schema
from web.http.tasks import CreateTask
from web.operators.routes import Scale


def schemas() -> dict[str, Schema]:
    """Every named schema; those of bodies come from the types that decode them."""
    _, bodies = msgspec.json.schema_components(
        [CreateTask, WriteModel, ChangeModel, ImportModel, Scale], ref_template="#/components/schemas/{name}"
    )
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
_DAY: Schema = {"type": "string", "format": "date", "description": "A day of UTC"}
_FIGURES: dict[str, Schema] = {
    "input_tokens": _nullable(_COUNT),
    "output_tokens": _nullable(_COUNT),
    "predict_seconds": _nullable(_NUMBER),
    "cost": {**_nullable(_NUMBER), "description": "US dollars, by the prices of the model registry"},
}
_DURABILITY: Schema = {
    "type": "string",
    "enum": ["durable", "memory"],
    "description": "memory: the database is away, and a crash of the server could still undo it",
}

_DUPLICATES: Schema = {**_COUNT, "description": "Calls that were, or may have been, paid beside the one that counts"}

ANSWERS: dict[str, Schema] = {
    "Acknowledgement": _object(
        {
            "task_id": _ID,
            "status": _STATUS,
            "durability": _DURABILITY,
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
            "seq": {"type": "integer", "description": "The last event of the log"},
            "created_at": _TIME,
            "started_at": _nullable(_TIME),
            "completed_at": _nullable(_TIME),
        },
        {"durability": _DURABILITY},
    ),
    "Output": _object(
        {
            "index": _COUNT,
            "type": _STRING,
            "format": _STRING,
            "content_type": _STRING,
            "file_size_bytes": _COUNT,
            "sha256": _STRING,
        },
        {
            "content_url": {"type": "string", "description": "A signed link; absent once the file is gone"},
            "expired": {"type": "boolean", "description": "True once the file is gone"},
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
        {"seq": _WHOLE, "type": _STRING, "at": _TIME, "attempt": _COUNT, "actor": _STRING, "payload": _ANY_OBJECT},
        {"durability": _DURABILITY},
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
        },
        {"fallbacks": _list(_ID), "settings": {**_ANY_OBJECT, "description": "For operators: how it is run"}},
    ),
    "Models": _object({"models": _list(_ref("Model")), "default": _nullable(_STRING)}),
    "Me": _object({"user": _STRING, "operator": _FLAG}),
    "Preferences": _ANY_OBJECT,
    "Predictions": _object(
        {
            "predictions": _list(
                _object(
                    {
                        "id": _ID,
                        "attempt": _COUNT,
                        "provider": _STRING,
                        "external_id": {**_nullable(_STRING), "description": "The provider's own id"},
                        "status": {"type": "string", "description": "The provider's own word, as far as it is known"},
                        "error_message": _nullable(_STRING),
                        **_FIGURES,
                        "duplicates": _DUPLICATES,
                        "open": {"type": "boolean", "description": "Its end at the provider is not on record yet."},
                        "started_at": _nullable(_TIME),
                        "completed_at": _nullable(_TIME),
                    }
                )
            ),
            "total": _object({**_FIGURES, "duplicates": _DUPLICATES}),
        }
    ),
    "UsageReport": _object(
        {
            "user": _STRING,
            "since": _DAY,
            "daily_budget": _nullable(_NUMBER),
            "usage": _list(_object({"day": _DAY, "model": _STRING, "tasks": _COUNT, "attempts": _COUNT, **_FIGURES})),
            "total": _object({"attempts": _COUNT, **_FIGURES}),
        }
    ),
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
    "TreeNode": _object(
        {
            "id": _STRING,
            "pid": _nullable(_STRING),
            "kind": {"type": "string", "enum": ["supervisor", "dynamic_supervisor", "worker"]},
            "behaviour": _STRING,
            "strategy": _nullable(_STRING),
            "status": _STRING,
            "restarts": _COUNT,
            "mailbox": {"type": "integer", "minimum": 0, "description": "Messages waiting"},
            "started_at": _nullable(_TIME),
        },
        {
            "counts": _object({"active": _COUNT, "shown": _COUNT}),
            "paged": {"type": "boolean", "description": "More children: /api/supervisor/children"},
            "children": _list(_ref("TreeNode")),
        },
    ),
    "Tree": _object({"at": _TIME, "tree": _ref("TreeNode")}),
    "TreePage": _object({"children": _list(_ref("TreeNode")), "cursor": _nullable(_STRING)}),
    "Process": _object(
        {
            "pid": _STRING,
            "names": _list(_STRING),
            "behaviour": _STRING,
            "status": _STRING,
            "parent": _nullable(_STRING),
            "mailbox": _COUNT,
            "mailbox_peak": _COUNT,
            "refused": _COUNT,
            "handled": _COUNT,
            "busy_seconds": _NUMBER,
            "started_at": _TIME,
            "last_message": {"type": "string", "description": "Its type alone"},
            "links": _list(_STRING),
            "monitors": _list(_STRING),
            "monitored_by": _COUNT,
            "trap_exit": _FLAG,
            "stack": _STRING,
            "task_id": _nullable(_ID),
            "task": _nullable(_ANY_OBJECT),
            "killable": _FLAG,
        }
    ),
    "Queue": _object(
        {
            "name": _STRING,
            "limit": _COUNT,
            "running": _COUNT,
            "paused": _FLAG,
            "draining": _FLAG,
            "available": _COUNT,
            "scheduled": _COUNT,
            "retryable": _COUNT,
            "executing": _COUNT,
            "suspended": _COUNT,
            "discarded": _COUNT,
            "in_memory": _COUNT,
            "oldest_age": _nullable(_NUMBER),
            "estimated_wait": _NUMBER,
            "job_seconds": _NUMBER,
            "mode": {"type": "string", "enum": ["push", "poll"]},
            "running_ids": _list(_ID),
        }
    ),
    "Queues": _object({"queues": _list(_ref("Queue"))}),
    "Revocation": _object({"user": _STRING, "revoked": _FLAG, "sockets_closed": _COUNT, "stored": _FLAG}),
    "Job": _object(
        {
            "id": _ID,
            "state": {"type": "string", "enum": [state.value for state in JobState]},
            "queue": _STRING,
            "worker": _STRING,
            "task_id": _nullable(_ID),
            "user": _nullable(_STRING),
            "priority": _COUNT,
            "attempt": _COUNT,
            "max_attempts": _COUNT,
            "rescues": _COUNT,
            "snoozes": _COUNT,
            "scheduled_at": _TIME,
            "created_at": _TIME,
            "updated_at": _TIME,
            "node": _nullable(_STRING),
            "home": _nullable(_STRING),
            "errors": _list(_object({"attempt": _COUNT, "at": _TIME, "error": _STRING})),
        }
    ),
    "Jobs": _object({"jobs": _list(_ref("Job")), "cursor": _nullable(_STRING)}),
    "DeadLetters": _object({"jobs": _list(_ref("Job")), "cursor": _nullable(_STRING)}),
    "Overview": _object(
        {
            "at": _TIME,
            "node": _ANY_OBJECT,
            "journal": _ref("Journal"),
            "tasks": _object({"live": _COUNT, "by_status": _ANY_OBJECT}),
            "sockets": _COUNT,
            "queues": _list(_ref("Queue")),
            "servers": _list(_object({"name": _STRING, "me": _FLAG, "alive": _FLAG, "heartbeat_age": _NUMBER})),
            "providers": _list(_object({"name": _STRING, "state": _STRING, "running": _COUNT})),
            "endpoint": _object({"connections": _COUNT, "faults": _ANY_OBJECT}),
            "routes": _list(_ANY_OBJECT),
            "alarms": _list(_object({"name": _STRING, "severity": _STRING, "message": _STRING})),
            "counts": _ANY_OBJECT,
            "recent": _list(_ANY_OBJECT),
        }
    ),
    "Problem": _object(
        {
            "type": _STRING,
            "title": _STRING,
            "status": _WHOLE,
            "detail": {"type": "string", "description": "What happened and what to do, for a person"},
            "code": {"type": "string", "description": "Stable; for programs", "enum": sorted(problems.KNOWN)},
        },
        {
            "request_id": {"type": "string", "description": "Absent when the request was refused unread"},
            "details": _list(_object({"message": _STRING}, {"where": _STRING})),
            "retry_after": {"type": "number", "description": "Seconds"},
        },
    ),
}
ANSWERS["Problem"]["additionalProperties"] = True
