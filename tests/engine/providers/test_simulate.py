"""The model on a clock: its steps, its faults, and the schema that keeps its input in bounds."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any
from uuid import uuid4

import pytest
import trio

from engine.models import SIMULATE
from engine.models.check import InputCheck
from engine.providers.protocol import (
    Failed,
    FailureKind,
    Finished,
    Progress,
    ProviderEvent,
    ProviderRequest,
    Sabotage,
    TextDelta,
)
from engine.providers.simulate import Simulate, SimulatedCrash


async def events(attempt: int = 1, **input: Any) -> list[ProviderEvent]:
    given = {**SIMULATE.defaults, **input}
    InputCheck(SIMULATE.input_schema)(given)
    request = ProviderRequest(uuid4(), attempt, uuid4(), "simulate", "simulate", "1", given)
    async with aclosing(Simulate().run(request)) as stream:
        return [event async for event in stream]


async def test_each_step_takes_its_interval_and_reports_its_share(autojump_clock: Any) -> None:
    start = trio.current_time()
    said = await events()
    assert trio.current_time() - start == pytest.approx(10.0)  # five steps of two seconds, by default
    progress = [event for event in said if isinstance(event, Progress)]
    assert [event.fraction for event in progress] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert [event.eta_seconds for event in progress] == [8, 6, 4, 2, 0]
    assert said[-1] == Finished()


async def test_text_is_words_with_one_space_between(autojump_clock: Any) -> None:
    said = await events(text=True, steps=25, interval=0)
    text = "".join(event.text for event in said if isinstance(event, TextDelta))
    assert text.startswith("Every task is a small process")
    assert len(text.split(" ")) == 25


async def test_fail_at_fails_there_and_not_in_later_attempts_when_told_so(autojump_clock: Any) -> None:
    said = await events(fail_at=2)
    assert len([event for event in said if isinstance(event, Progress)]) == 1
    assert isinstance(said[-1], Failed)
    assert said[-1].kind is FailureKind.PERMANENT
    again = await events(attempt=3, fail_at=2, fail_kind="quota", retry_after=7, fail_attempts=3)
    assert isinstance(again[-1], Failed)
    assert (again[-1].kind, again[-1].retry_after) == (FailureKind.QUOTA, 7)
    assert (await events(attempt=4, fail_at=2, fail_attempts=3))[-1] == Finished()


async def test_crash_at_asks_for_a_crash_of_the_task_server_and_goes_on(autojump_clock: Any) -> None:
    said = await events(crash_at=3)
    assert [isinstance(event, Sabotage) for event in said].index(True) == 2
    assert said[-1] == Finished()


async def test_worker_crash_at_crashes_the_first_attempt_for_real(autojump_clock: Any) -> None:
    with pytest.raises(SimulatedCrash):
        await events(worker_crash_at=1)
    assert (await events(attempt=2, worker_crash_at=1))[-1] == Finished()
