"""What comes faster than it is wanted is joined, in order; what matters is never late and never lost."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from engine.providers.protocol import (
    Accepted,
    Finished,
    OutputReady,
    Progress,
    ProviderEvent,
    Sabotage,
    TextDelta,
)
from engine.tasks import feed as feeds
from engine.tasks.feed import Feed

EVENTS = st.one_of(
    st.builds(TextDelta, st.text("abc", max_size=3)),
    st.builds(Progress, st.floats(0, 1)),
    st.just(Accepted("x")),
    st.just(Sabotage("y")),
    st.builds(OutputReady, st.integers(0, 3)),
)


@given(st.lists(st.tuples(EVENTS, st.booleans())))
async def test_order_is_kept_and_nothing_is_lost_but_older_progress(said: list[tuple[ProviderEvent, bool]]) -> None:
    feed, taken = Feed(clock=lambda: 0.0), []
    events = [event for event, _ in said]
    for event, take in said:
        await feed.put(event)
        if take:
            taken.append(await feed.take())
    await feed.put(Finished())
    while not taken or taken[-1][-1:] != (Finished(),):
        taken.append(await feed.take())
    flat = [event for batch in taken for event in batch]
    for kind in (Accepted, Sabotage, OutputReady):
        assert [e for e in flat if isinstance(e, kind)] == [e for e in events if isinstance(e, kind)]
    assert _text(flat) == _text(events)
    assert [e for e in flat if isinstance(e, Progress)][-1:] == [e for e in events if isinstance(e, Progress)][-1:]
    assert all(len(batch) == 1 for batch in taken for e in batch if isinstance(e, Sabotage | OutputReady))
    # text before an event that counts stays before it
    assert _before(flat) == _before(events)


def _text(events: list[ProviderEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def _before(events: list[ProviderEvent]) -> list[int]:
    counting = [index for index, e in enumerate(events) if isinstance(e, Accepted | Sabotage | OutputReady)]
    return [len(_text(events[:index])) for index in counting]


async def test_the_first_text_goes_at_once_the_next_is_gathered_an_end_does_not_wait(autojump_clock: Any) -> None:
    feed = Feed()
    start = trio.current_time()
    await feed.put(TextDelta("a"))
    assert await feed.take() == (TextDelta("a"),)
    assert trio.current_time() == start
    await feed.put(TextDelta("b"))
    await feed.put(TextDelta("c"))
    assert await feed.take() == (TextDelta("bc"),)
    assert trio.current_time() - start == pytest.approx(feeds.GATHER)
    await feed.put(TextDelta("d"))
    await feed.put(Finished())
    assert await feed.take() == (TextDelta("d"), Finished())
    assert trio.current_time() - start == pytest.approx(feeds.GATHER)


async def test_a_provider_far_ahead_waits_for_the_one_who_listens(autojump_clock: Any) -> None:
    feed, written = Feed(), 0

    async def write() -> None:
        nonlocal written
        for _ in range(10):
            await feed.put(TextDelta("x" * 10_000))
            written += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        assert written == 6
        total = 0
        while total < 100_000:
            total += sum(len(event.text) for event in await feed.take() if isinstance(event, TextDelta))
    assert written == 10
