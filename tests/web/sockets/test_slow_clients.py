"""A client that reads too slowly: what may be lost is, what may be joined is, what must arrive does, in order."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from tests.web.sockets.lines import MemoryTransport
from web.channels.outgoing import TextDelta
from web.channels.payloads import TextTold
from web.sockets.event import Event, Merge
from web.sockets.lane import MOST_HELD, Lane
from web.sockets.serializers import V2
from web.sockets.transport import Upgrade

T = "room:1"
TASK = UUID(int=7)


@pytest.fixture
def transport() -> MemoryTransport:
    return MemoryTransport(Upgrade("/", "", (), ""))


@pytest.fixture
def lane(transport: MemoryTransport) -> Lane:
    joined = Lane(transport, V2(), T, "1", "1")
    joined.answer_join({})
    transport.sent.clear()
    transport.congested = True
    return joined


def told(transport: MemoryTransport) -> list[tuple[str, Any]]:
    import json

    return [(frame[3], frame[4]) for frame in map(json.loads, transport.sent)]


def progress(n: int) -> Event:
    return Event(T, "progress", {"n": n}, Merge.NEWEST)


def delta(offset: int, text: str) -> TextDelta:
    return TextDelta(T, TextTold(TASK, 1, offset, text, float(offset)))


def test_the_newest_progress_wins(transport: MemoryTransport, lane: Lane) -> None:
    for n in range(1000):
        lane.push(progress(n))
    assert transport.sent == []
    lane.release()
    assert told(transport) == [("progress", {"n": 999})]


def test_text_is_joined_without_a_gap(transport: MemoryTransport, lane: Lane) -> None:
    for n in range(1000):
        lane.push(delta(n * 2, "é" + str(n % 10)))
    lane.release()
    ((name, payload),) = told(transport)
    assert name == "text_delta"
    assert payload["offset"] == 0
    assert payload["text"] == "".join("é" + str(n % 10) for n in range(1000))
    assert payload["at"] == 1998.0


def test_what_must_arrive_goes_at_once_and_behind_what_was_held(transport: MemoryTransport, lane: Lane) -> None:
    lane.push(delta(0, "a"))
    lane.push(delta(1, "b"))
    lane.push(progress(1))
    lane.push(progress(2))
    lane.push(Event(T, "llm_response", {"text": "ab"}))
    lane.push(delta(2, "c"))
    assert told(transport) == [
        ("text_delta", {"task_id": str(TASK), "attempt": 1, "offset": 0, "text": "ab", "at": 1.0}),
        ("progress", {"n": 2}),
        ("llm_response", {"text": "ab"}),
    ]


def test_when_room_comes_nothing_overtakes_what_was_held(transport: MemoryTransport, lane: Lane) -> None:
    lane.push(delta(0, "a"))
    transport.congested = False
    lane.push(delta(1, "b"))
    assert [payload["text"] for _, payload in told(transport)] == ["a", "b"]


def test_held_text_is_bounded(transport: MemoryTransport, lane: Lane) -> None:
    chunk = "x" * 1000
    for n in range(10 * MOST_HELD // len(chunk)):
        lane.push(delta(n * len(chunk), chunk))
    assert len(transport.sent) >= 9  # given to the transport, whose own limit ends the connection
    lane.release()
    assert "".join(payload["text"] for _, payload in told(transport)) == chunk * (10 * MOST_HELD // len(chunk))


def test_an_event_shared_by_all_is_encoded_once(transport: MemoryTransport, lane: Lane) -> None:
    encodings = []

    class Counting(V2):
        def tail(self, topic: str, event: str, payload: Any) -> bytes:
            encodings.append(event)
            return super().tail(topic, event, payload)

    shared = Event(T, "progress", {"n": 1})
    wire = Counting()
    for n in range(50):
        other = Lane(transport, wire, T, str(n), "1")
        other.answer_join({})
        other.push(shared)
    assert encodings == ["progress"]
    assert [frame for frame in transport.sent if '"progress"' in str(frame)][:2] == [
        '["0",null,"room:1","progress",{"n":1}]',
        '["1",null,"room:1","progress",{"n":1}]',
    ]
