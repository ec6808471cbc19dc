"""What is written down is read back the same, and what cannot be read is said to be so."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.tasks import codec
from engine.tasks import events as ev
from engine.tasks.events import Actor, Output, TaskEvent, Usage
from engine.tasks.state import Status, TaskError, TaskState

ID = UUID("01890000-0000-7000-8000-000000000001")
OUTPUT = Output(0, "image", "png", "https://x.test/a", "image/png", 10, "ab" * 32, dimensions={"width": 2, "height": 3})
BODIES: list[ev.EventBody] = [
    ev.Created("ada", ID, "simulate", "simulate", {"steps": 3, "deep": [1, None, {"é": 1.5}]}, job_id=ID),
    ev.Started("local", "smollm2"),
    ev.AttemptFailed("unavailable", "It is down.", "Wait.", 12.5),
    ev.Reset("attempt failed"),
    ev.OutputStored(OUTPUT),
    ev.Responded("naïve 🙂", Usage(1, 2, 0.5, None)),
    ev.Completed(1.25, None, cached=True),
    ev.Failed("boom", "It broke.", "Report it.", retryable=True),
    ev.Cancelled(),
    ev.Requeued(ID),
]


@pytest.mark.parametrize("body", BODIES, ids=codec.type_name)
def test_an_event_is_read_back_as_it_was_written(body: ev.EventBody) -> None:
    event = TaskEvent(ID, 7, 1700000000.25, 2, Actor.WORKER, body)
    name, payload = codec.event_row(event)
    for stored in (payload, payload.decode(), msgspec.json.decode(payload)):
        assert codec.event_from_row(ID, 7, event.at, 2, "worker", name, stored) == event


def test_every_kind_of_event_has_a_name() -> None:
    assert {type(body) for body in BODIES} == set(ev.EventBody.__args__)


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    SCALARS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(
    input=st.dictionaries(TEXT, JSON, max_size=4),
    text=TEXT,
    status=st.sampled_from(Status),
    progress=st.floats(0, 1),
)
def test_a_snapshot_is_read_back_as_it_was_taken(
    input: dict[str, Any], text: str, status: Status, progress: float
) -> None:
    state = TaskState(
        ID, "ada", ID, "m", "p", input, 1.0, status=status, seq=3, progress=progress, text=text, outputs=(OUTPUT,),
        usage=Usage(output_tokens=3), error=TaskError("c", "m", "a", True, 9.0),
    )  # fmt: skip
    payload = codec.encode_state(state)
    assert codec.decode_state(codec.SNAPSHOT_VERSION, payload) == state
    assert codec.decode_state(codec.SNAPSHOT_VERSION, msgspec.json.decode(payload)) == state


def test_fields_of_a_later_version_are_ignored() -> None:
    event = codec.event_from_row(ID, 1, 1.0, 1, "system", "reset", {"reason": "x", "mood": "new"})
    assert event.body == ev.Reset("x")


@pytest.mark.parametrize(
    ("version", "payload"),
    [(2, b"{}"), (1, b"{}"), (1, b"{"), (1, b"\xff"), (1, b"null"), (1, {"id": "no uuid"})],
)
def test_a_damaged_or_newer_snapshot_is_unreadable(version: int, payload: Any) -> None:
    with pytest.raises(codec.Unreadable):
        codec.decode_state(version, payload)


@pytest.mark.parametrize(("name", "payload"), [("reset", b"[]"), ("reset", {"reason": 3}), ("vanished", b"{}")])
def test_a_damaged_event_is_unreadable(name: str, payload: Any) -> None:
    with pytest.raises(codec.Unreadable):
        codec.event_from_row(ID, 1, 1.0, 1, "system", name, payload)
