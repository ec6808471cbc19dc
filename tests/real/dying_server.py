"""A server that kills itself at a chosen instant: `python -m tests.real.dying_server POINT serve …`.

It dies of SIGKILL the first time it comes to the point (see POINTS) after it was sent SIGUSR1, or from the start when
the point's name ends in "!". The product knows nothing of this: its functions are wrapped here.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from attrs import evolve

from engine.jobs.config import Timing
from engine.jobs.job import Cancel, Complete, Retry
from engine.jobs.lane import Lane
from engine.jobs.ports import Retention
from engine.jobs.queues import Queues
from engine.ports import Committed
from engine.providers import simulate
from engine.tasks import recovery, runner
from persistence.jobs.store import PostgresJobStore
from persistence.journal import batch
from web.cli import main

armed = False


def arm(*_: object) -> None:
    global armed
    armed = True


def die() -> None:
    if armed:
        os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str, when: Callable[..., object] = lambda *_, **__: True) -> None:
    """Dies as this function is called with what `when` picks."""
    function = getattr(owner, name)

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if when(*args, **kwargs):
            die()
        return function(*args, **kwargs)

    setattr(owner, name, wrapped)


def after(owner: Any, name: str, when: Callable[[Any], object] = bool) -> None:
    """Dies when this coroutine has come to a result that `when` picks."""
    function = getattr(owner, name)

    @wraps(function)
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = await function(*args, **kwargs)
        if when(result):
            die()
        return result

    setattr(owner, name, wrapped)


def outcome(kind: type) -> Callable[..., bool]:
    """Picks the receipts of changes that are in the database."""
    return lambda _, change, receipt: isinstance(change.outcome, kind) and isinstance(receipt, Committed)


def pruning() -> None:
    """Prunes everything, all the time, and dies of it."""
    of_lease, prune = Timing.of_lease, PostgresJobStore.prune

    def quick(lease: float, drain: float) -> Timing:
        return evolve(of_lease(lease, drain), prune=0.1)

    async def everything(self: PostgresJobStore, retention: Retention, limit: int) -> int:
        return await prune(self, Retention(0.0, 0.0, 0.0), limit)

    Timing.of_lease = quick  # type: ignore[method-assign, assignment]
    PostgresJobStore.prune = everything  # type: ignore[method-assign]
    after(PostgresJobStore, "prune")


POINTS: dict[str, Callable[[], None]] = {
    "a task's entry is built and not committed": lambda: after(batch, "send_jobs", lambda sent: True),
    "a task is committed and not acknowledged": lambda: before(
        Queues, "inserted", lambda _, job, receipt: isinstance(receipt, Committed)
    ),
    "a job has its slot and no worker": lambda: before(Lane, "_start"),
    "a job is claimed from the line": lambda: after(PostgresJobStore, "claim", lambda claimed: claimed.jobs),
    "the intent is written and the provider not asked": lambda: before(runner.Attempt, "run"),
    "some tasks are back and others not": lambda: after(recovery, "_bring_back", lambda back: True),
    "the provider is at work": lambda: before(simulate, "_step", lambda given, step, steps: step == 2),
    "jobs of an earlier life are given back": lambda: after(PostgresJobStore, "recover"),
    "the end is built and not committed": lambda: before(
        batch, "apply_changes", lambda _, changes: any(isinstance(change.outcome, Complete) for change, _ in changes)
    ),
    "a lost server's job is taken back": lambda: after(PostgresJobStore, "rescue"),
    "the end is committed and not told": lambda: before(Queues, "changed", outcome(Complete)),
    "a failed attempt is committed": lambda: before(Queues, "changed", outcome(Retry)),
    "what is due is in line": lambda: after(PostgresJobStore, "stage", lambda staged: staged.moved),
    "a cancel is committed and the work not stopped": lambda: before(Queues, "changed", outcome(Cancel)),
    "what is old is pruned": pruning,
    "running jobs are given back at a stop": lambda: after(PostgresJobStore, "release"),
}


if __name__ == "__main__":
    point, *arguments = sys.argv[1:]
    POINTS[point.removesuffix("!")]()
    signal.signal(signal.SIGUSR1, arm)
    if point.endswith("!"):
        arm()
    sys.exit(main(arguments))
