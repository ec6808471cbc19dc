"""What clients are told, as event names and JSON objects. Pure: the engine's news in, payloads out.

Every payload has `at`, the Unix time at which the TaskServer made the step. Durable events have `seq`, gap-free per
task from 1; each durable event of the log is exactly one event here.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from msgspec import Struct

from engine.errors import UserError
from engine.ports import Durability
from engine.tasks import events as ev
from engine.tasks.events import TaskEvent
from engine.tasks.messages import Accepted, TaskDurable, TaskProgress, TaskText, View
from engine.tasks.state import TaskState
from web.views import output_view, task_view, usage_view

Payload = dict[str, Any]


class ProgressTold(Struct, frozen=True, omit_defaults=True, gc=False):
    """Progress as it is told; a Struct, like the text, for these two are nearly all that is ever sent."""

    task_id: UUID
    progress: float
    status: str
    attempt: int
    at: float
    step: str | None = None
    message: str | None = None
    eta_seconds: float | None = None


class TextTold(Struct, frozen=True, gc=False):
    """`offset` counts code points from the start of the attempt's text."""

    task_id: UUID
    attempt: int
    offset: int
    text: str
    at: float


def progress(news: TaskProgress) -> ProgressTold:
    return ProgressTold(
        news.task_id,
        news.progress,
        news.status,
        news.attempt,
        news.at,
        news.step,
        news.message,
        news.eta_seconds,
    )


def text_delta(news: TaskText) -> TextTold:
    return TextTold(news.task_id, news.attempt, news.offset, news.text, news.at)


def durable(news: TaskDurable) -> Payload:
    return {"task_id": news.task_id, "seq": news.seq, "at": news.at}


def happened(event: TaskEvent, task: TaskState, durability: Durability = Durability.DURABLE) -> tuple[str, Payload]:
    """The event and payload that tell of a durable event. `task` is the state after it, or a later one.

    While the database is away an event is told from memory and says so: a crash of the server could still undo it.
    """
    name, rest = _told(event, task)
    told = {"task_id": event.task_id, "seq": event.seq, "at": event.at} | _known(rest)
    return name, told if durability is Durability.DURABLE else told | {"durability": durability.value}


def _told(event: TaskEvent, task: TaskState) -> tuple[str, Payload]:
    match event.body:
        case ev.Created() as created:
            rest = {"model": created.model, "provider": created.provider, "priority": created.priority}
            return "task_created", {"status": "queued"} | rest
        case ev.Started(provider, model):
            return "started", {"attempt": event.attempt, "provider": provider, "model": model}
        case ev.Reset(reason):
            return "reset", {"attempt": event.attempt, "reason": reason}
        case ev.OutputStored(output):
            return "output_stored", {"attempt": event.attempt, "output": output_view(output)}
        case ev.Responded(text, usage):
            return "llm_response", {"text": text, "usage": usage_view(usage)}
        case ev.Completed() as completed:
            return "task_completed", _completed(completed, task)
        case ev.Cancelled(reason):
            return "task_cancelled", {"reason": reason}
        case ev.Requeued():
            return "task_requeued", {}
        case ev.AttemptFailed() | ev.Failed() as failed:
            return "error", {"attempt": event.attempt} | _failure(failed)


def _completed(body: ev.Completed, task: TaskState) -> Payload:
    outputs = [output_view(output) for output in task.outputs]
    return {
        "outputs": outputs,
        "content_url": outputs[0].get("content_url") if outputs else None,
        "usage": usage_view(body.usage),
        "duration_seconds": body.duration_seconds,
        "cached": body.cached or None,
    }


def _failure(body: ev.AttemptFailed | ev.Failed) -> Payload:
    """`will_retry_at` is there when another attempt follows by itself: without it the error is final."""
    told = {"code": body.code, "message": body.message, "action": body.action}
    if isinstance(body, ev.AttemptFailed):
        return told | {"retryable": True, "will_retry_at": body.will_retry_at}
    return told | {"retryable": body.retryable}


def updated(event: TaskEvent, task: TaskState) -> tuple[str, Payload] | None:
    """What the user's own topic is told: a task's birth and its changes of status, nothing else."""
    if isinstance(event.body, ev.Reset | ev.OutputStored | ev.Responded):
        return None
    name, rest = _told(event, task)
    told = {"task_id": event.task_id, "seq": event.seq, "at": event.at, "status": task.status.value}
    summary = told | {"model": task.model, "attempt": task.attempt, "progress": task.progress}
    if name == "task_created":
        return name, summary
    return "task_updated", summary | {"event": name} | _result(rest)


def _result(rest: Payload) -> Payload:
    """The part of a payload that a list of tasks shows: what went wrong, or where the result is."""
    error = {name: rest[name] for name in _ERROR if name in rest}
    return _known({"error": error or None, "content_url": rest.get("content_url")})


_ERROR = ("code", "message", "action", "retryable", "will_retry_at")


def joined(view: View | None) -> Payload:
    """The answer to a join and to `get_state`: the state, and the missed events as the pushes they would have been.

    `durable_seq` is the last event that no crash can undo: where to resume from.
    """
    if view is None:
        return {"task": None, "seq": 0, "durable_seq": 0, "events": [], "has_more": False, "reset": False}
    return {
        "task": task_view(view.task),
        "seq": view.task.seq,
        "durable_seq": view.task.seq if view.durable_seq is None else view.durable_seq,
        "events": missed(view),
        "has_more": view.has_more,
        "reset": view.reset,
    }


def missed(view: View) -> list[Payload]:
    told = (happened(event, view.task, view.durability(event.seq)) for event in view.events)
    return [{"event": name, "payload": payload} for name, payload in told]


def accepted(answer: Accepted) -> Payload:
    """The answer to `llm_generate`: where the task is, and whether a crash can still lose it."""
    told = {
        "task_id": answer.task.id,
        "topic": f"task:{answer.task.id}",
        "status": answer.task.status.value,
        "durability": Durability(answer.durability).value,
        "queue_position": answer.queue_position,
        "estimated_wait_seconds": answer.estimated_wait_seconds,
    }
    return _known(told)


def refusal(problem: UserError) -> Payload:
    """An error as a reply: `reason` is stable, `message` is for a person."""
    details = [_known({"message": detail.message, "where": detail.where}) for detail in problem.details]
    told = {"reason": problem.code, "message": problem.message, "retry_after": problem.retry_after}
    return _known(told | {"details": details or None}) | problem.extra


def _known(payload: Payload) -> Payload:
    """Without what is not known: absent says so, null would not on every client."""
    return {name: value for name, value in payload.items() if value is not None}
