"""How often streams are read: at once with the first text, no later than a slow stream, together where they can be."""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from engine.providers.pace import GRID, Pace
from engine.providers.streaming import Deadlines, Problem, Stream
from tests.engine.providers.timed import Answer


async def told(answer: Answer, pace: Pace, deadlines: Deadlines | None = None) -> list[tuple[float, bytes]]:
    """When each piece was handed over, every piece being text."""
    stream = Stream(deadlines or Deadlines(), pace)
    found = []
    with stream.begun(answer):
        while piece := await stream.piece():
            found.append((trio.current_time(), piece))
            stream.heard(text=True)
    return found


def at_work(streams: int) -> Pace:
    pace = Pace()
    pace.streams = streams
    return pace


@pytest.mark.parametrize(("streams", "seconds"), [(1, 0.02), (100, 0.02), (250, 0.05), (500, 0.1), (5000, 0.1)])
def test_the_more_streams_there_are_the_less_often_each_is_read(streams: int, seconds: float) -> None:
    assert at_work(streams).interval == seconds


async def test_the_first_text_and_that_of_a_slow_stream_do_not_wait(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    slow = [(start + at, b"word ") for at in (0.3, 0.7, 1.1)]
    assert await told(Answer(list(slow)), at_work(500)) == slow


async def test_of_a_quick_stream_what_gathers_is_read_together(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    answer = Answer([(start + number * 0.02, b"w") for number in range(50)])
    seen = await told(answer, at_work(500))
    assert b"".join(piece for _, piece in seen) == b"w" * 50
    assert seen[0] == (start, b"w")
    assert len(seen) <= 12
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(seen)]
    assert max(gaps) <= 0.1 + GRID + 1e-9


async def test_what_comes_by_another_transport_a_piece_at_a_time_is_not_slowed(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    answer = Answer([(start + number * 0.01, b"w") for number in range(20)], gathers=False)
    seen = await told(answer, at_work(500))
    assert [piece for _, piece in seen] == [b"w"] * 20
    assert seen[-1][0] == pytest.approx(start + 0.19)


async def test_streams_that_are_due_together_wake_together_and_outlive_the_one_that_keeps_the_time(
    autojump_clock: MockClock,
) -> None:
    pace, start = at_work(500), trio.current_time()
    woken: list[float] = []

    async def wait() -> None:
        await pace.rest(start)
        woken.append(trio.current_time() - start)

    async with trio.open_nursery() as others, trio.open_nursery() as first:
        first.start_soon(wait)
        await wait_all_tasks_blocked()
        for _ in range(3):
            others.start_soon(wait)
        await wait_all_tasks_blocked()
        first.cancel_scope.cancel()
    assert len(woken) == 3
    assert len(set(woken)) == 1
    assert 0.1 <= woken[0] <= 0.1 + GRID
    assert pace._due == {}


async def test_time_that_our_own_reader_takes_is_not_counted_against_the_service(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    stream = Stream(Deadlines(first_token=1.0, between_tokens=1.0), at_work(1))
    with stream.begun(Answer([(start, b"a"), (start + 5.5, b"b")])):
        assert await stream.piece() == b"a"
        await trio.sleep(5)  # a client that is slow
        stream.heard(text=True)
        assert await stream.piece() == b"b"


async def test_words_that_do_not_come_end_the_stream_though_pings_do(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    stream = Stream(Deadlines(first_token=1.0, between_tokens=0.5), at_work(1))
    with stream.begun(Answer([(start + number * 0.01, b"ping") for number in range(1000)])):
        await stream.piece()
        stream.heard(text=True)  # from now on pings gather, so that no read has to wait
        with pytest.raises(Problem) as silence:  # noqa: PT012
            while await stream.piece():
                pass
        assert silence.value.failure.code == "timeout"
        assert trio.current_time() - start == pytest.approx(0.5, abs=0.05)
