"""What a TaskServer is asked and what it tells: frozen messages, no behaviour.

May import `engine.otp` (for Request and Pid) and the task's own data. The TaskServer itself is in `server`.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from attrs import field, frozen

from engine.jobs.job import Fence
from engine.otp import Pid, Request
from engine.ports import Durability, PredictionChange
from engine.providers.protocol import Failed, Finished, ProviderEvent
from engine.tasks.events import Actor, Output, TaskEvent, Usage
from engine.tasks.state import TaskState

# --- asked (calls) ------------------------------------------------------------------------------------


@frozen
class View:
    """What a newcomer is told: the state now, and the durable events it has missed (see channel-events).

    `durable_seq` is the last seq that is in the database; None: all of them are. What follows is in memory only.
    """

    task: TaskState
    events: tuple[TaskEvent, ...]
    has_more: bool
    reset: bool
    durable_seq: int | None = None

    def durability(self, seq: int) -> Durability:
        """Where the event of this seq is."""
        return Durability.MEMORY if self.durable_seq is not None and seq > self.durable_seq else Durability.DURABLE


@frozen
class Refusal:
    """A request that cannot be met; `code` is stable, `message` is for a person."""

    code: str
    message: str


@frozen
class Subscribe(Request[View]):
    """Adds `subscriber` (a Channel's pid; monitored, and found again by a restarted TaskServer through the channel
    registry) and answers what it missed after `last_seq`. None: no events are wanted, only the state."""

    subscriber: Pid
    last_seq: int | None = None


@frozen
class GetState(Request[TaskState]):
    """The task as it is now."""


@frozen
class CancelTask(Request[TaskState]):
    """Idempotent; on a terminal task it answers the state unchanged."""

    actor: Actor = Actor.USER
    reason: str = "requested"


@frozen
class RetryTask(Request["TaskState | Refusal"]):
    """Gives a failed task a new job, `job_id`, while its TaskServer is still there."""

    actor: Actor
    job_id: UUID


@frozen
class BeginAttempt(Request["AttemptBegun | Refusal"]):
    """A worker starts the next attempt under its fence. The worker is monitored; its crash fails the attempt."""

    worker: Pid
    fence: Fence
    attempt_id: UUID
    provider: str
    model: str
    earlier: PredictionChange | None = None
    """What is on record of it, when it was begun before."""


@frozen
class AttemptBegun:
    """`attempt` is the number to put on every step; `input` is what to run."""

    attempt: int
    task: TaskState


@frozen
class Step(Request["StepTaken | Refusal"]):
    """Events of attempt `attempt`, in order. `offset` is the number of code points of text sent before them.

    An output is told with KeepOutput.
    """

    attempt: int
    events: tuple[ProviderEvent, ...]
    offset: int = 0


@frozen
class KeepOutput(Request["StepTaken | Refusal"]):
    """An output of attempt `attempt` has reached the store."""

    attempt: int
    output: Output


@frozen
class SetAside(Request["StepTaken | Refusal"]):
    """The provider has done its work (`finished`, `usage`), and the result cannot be stored now (`failure`): the
    attempt is taken up at `until` (Unix time), and nothing is bought again."""

    attempt: int
    failure: Failed
    until: float
    finished: Finished
    usage: Usage | None = None


@frozen
class StepTaken:
    """`text_offset` is how many code points of this attempt the TaskServer has. Less than the step's offset: nothing
    of it was taken; send the text from there on, and the step again."""

    text_offset: int


# --- told (sent to subscribers' mailboxes; arrive at handle_info) -------------------------------------


@frozen
class TaskProgress:
    """Lossy, newest wins, never falls within an attempt."""

    task_id: UUID
    attempt: int
    progress: float
    status: str
    step: str | None
    message: str | None
    eta_seconds: float | None
    at: float


@frozen
class TaskText:
    """Generated text; `offset` counts code points from the start of the attempt's text."""

    task_id: UUID
    attempt: int
    offset: int
    text: str = field(repr=False)
    at: float


@frozen
class TaskHappened:
    """A durable event, in order. `final` says that the channel may end: nothing follows."""

    event: TaskEvent
    task: TaskState
    durability: Durability
    final: bool = False


@frozen
class TaskDurable:
    """A task that was accepted in memory has reached the database up to `seq`."""

    task_id: UUID
    seq: int
    at: float


@frozen
class TaskResumed:
    """The TaskServer was restarted after a crash and has its subscribers again; `server` is its new pid."""

    task_id: UUID
    server: Pid
    task: TaskState


TaskNews = TaskProgress | TaskText | TaskHappened | TaskDurable | TaskResumed


# --- creating -----------------------------------------------------------------------------------------


@frozen
class NewTask:
    """A checked wish for a task. `id` may be the client's own (a UUID)."""

    user: str
    input: dict[str, Any] = field(repr=False)
    model: str | None = None
    priority: int | None = None
    idempotency_key: str | None = None
    id: UUID | None = None
    trace_parent: str | None = None


@frozen
class Accepted:
    """The acknowledgement. `created` is False when an idempotency key found an existing task."""

    task: TaskState
    durability: Durability
    created: bool = True
    queue_position: int | None = None
    estimated_wait_seconds: float | None = None
