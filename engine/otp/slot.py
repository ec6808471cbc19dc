"""A one-shot answer: one task waits for it, whoever is first fills it, later ones are dropped.

Knows nothing of processes. Calls, starts and waits for an end are all made of it.
"""

from __future__ import annotations

import traceback

from trio.lowlevel import Abort, RaiseCancelT, Task, current_task, reschedule, wait_task_rescheduled


def describe(task: Task) -> str:
    """Where a suspended task stands, as text."""
    return "".join(traceback.StackSummary.extract(task.iter_await_frames()).format())


class Slot:
    """Resolved at most once, waited for at most once, in either order."""

    __slots__ = ("done", "failed", "task", "value")

    def __init__(self) -> None:
        self.done = False
        self.failed = False
        self.value: object = None
        self.task: Task | None = None

    def resolve(self, value: object, failed: bool = False) -> bool:
        """Fills the slot; False when it was filled or given up before."""
        if self.done:
            return False
        self.done = True
        self.failed = failed
        self.value = value
        self.tell()
        return True

    def fail(self, reason: object) -> None:
        """Fills the slot with a reason why there is no answer."""
        self.resolve(reason, failed=True)

    def tell(self) -> None:
        """The slot has been filled: wakes who waits."""
        if self.task is not None:
            reschedule(self.task)
            self.task = None

    async def wait(self) -> object:
        """The value. Given up (later answers are dropped) when the waiting task is cancelled."""
        if not self.done:
            self.task = current_task()
            await wait_task_rescheduled(self._give_up)
        return self.value

    def _give_up(self, _: RaiseCancelT) -> Abort:
        # In the abort, not when Cancelled arrives: a resolve in between must not reschedule the task once more.
        self.done = True
        self.task = None
        return Abort.SUCCEEDED
