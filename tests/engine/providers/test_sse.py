"""The event-stream decoder, against the standard's rules and every way of cutting the bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.providers import sse
from engine.providers.sse import Decoder, EventTooLarge, ServerSentEvent

STREAM = (
    "\ufeff: a comment\r\n"
    'data: {"a": 1}\r\n\r\n'
    "event: error\ndata: first\ndata:second\n\n"
    "id: 7\nretry: 10\n\n"  # no data: no event
    "data\n\n"
    "event: naïve 🙂\rdata:  two spaces\r\r"
    "data: never ended"
).encode()
EVENTS = [
    ServerSentEvent("message", b'{"a": 1}'),
    ServerSentEvent("error", b"first\nsecond"),
    ServerSentEvent("message", b""),
    ServerSentEvent("naïve 🙂", b" two spaces"),
]


@given(st.lists(st.integers(0, len(STREAM))))
def test_events_are_the_same_wherever_the_bytes_are_cut(cuts: list[int]) -> None:
    decoder, places = Decoder(), sorted({0, *cuts, len(STREAM)})
    chunks = [STREAM[a:b] for a, b in pairwise(places)]
    assert [event for chunk in chunks for event in decoder.feed(chunk)] == EVENTS


def test_bytes_that_are_no_text_are_left_to_who_reads_the_data() -> None:
    assert list(Decoder().feed(b"data: \xff\xfe\n\n")) == [ServerSentEvent("message", b"\xff\xfe")]


@pytest.mark.parametrize("chunk", [b"x" * 1000, b"data: " + b"x" * 1000 + b"\n"])
def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch, chunk: bytes) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 10_000)
    decoder = Decoder()
    fed = (event for _ in range(12) for event in decoder.feed(chunk))
    with pytest.raises(EventTooLarge):
        list(fed)
