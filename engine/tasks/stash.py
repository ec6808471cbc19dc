"""What TaskServers know, kept outside of them: a crash loses nothing, and a read needs no message.

The idea is that of an ETS table in OTP: it belongs to the node, not to the process whose state it holds. Each
TaskServer writes its own entry alone, whole, after each step; others read it, or lay down the state that a TaskServer
is to start from.
"""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

from attrs import frozen

from engine.jobs.job import Fence
from engine.otp import Pid, Ref
from engine.tasks.decide import Running
from engine.tasks.events import TaskEvent
from engine.tasks.outbox import Outbox
from engine.tasks.state import TaskState


@frozen
class Subscriber:
    """A process that is told everything, and the monitor on it."""

    pid: Pid
    ref: Ref


@frozen
class Worker:
    """The process that makes the running attempt, and the monitor on it."""

    pid: Pid
    ref: Ref
    run: Running

    @property
    def fence(self) -> Fence:
        return self.run.fence


@frozen
class Live:
    """A TaskServer's state. `task` is the truth, of which `outbox.told` is the part that has a receipt.

    `log` holds the told events after seq `log_after`; earlier ones are in the store. `crashes` are the Unix times of
    the TaskServer's last ones; `started` tells a restart from the first start. A `mirror` shows a task that lives on
    another server, for as long as it is watched here.
    """

    task: TaskState
    outbox: Outbox
    log: tuple[TaskEvent, ...] = ()
    log_after: int = 0
    worker: Worker | None = None
    subscribers: tuple[Subscriber, ...] = ()
    crashes: tuple[float, ...] = ()
    started: bool = False
    mirror: bool = False

    @property
    def idle(self) -> bool:
        """Whether nothing of ours is under way for the task, so that only others can take it on."""
        return self.worker is None and self.outbox.settled


def of(task: TaskState, mirror: bool = False) -> Live:
    """The state of a task as the store has it."""
    return Live(task, Outbox(task), log_after=task.seq, mirror=mirror)


class Stash:
    """The live tasks of a node, by id."""

    def __init__(self) -> None:
        self._lives: dict[UUID, Live] = {}

    def get(self, task_id: UUID) -> Live | None:
        return self._lives.get(task_id)

    def put(self, live: Live) -> None:
        self._lives[live.task.id] = live

    def offer(self, live: Live) -> bool:
        """Lays down a state to start from, unless there is a newer one already."""
        return self._lives.setdefault(live.task.id, live) is live

    def drop(self, task_id: UUID) -> None:
        self._lives.pop(task_id, None)

    def ids(self) -> Iterator[UUID]:
        return iter(self._lives)

    def __len__(self) -> int:
        return len(self._lives)

    def __contains__(self, task_id: UUID) -> bool:
        return task_id in self._lives

    def __iter__(self) -> Iterator[TaskState]:
        """The told states, in the order in which the tasks came."""
        return (live.outbox.told for live in self._lives.values())
