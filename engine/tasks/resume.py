"""What an attempt goes on from: nothing, a prediction that may still be at work, or a result that waits here. Pure.

A prediction that was asked for is paid, or may be. So an attempt whose end is not on record is taken up under the same
id, and one whose result is known to exist is never bought a second time without the user's wish.
"""

from __future__ import annotations

from attrs import frozen

from engine.outputs.spool import Ending
from engine.ports import PredictionChange
from engine.providers.protocol import Failed, FailureKind
from engine.tasks.state import Status, TaskState

HELD_FOR = 3600.0
"""Seconds for which a result that another server holds is waited for; as long as Replicate keeps its own."""
ASK_AGAIN = 10.0


@frozen
class Begin:
    """The provider is asked; `earlier` is what an earlier life of this attempt had asked for."""

    earlier: PredictionChange | None = None


@frozen
class Replay:
    """All that the provider made is in the spool."""

    earlier: PredictionChange
    ending: Ending


@frozen
class Wait:
    """Another server has the result."""

    seconds: float


@frozen
class Lost:
    """The result was paid for, and is nowhere any more."""

    earlier: PredictionChange


Plan = Begin | Replay | Wait | Lost

RESULT_LOST = Failed(
    FailureKind.LOST,
    "result_lost",
    "The provider had finished this, and has billed it, but its result was lost before it could be stored.",
    "Try again if you want it made, and paid for, once more.",
)


def may_have_earlier(task: TaskState | None) -> bool:
    """Whether it is worth a question to the database: it is asked only where the last attempt
    never ended, or left something behind."""
    return task is not None and (task.status is Status.PROCESSING or task.resumes)


def plan(earlier: PredictionChange | None, ending: Ending | None, adopts: bool, node: str, now: float) -> Plan:
    """`ending`: what the spool here has of it; `adopts`: whether the provider gives a finished prediction again."""
    if earlier is None:
        return Begin()
    if ending is not None:
        return Replay(earlier, ending)
    if earlier.held_since is None or (adopts and earlier.external_id is not None):
        return Begin(earlier)
    if earlier.held_by != node and now - earlier.held_since < HELD_FOR:
        return Wait(ASK_AGAIN)
    return Lost(earlier)
