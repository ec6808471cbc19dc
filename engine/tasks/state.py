"""The state of a task and the fold that makes it from events.

Pure: data in, data out. `fold` is the only place that says what a durable event does to a task;
`with_progress` and `with_text` do the same for what is live and lossy.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any
from uuid import UUID

from attrs import evolve, field, frozen

from engine.tasks import events as ev
from engine.tasks.events import Output, TaskEvent, Usage


class Status(StrEnum):
    """Where a task is in its life. The last three are terminal."""

    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in _TERMINAL


_TERMINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})


@frozen
class TaskError:
    """The last error of a task, in words for a person."""

    code: str
    message: str
    action: str
    retryable: bool
    will_retry_at: float | None = None


@frozen
class TaskState:
    """A task's whole truth. Times are Unix seconds; `progress` is 0.0-1.0; `text` is what was generated so far."""

    id: UUID
    user: str
    model_id: UUID
    model: str
    provider: str
    input: dict[str, Any] = field(repr=False)
    created_at: float
    priority: int = 4
    max_attempts: int = 3
    queue: str = "default"
    job_id: UUID | None = None
    status: Status = Status.QUEUED
    attempt: int = 0
    seq: int = 0
    progress: float = 0.0
    step: str | None = None
    message: str | None = None
    eta_seconds: float | None = None
    text: str = field(default="", repr=False)
    outputs: tuple[Output, ...] = ()
    usage: Usage | None = None
    error: TaskError | None = None
    started_at: float | None = None
    completed_at: float | None = None
    idempotency_key: str | None = None
    trace_parent: str | None = None
    resumes: bool = False
    """Whether the next attempt takes up what the last one had asked of its provider."""


def fold(state: TaskState | None, event: TaskEvent) -> TaskState:
    """The state after `event`. The first event must be `Created` with seq 1; later ones follow without a gap.

    Raises:
        ValueError: the event does not follow the state.
    """
    if state is None:
        if not isinstance(event.body, ev.Created) or event.seq != 1:
            raise ValueError(f"a log starts with Created at seq 1, not {event.body!r} at {event.seq}")
        return _created(event, event.body)
    if event.seq != state.seq + 1:
        raise ValueError(f"event {event.seq} does not follow {state.seq} of task {state.id}")
    return evolve(state, seq=event.seq, **_changes(state, event))


def _created(event: TaskEvent, body: ev.Created) -> TaskState:
    return TaskState(
        id=event.task_id,
        user=body.user,
        model_id=body.model_id,
        model=body.model,
        provider=body.provider,
        input=body.input,
        created_at=event.at,
        priority=body.priority,
        max_attempts=body.max_attempts,
        queue=body.queue,
        job_id=body.job_id,
        seq=event.seq,
        idempotency_key=body.idempotency_key,
        trace_parent=body.trace_parent,
    )


def _changes(state: TaskState, event: TaskEvent) -> dict[str, Any]:
    """The fields that `event` changes, with their new values."""
    match event.body:
        case ev.Started():
            started_at = state.started_at or event.at
            return {
                "status": Status.PROCESSING,
                "attempt": event.attempt,
                "started_at": started_at,
                "error": None,
                "resumes": False,
            } | _BLANK
        case ev.AttemptFailed(code, message, action, at, resumes):
            error = TaskError(code, message, action, True, will_retry_at=at)
            return {"status": Status.QUEUED, "error": error, "resumes": resumes}
        case ev.Reset():
            return {"text": "", "outputs": ()} | _BLANK
        case ev.OutputStored(output):
            return {"outputs": (*state.outputs, output)}
        case ev.Responded(text, usage):
            return {"text": text, "usage": usage or state.usage}
        case ev.Completed(_, usage, _):
            done = {"status": Status.COMPLETED, "progress": 1.0, "usage": usage or state.usage, "error": None}
            return done | _ended(event)
        case ev.Failed(code, message, action, retryable):
            return {"status": Status.FAILED, "error": TaskError(code, message, action, retryable)} | _ended(event)
        case ev.Cancelled():
            return {"status": Status.CANCELLED} | _ended(event)
        case ev.Requeued(job_id):
            again = {"status": Status.QUEUED, "job_id": job_id, "completed_at": None, "error": None}
            return again | {"text": "", "outputs": ()} | _BLANK
        case ev.Created():
            raise ValueError(f"task {state.id} was created twice")


def _ended(event: TaskEvent) -> dict[str, Any]:
    return {"completed_at": event.at, "eta_seconds": None}


_BLANK: dict[str, Any] = {"progress": 0.0, "step": None, "message": None, "eta_seconds": None}


def with_progress(
    state: TaskState, fraction: float, step: str | None, message: str | None, eta_seconds: float | None
) -> TaskState:
    """The state with newer progress; it never falls within an attempt, and stays within 0.0-1.0."""
    progress = min(max(state.progress, fraction), 1.0)
    return _live(state, progress, step, message, eta_seconds, state.text)


def with_text(state: TaskState, text: str) -> TaskState:
    """The state with `text` appended."""
    return _live(state, state.progress, state.step, state.message, state.eta_seconds, state.text + text)


def _live(
    s: TaskState, progress: float, step: str | None, message: str | None, eta_seconds: float | None, text: str
) -> TaskState:
    """As `evolve`, in a third of its time: this runs at every token. Fields in the order of the class."""
    return TaskState(
        s.id, s.user, s.model_id, s.model, s.provider, s.input, s.created_at, s.priority, s.max_attempts, s.queue,
        s.job_id, s.status, s.attempt, s.seq, progress, step, message, eta_seconds, text, s.outputs, s.usage,
        s.error, s.started_at, s.completed_at, s.idempotency_key, s.trace_parent, s.resumes,
    )  # fmt: skip
