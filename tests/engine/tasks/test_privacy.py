"""What users wrote or were given is in no repr, for what has a repr may be logged: crash reports print messages."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from engine.ports import PredictionChange
from engine.providers.protocol import OutputReady, ProviderRequest, TextDelta
from engine.tasks import events as ev
from engine.tasks.events import Actor, TaskEvent
from engine.tasks.messages import AttemptBegun, NewTask, Step, TaskHappened, TaskText, View
from engine.tasks.state import fold

SECRET = "my diary"
ID = uuid4()
INPUT = {"prompt": SECRET}
CREATED = TaskEvent(ID, 1, 1.0, 0, Actor.USER, ev.Created("ada", ID, "m", "p", INPUT))
STATE = fold(fold(None, CREATED), TaskEvent(ID, 2, 1.0, 1, Actor.WORKER, ev.Responded(SECRET)))


@pytest.mark.parametrize(
    "thing",
    [
        CREATED, STATE, ev.Responded(SECRET), NewTask("ada", INPUT), Step(1, (TextDelta(SECRET),)),
        TaskText(ID, 1, 0, SECRET, 1.0), TaskHappened(CREATED, STATE, "durable"), View(STATE, (CREATED,), False, False),
        AttemptBegun(1, STATE), ProviderRequest(ID, 1, ID, "m", "m", "1", INPUT), OutputReady(0, data=SECRET.encode()),
        PredictionChange(ID, ID, 1, "p", "intent", input=INPUT, output=SECRET, logs=SECRET),
    ],
    ids=lambda thing: type(thing).__name__,
)  # fmt: skip
def test_no_repr_shows_what_users_wrote_or_were_given(thing: Any) -> None:
    assert "diary" not in repr(thing)
