"""What can happen to a task, as facts: the durable events that its log is made of.

Pure data; imports nothing of ours. `state.fold` says what each event means, `codec` how it is stored. What users
wrote or were given shows in no repr, and so in no log.
Progress and generated text are not events: they live in the TaskServer and reach the snapshot.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any
from uuid import UUID

from attrs import field, frozen


class Actor(StrEnum):
    """Who made an event happen."""

    USER = "user"
    WORKER = "worker"
    OPERATOR = "operator"
    SYSTEM = "system"


@frozen
class Output:
    """One stored result of a task, as a client sees it (sizes in bytes, duration in seconds)."""

    index: int
    type: str
    format: str
    content_url: str
    content_type: str
    file_size_bytes: int
    sha256: str
    object_name: str = ""
    temporary_url: str | None = None
    dimensions: dict[str, int] | None = None
    duration_seconds: float | None = None
    metadata: dict[str, Any] | None = None
    expires_at: float | None = None


@frozen
class Usage:
    """What an attempt used, as far as the provider tells; cost in US dollars."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    predict_seconds: float | None = None
    cost: float | None = None


@frozen
class Created:
    """The task was accepted. Always seq 1; everything a task is born with."""

    user: str
    model_id: UUID
    model: str
    provider: str
    input: dict[str, Any] = field(repr=False)
    priority: int = 4
    max_attempts: int = 3
    queue: str = "default"
    job_id: UUID | None = None
    idempotency_key: str | None = None
    trace_parent: str | None = None


@frozen
class Started:
    """A worker began an attempt (attempts count from 1)."""

    provider: str
    model: str


@frozen
class AttemptFailed:
    """An attempt failed and another will be made at `will_retry_at` (Unix seconds); one that `resumes` takes up what
    this one had asked of its provider."""

    code: str
    message: str
    action: str
    will_retry_at: float
    resumes: bool = False


@frozen
class Reset:
    """Output of a failed attempt had been shown; it is void."""

    reason: str


@frozen
class OutputStored:
    """An output reached the store under its final name."""

    output: Output


@frozen
class Responded:
    """The whole text of a text task, just before `Completed`."""

    text: str = field(repr=False)
    usage: Usage | None = None


@frozen
class Completed:
    """Terminal: the task has its result."""

    duration_seconds: float
    usage: Usage | None = None
    cached: bool = False


@frozen
class Failed:
    """Terminal: no further attempt will be made by itself. `action` tells the person what to do."""

    code: str
    message: str
    action: str
    retryable: bool = False


@frozen
class Cancelled:
    """Terminal: somebody asked for it."""

    reason: str = "requested"


@frozen
class Requeued:
    """A failed task was given a new attempt by hand."""

    job_id: UUID | None = None


EventBody = (
    Created | Started | AttemptFailed | Reset | OutputStored | Responded | Completed | Failed | Cancelled | Requeued
)
TERMINAL = (Completed, Failed, Cancelled)


@frozen
class TaskEvent:
    """One line of a task's log. `seq` is gap-free per task from 1; `at` is Unix time in seconds."""

    task_id: UUID
    seq: int
    at: float
    attempt: int
    actor: Actor
    body: EventBody = field()
