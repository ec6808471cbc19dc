"""From an entry to the rows that are written for it. Pure; done once, when the entry is submitted.

The task's row is the JSON of its state with two fields more; PostgreSQL takes from it what its columns need. So a
batch is a few joins of bytes, whatever its size.
"""

from __future__ import annotations

from uuid import UUID

from attrs import define, field

from engine.ports import Entry, Notify, PredictionChange
from engine.tasks import codec
from engine.tasks.events import Created, Output, Requeued, TaskEvent
from engine.tasks.state import TaskState
from persistence.encoding import to_json

MAX_ENTRY_BYTES = 16 * 1024 * 1024
"""Of one entry, encoded. PostgreSQL's own limits are higher, but one row must not hold up a whole batch."""


class Poison(Exception):
    """The entry can never be stored; the message says why."""


@define(eq=False)
class Pending:
    """An entry on its way, with its rows.

    `told`: its submitter has heard that it is in memory only. `settled`: it has had its last receipt.
    `unsure`: it is being written, or COMMIT was sent for it and has not been answered. `aside`: something of its own
    keeps it from being written. `since`: when it was submitted, on trio's clock.
    """

    entry: Entry
    notify: Notify
    task: bytes | None
    events: tuple[bytes, ...]
    predictions: tuple[bytes, ...]
    outputs: tuple[bytes, ...]
    size: int
    told: bool = False
    settled: bool = False
    unsure: bool = False
    aside: bool = False
    since: float = 0.0
    followers: list[Pending] = field(factory=list)
    """Other new tasks of the same user with the same idempotency key: they are duplicates of this one, if it lives."""

    @property
    def task_id(self) -> UUID:
        return self.entry.task.id

    @property
    def creates(self) -> bool:
        """Whether the task itself is born with this entry."""
        return bool(self.entry.events) and isinstance(self.entry.events[0].body, Created)

    @property
    def key(self) -> tuple[str, str] | None:
        """The idempotency key that this entry takes for its user."""
        task = self.entry.task
        return (task.user, task.idempotency_key) if self.creates and task.idempotency_key is not None else None


def prepare(entry: Entry, notify: Notify) -> Pending:
    """Encodes an entry. Raises Poison."""
    try:
        task = _task(entry) if entry.events else None
        events = tuple(_event(event) for event in entry.events)
        predictions = tuple(_prediction(change) for change in entry.predictions)
        outputs = tuple(_output(entry.task, output) for output in entry.outputs)
    except (TypeError, ValueError, RecursionError) as problem:
        raise Poison(f"an entry of task {entry.task.id} has no JSON form: {problem}") from problem
    size = len(task or b"") + sum(map(len, (*events, *predictions, *outputs)))
    if size > MAX_ENTRY_BYTES:
        raise Poison(f"an entry of task {entry.task.id} has {size} bytes; {MAX_ENTRY_BYTES} can be stored")
    return Pending(entry, notify, task, events, predictions, outputs, size)


def _task(entry: Entry) -> bytes:
    """`expected`: the version that the row should have now. `reopens`: whether a finished task may change by this."""
    expected = entry.events[0].seq - 1
    reopens = isinstance(entry.events[0].body, Requeued)
    more = b',"expected":%d,"reopens":%s}' % (expected, b"true" if reopens else b"false")
    return to_json(entry.task)[:-1] + more


def _event(event: TaskEvent) -> bytes:
    return to_json(
        {
            "task_id": event.task_id,
            "seq": event.seq,
            "type": codec.type_name(event.body),
            "attempt": event.attempt,
            "actor": event.actor,
            "payload": event.body,
            "at": event.at,
        }
    )


def _prediction(change: PredictionChange) -> bytes:
    return to_json(change)


def _output(task: TaskState, output: Output) -> bytes:
    return b'{"task_id":"%s","attempt":%d,' % (str(task.id).encode(), task.attempt) + to_json(output)[1:]
