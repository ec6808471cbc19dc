"""Errands outlive whoever asked for them; a throttle lets one at a time try. On a clock that only the tests move."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from engine.providers.errands import FAREWELL, Errands, Interrupted
from engine.providers.throttle import Throttle


@pytest.fixture
async def errands() -> AsyncIterator[Errands]:
    made = Errands()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.attend)
        await wait_all_tasks_blocked()
        yield made
        nursery.cancel_scope.cancel()


async def test_an_errand_answers_whoever_waits_for_it(errands: Errands) -> None:
    unwanted: list[str] = []

    async def work() -> str:
        await trio.lowlevel.checkpoint()
        return "bought"

    async def tidy(result: str) -> None:
        unwanted.append(result)

    assert await errands.run(work, tidy) == "bought"
    assert unwanted == []


async def test_what_comes_when_nobody_waits_any_more_is_tidied_up(errands: Errands) -> None:
    gate, tidied = trio.Event(), trio.Event()

    async def work() -> str:
        await gate.wait()
        return "bought"

    async def tidy(result: str) -> None:
        assert result == "bought"
        tidied.set()

    with trio.CancelScope() as buyer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(errands.run, work, tidy)
            await wait_all_tasks_blocked()
            buyer.cancel()
    assert not tidied.is_set()
    gate.set()
    with trio.fail_after(5):
        await tidied.wait()


async def test_an_errand_that_fails_says_so_and_takes_no_other_with_it(errands: Errands) -> None:
    async def work() -> None:
        raise ZeroDivisionError

    async def tidy(_: None) -> None:
        raise AssertionError

    with pytest.raises(ZeroDivisionError):
        await errands.run(work, tidy)
    assert errands.start(work)
    await wait_all_tasks_blocked()
    with pytest.raises(ZeroDivisionError):
        await errands.run(work, tidy)


async def test_at_the_servers_end_errands_have_a_moment_and_are_then_cut_off(autojump_clock: MockClock) -> None:
    errands, ended = Errands(), []

    async def work(seconds: float) -> float:
        await trio.sleep(seconds)
        return seconds

    async def tidy(_: float) -> None:
        raise AssertionError

    async def ask(seconds: float) -> None:
        try:
            ended.append(await errands.run(lambda: work(seconds), tidy))
        except Interrupted as cut:
            ended.append(-seconds if cut.begun else 0.0)

    async with trio.open_nursery() as outer:
        attending = trio.CancelScope()

        async def attend() -> None:
            with attending:
                await errands.attend()

        outer.start_soon(attend)
        await wait_all_tasks_blocked()
        outer.start_soon(ask, FAREWELL - 1)
        outer.start_soon(ask, FAREWELL + 1)
        await wait_all_tasks_blocked()
        attending.cancel()
    assert ended == [FAREWELL - 1, -(FAREWELL + 1)]
    with pytest.raises(Interrupted) as refused:
        await errands.run(lambda: work(0), tidy)
    assert not refused.value.begun
    assert not errands.start(trio.lowlevel.checkpoint)


async def test_a_throttle_is_open_until_it_is_told_otherwise_and_then_lets_one_at_a_time_try(
    autojump_clock: MockClock,
) -> None:
    throttle, at = Throttle(), []

    async def ask() -> None:
        async with throttle.door() as closed:
            assert closed is None
            at.append(round(trio.current_time() - began, 1))
            await trio.sleep(1)  # what it asks takes a second

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
    assert at == [0.0] * 3
    at.clear()
    began = trio.current_time()
    throttle.refused(10)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
    assert at == [10.0, 11.0, 12.0]


async def test_who_would_wait_too_long_is_told_when_to_come_again(autojump_clock: MockClock) -> None:
    throttle = Throttle(line=1)
    throttle.refused(30)
    told: list[float | None] = []

    async def ask() -> None:
        async with throttle.door() as closed:
            told.append(closed)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        await ask()
    assert told == [60.0, None]  # behind one who waits for 30 seconds
    throttle.refused(3600)
    await ask()
    assert told[-1] == pytest.approx(3600)
