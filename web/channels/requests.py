"""What clients may ask on a channel: the payloads' shapes, and the engine's wishes made of them. Pure."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from engine.errors import Problem, UserError
from engine.tasks.messages import NewTask
from engine.tasks.state import TaskState

T = TypeVar("T")


class JoinTask(Struct):
    """Join params of a task's topic, and the payload of `get_state`. Other keys are the client's own affair."""

    last_seq: Annotated[int, Meta(ge=0, lt=2**31)] | None = None


class Generate(Struct):
    """`llm_generate`. `prompt` is a short way to write `input.prompt`."""

    prompt: str | None = None
    model: str | None = None
    input: dict[str, Any] | None = None
    priority: Annotated[int, Meta(ge=0, le=9)] | None = None
    idempotency_key: Annotated[str, Meta(min_length=1, max_length=255)] | None = None


def parse(payload: Any, shape: type[T]) -> T:
    """The payload as `shape`. Raises UserError `invalid_payload`, with where it is wrong."""
    try:
        return msgspec.convert(payload, shape)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$.")
        where = "/" + path.rstrip("`").replace(".", "/") if path else None
        raise UserError("invalid_payload", f"{what}.", (Problem(what, where),)) from None


def new_task(payload: Any, user: str, task_id: UUID | None, trace_parent: str | None) -> NewTask:
    """The wish in an `llm_generate`. Raises UserError `invalid_payload`."""
    wish = parse(payload, Generate)
    given = dict(wish.input or {})
    if wish.prompt is not None:
        given["prompt"] = wish.prompt
    return NewTask(
        user=user,
        input=given,
        model=wish.model,
        priority=wish.priority,
        idempotency_key=wish.idempotency_key,
        id=task_id,
        trace_parent=trace_parent,
    )


def repeats(wish: NewTask, task: TaskState) -> bool:
    """Whether the wish is the one that the task was made of (whose input has the model's defaults as well)."""
    same_input = all(task.input.get(name) == value for name, value in wish.input.items())
    return same_input and wish.model in (None, task.model)


def task_id_of(topic: str) -> UUID:
    """The UUID of a task's topic, in its one canonical spelling. Raises UserError `invalid_topic`."""
    text = topic.removeprefix("task:")
    try:
        task_id = UUID(text)
    except ValueError:
        task_id = None
    if task_id is None or str(task_id) != text.lower():
        raise UserError("invalid_topic", "A task's topic is task: and a UUID.")
    return task_id


def check_object(payload: Any) -> None:
    """Raises UserError `invalid_payload` for anything but a JSON object."""
    if not isinstance(payload, dict):
        raise UserError("invalid_payload", "A payload is a JSON object.", (Problem("not a JSON object"),))
