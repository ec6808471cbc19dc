"""Tasks and entries as the engine makes them, short enough to read in a test."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID, uuid4

from attrs import define, field

from engine.jobs.job import JobChange, NewJob
from engine.ports import Entry
from engine.tasks.events import (
    Actor,
    Cancelled,
    Completed,
    Created,
    EventBody,
    OutputStored,
    Requeued,
    Responded,
    Started,
    TaskEvent,
)
from engine.tasks.state import TaskState, fold

MODEL = UUID(int=1)

__all__ = ["Cancelled", "Completed", "OutputStored", "Requeued", "Responded", "Story", "created"]


def now() -> float:
    return round(time.time(), 6)


def created(user: str = "ada", **values: Any) -> Created:
    values.setdefault("input", {"prompt": "a cat"})
    return Created(user=user, model_id=MODEL, model="simulate", provider="simulate", **values)


@define
class Story:
    """A task and what has happened to it; each call is the next entry of its log."""

    state: TaskState | None = None
    task_id: UUID = field(factory=uuid4)
    events: list[TaskEvent] = field(factory=list)

    def begin(self, user: str = "ada", job: NewJob | None = None, **values: Any) -> Entry:
        return self.then(created(user, **values), new_job=job)

    def start(self) -> Entry:
        attempt = (self.state.attempt if self.state else 0) + 1
        return self.then(Started("simulate", "simulate"), attempt=attempt)

    def complete(self) -> Entry:
        return self.then(Responded("done"), Completed(1.0))

    def then(self, *bodies: EventBody, attempt: int | None = None, job: JobChange | None = None, **more: Any) -> Entry:
        """The entry that makes these facts so."""
        fresh = []
        for body in bodies:
            seq = self.state.seq + 1 if self.state else 1
            number = attempt if attempt is not None else (self.state.attempt if self.state else 0)
            event = TaskEvent(self.task_id, seq, now(), number, Actor.SYSTEM, body)
            self.state = fold(self.state, event)
            fresh.append(event)
        self.events += fresh
        assert self.state
        return Entry(self.state, tuple(fresh), job=job, **more)
