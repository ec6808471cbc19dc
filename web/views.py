"""The JSON shapes of tasks and their log, the same at every door (HTTP answers, join replies, events).

Pure: engine data in, plain dicts out, ready for `msgspec.json.encode`. May import the engine's data modules.
Times are Unix seconds (floats), progress is 0.0-1.0, sizes are bytes, cost is US dollars.
"""

from __future__ import annotations

from typing import Any

import attrs

from engine.ports import Durability, Model
from engine.tasks import events as ev
from engine.tasks.events import Output, TaskEvent, Usage
from engine.tasks.state import TaskError, TaskState

_PRIVATE_OUTPUT = frozenset({"object_name", "temporary_url"})


def task_view(task: TaskState) -> dict[str, Any]:
    """A task as its user sees it. `response` is the text so far; `error` is the last one, also between attempts."""
    return {
        "id": str(task.id),
        "user": task.user,
        "model": task.model,
        "provider": task.provider,
        "status": task.status.value,
        "progress": task.progress,
        "step": task.step,
        "message": task.message,
        "eta_seconds": task.eta_seconds,
        "attempt": task.attempt,
        "max_attempts": task.max_attempts,
        "priority": task.priority,
        "input": task.input,
        "response": task.text,
        "outputs": [output_view(output) for output in task.outputs],
        "usage": usage_view(task.usage),
        "error": error_view(task.error),
        "seq": task.seq,
        "created_at": task.created_at,
        "started_at": task.started_at,
        "completed_at": task.completed_at,
    }


def output_view(output: Output) -> dict[str, Any]:
    """A stored result; what is only for the house (object name, the provider's own URL) is left out. One whose file is
    gone has no `content_url`, and says that it is `expired`."""
    view = {
        name: value
        for name, value in attrs.asdict(output, recurse=False).items()
        if value is not None and name not in _PRIVATE_OUTPUT
    }
    if not output.content_url:
        del view["content_url"]
        view["expired"] = True
    return view


def usage_view(usage: Usage | None) -> dict[str, Any] | None:
    """What is known of the usage; unknown figures are absent, and null stands for no figure at all."""
    if usage is None:
        return None
    return {name: value for name, value in attrs.asdict(usage).items() if value is not None} or None


def error_view(error: TaskError | None) -> dict[str, Any] | None:
    """The last error in words for a person; `will_retry_at` is absent when no further attempt follows by itself."""
    if error is None:
        return None
    return {name: value for name, value in attrs.asdict(error).items() if value is not None}


def log_view(event: TaskEvent, durability: Durability) -> dict[str, Any]:
    """One line of the task's log: who did what, when. What is in memory only says so."""
    row = {
        "seq": event.seq,
        "type": log_type(event),
        "at": event.at,
        "attempt": event.attempt,
        "actor": event.actor.value,
        "payload": _payload(event),
    }
    return row if durability is Durability.DURABLE else row | {"durability": durability.value}


def log_type(event: TaskEvent) -> str:
    """The event's name in the log, in snake case: `created`, `attempt_failed`, `output_stored`, …"""
    return _LOG_TYPES[type(event.body)]


def _payload(event: TaskEvent) -> dict[str, Any]:
    match event.body:
        case ev.OutputStored(output):
            return {"output": output_view(output)}
        case ev.Responded(text, usage):
            return {"text": text, "usage": usage_view(usage)}
        case ev.Completed(duration, usage, cached):
            return {"duration_seconds": duration, "usage": usage_view(usage), "cached": cached}
        case body:
            return {name: value for name, value in attrs.asdict(body, recurse=False).items() if value is not None}


_LOG_TYPES: dict[type, str] = {
    ev.Created: "created",
    ev.Started: "started",
    ev.AttemptFailed: "attempt_failed",
    ev.Reset: "reset",
    ev.OutputStored: "output_stored",
    ev.Responded: "responded",
    ev.Completed: "completed",
    ev.Failed: "failed",
    ev.Cancelled: "cancelled",
    ev.Requeued: "requeued",
}


def model_view(model: Model, default: bool = False) -> dict[str, Any]:
    """A model that tasks may name. `default` marks the one that is taken when none is named."""
    return {
        "id": str(model.id),
        "name": model.name,
        "provider": model.provider,
        "owner": model.owner,
        "slug": model.slug,
        "version": model.version,
        "category": model.category,
        "description": model.description,
        "documentation_url": model.documentation_url,
        "input_schema": model.input_schema,
        "defaults": model.defaults,
        "price": model.price,
        "is_active": model.is_active,
        "default": default,
    }
