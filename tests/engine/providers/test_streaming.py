"""What an answer is told as, beyond what the services' own tests show: how often progress is, and what was used."""

from __future__ import annotations

import json
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4

import httpx
import pytest
import trio
from trio.testing import MockClock

from engine.providers.llm import FIGURES_EVERY, answered
from engine.providers.openai_compatible import ChatReader
from engine.providers.protocol import (
    Failed,
    Finished,
    Progress,
    ProviderEvent,
    ProviderRequest,
    TextDelta,
    UsageReported,
)
from engine.providers.streaming import Deadlines, Response, retry_after
from engine.tasks.events import Usage
from tests.engine.providers.timed import Answer

END = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


def token(text: str, **more: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text, **more}}]}).encode() + b"\n\n"


async def events_of(
    pieces: list[tuple[float, bytes]], deadlines: Deadlines | None = None, **input: Any
) -> list[tuple[float, ProviderEvent]]:
    """An attempt's events with their times, its answer's pieces coming at theirs."""
    start = trio.current_time()
    answer = Answer([(start + at, piece) for at, piece in pieces])
    answer.headers = {"content-type": "text/event-stream"}

    async def ask() -> Response:
        return answer

    request = ProviderRequest(uuid4(), 1, uuid4(), "model", "slug", "", {"prompt": "x" * 400, **input})
    attempt = answered(request, ask, ChatReader(), deadlines or Deadlines(), lambda problem: None)
    async with aclosing(attempt) as events:
        return [(trio.current_time() - start, event) async for event in events]


async def test_progress_and_what_was_used_are_told_with_the_first_text_and_then_now_and_then(
    autojump_clock: MockClock,
) -> None:
    pieces = [(number * 0.02, token("word ")) for number in range(200)]
    seen = await events_of([*pieces, (4.0, END)], max_tokens=400)
    told = [at for at, event in seen if isinstance(event, Progress)]
    assert told[0] == 0.0
    assert all(later - earlier >= FIGURES_EVERY for earlier, later in pairwise(told))
    assert 10 <= len(told) <= 16
    used = [event.usage for _, event in seen if isinstance(event, UsageReported)]
    assert used[0] == Usage(100, 1)
    spent = [usage.output_tokens or 0 for usage in used]
    assert spent == sorted(spent)
    assert used[-1] == Usage(100, 250)  # a thousand characters, where the service has not counted
    assert isinstance(seen[-1][1], Finished)


async def test_what_the_service_says_takes_the_place_of_what_was_estimated(autojump_clock: MockClock) -> None:
    said = b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}\n\n'
    seen = await events_of([(0.0, token("a")), (0.1, token("b")), (0.2, said), (0.3, END)])
    assert [event.usage for _, event in seen if isinstance(event, UsageReported)][-1] == Usage(7, 2)


async def test_text_that_arrives_together_is_told_as_one_and_a_thought_between_keeps_its_place(
    autojump_clock: MockClock,
) -> None:
    thought = b'data: {"choices": [{"delta": {"reasoning_content": "hm"}}]}\n\n'
    seen = await events_of([(0.0, thought * 3 + token("a") + token("b") + END)])
    kinds = [type(event) for _, event in seen]
    assert kinds == [Progress, TextDelta, Progress, UsageReported, UsageReported, Finished]
    assert seen[1][1] == TextDelta("ab")


async def test_words_and_thoughts_that_come_slowly_keep_a_stream_alive(autojump_clock: MockClock) -> None:
    thought = b'data: {"choices": [{"delta": {"reasoning_content": "hm"}}]}\n\n'
    thoughts = [(0.4 * number, thought) for number in range(1, 6)]
    words = [(2.0 + 0.4 * number, token("a")) for number in range(1, 6)]
    strict = Deadlines(first_token=0.5, between_tokens=0.5)
    seen = await events_of([*thoughts, *words, (4.4, END)], strict)
    assert "".join(event.text for _, event in seen if isinstance(event, TextDelta)) == "a" * 5
    assert isinstance(seen[-1][1], Finished)
    (at, failed) = (await events_of([(0.4, token("a")), (1.0, END)], strict))[-1]
    assert isinstance(failed, Failed)
    assert (failed.code, at) == ("timeout", pytest.approx(0.9))


async def test_after_the_last_word_nothing_is_told(autojump_clock: MockClock) -> None:
    seen = await events_of([(0.0, token("a") + END + token("late"))])
    assert [event for _, event in seen if isinstance(event, TextDelta)] == [TextDelta("a")]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, 0.0),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
    ],
)
def test_when_to_come_again_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(httpx.Headers(headers)) == seconds


def test_a_date_to_come_again_is_counted_from_now() -> None:
    at = datetime.now(UTC) + timedelta(seconds=90)
    seconds = retry_after({"retry-after": at.strftime("%a, %d %b %Y %H:%M:%S GMT")})
    assert seconds is not None
    assert 85 <= seconds <= 90
