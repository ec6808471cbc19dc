"""How events and states are written down: JSON that an older or newer version of this code can still read.

May import the task's own data and msgspec. Fields that are not known are ignored, fields that are missing take their
defaults, so an event type may grow; a change that this cannot carry needs a new name of the type.
"""

from __future__ import annotations

from typing import Any, TypeVar
from uuid import UUID

import msgspec

from engine.tasks import events as ev
from engine.tasks.events import Actor, EventBody, TaskEvent
from engine.tasks.state import TaskState

T = TypeVar("T")

SNAPSHOT_VERSION = 1
"""Stored beside each snapshot; a reader that knows only older ones falls back to the log."""

_TYPES: dict[str, type[EventBody]] = {
    "created": ev.Created,
    "started": ev.Started,
    "attempt_failed": ev.AttemptFailed,
    "reset": ev.Reset,
    "output_stored": ev.OutputStored,
    "responded": ev.Responded,
    "completed": ev.Completed,
    "failed": ev.Failed,
    "cancelled": ev.Cancelled,
    "requeued": ev.Requeued,
}
_NAMES = {body: name for name, body in _TYPES.items()}


class Unreadable(Exception):
    """What was stored cannot be understood: it is damaged, or was written by a newer version."""


def type_name(body: EventBody) -> str:
    """The stable name of an event's type, as in the column `type` of the log."""
    return _NAMES[type(body)]


def event_row(event: TaskEvent) -> tuple[str, bytes]:
    """The event's type name and its payload as JSON; the other fields are columns of their own."""
    return type_name(event.body), msgspec.json.encode(event.body)


def event_from_row(
    task_id: UUID, seq: int, at: float, attempt: int, actor: str, type_: str, payload: bytes | str | dict[str, Any]
) -> TaskEvent:
    """The event that `event_row` wrote; `payload` is JSON or what JSON decodes to.

    Raises:
        Unreadable: the type is not known or the payload does not fit it.
    """
    body_type = _TYPES.get(type_)
    if body_type is None:
        raise Unreadable(f"event {seq} of task {task_id} has the unknown type {type_!r}")
    return TaskEvent(task_id, seq, at, attempt, Actor(actor), _read(payload, body_type))


def encode_state(state: TaskState) -> bytes:
    """A snapshot of `state`, as JSON."""
    return msgspec.json.encode(state)


def decode_state(version: int, payload: bytes | str | dict[str, Any]) -> TaskState:
    """The state that `encode_state` wrote under `version`.

    Raises:
        Unreadable: the snapshot is damaged or newer than this code.
    """
    if version != SNAPSHOT_VERSION:
        raise Unreadable(f"a snapshot of version {version} cannot be read by version {SNAPSHOT_VERSION}")
    return _read(payload, TaskState)


def _read(payload: bytes | str | dict[str, Any], type_: type[T]) -> T:
    try:
        if isinstance(payload, bytes | str):
            return msgspec.json.decode(payload, type=type_)
        return msgspec.convert(payload, type=type_, strict=True, builtin_types=())
    except (msgspec.MsgspecError, UnicodeError) as wrong:
        raise Unreadable(f"a stored {type_.__name__} cannot be read: {wrong}") from wrong
