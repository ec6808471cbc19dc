"""Which route a request takes, told by back ends that do as they are told and a clock that is set by hand."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import UUID, uuid4

import pytest
from attrs import define, evolve, field

from engine.ports import Model
from engine.providers.protocol import (
    Accepted,
    Failed,
    FailureKind,
    Finished,
    OutputReady,
    Progress,
    ProviderEvent,
    ProviderRequest,
    TextDelta,
    UsageReported,
)
from engine.routing import Routing
from engine.routing.breaker import Breaker, BreakerPolicy
from engine.routing.cache import AnswerCache, Kept, key_of
from engine.routing.quota import Bucket, Quota, estimate
from engine.routing.rules import Rules
from engine.tasks.events import Usage

GOOD: list[ProviderEvent] = [Accepted("x1"), TextDelta("hello"), UsageReported(Usage(10, 5)), Finished()]
DOWN = Failed(FailureKind.RETRYABLE, "provider_down", "down", "wait")
THROTTLED = Failed(FailureKind.QUOTA, "quota", "slow", "wait", retry_after=30.0)
BAD_INPUT = Failed(FailureKind.INVALID_INPUT, "invalid_request", "no", "change it")


@define
class BackEnd:
    """A provider that plays `scripts` one after another, the last one for ever."""

    name: str
    scripts: list[list[ProviderEvent]]
    asked: list[ProviderRequest] = field(factory=list)
    closed: int = 0

    async def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        script = self.scripts[min(len(self.asked), len(self.scripts) - 1)]
        self.asked.append(request)
        try:
            for event in script:
                yield event
        finally:
            self.closed += 1


@define
class Table:
    rows: dict[str, Model]

    def find(self, name: str) -> Model | None:
        return self.rows.get(name.partition(":")[0])

    def get(self, model_id: UUID) -> Model | None:
        return next((row for row in self.rows.values() if row.id == model_id), None)


@define
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def model(name: str, provider: str, **fields: Any) -> Model:
    return Model(id=uuid4(), name=name, provider=provider, slug=f"{name}-slug", version="1", category="text", **fields)


def request(name: str = "big", **input: Any) -> ProviderRequest:
    return ProviderRequest(uuid4(), 1, uuid4(), name, f"{name}-slug", "1", input or {"prompt": "hi"})


def routing(big: list[BackEnd], small: list[BackEnd], clock: Clock | None = None, **settings: Any) -> Routing:
    simple = model("small", "other", defaults={"max_tokens": 7})
    rich = model("big", "main", fallbacks=(simple.id,), settings=settings, price={"input_token": 0.01})
    table = Table({"big": rich, "small": simple})
    return Routing(table, {"main": big, "other": small}, clock or Clock())


async def events_of(routing: Routing, wanted: ProviderRequest | None = None) -> list[ProviderEvent]:
    async with aclosing(routing.routed()["main"].run(wanted or request())) as events:
        return [event async for event in events]


async def test_a_healthy_model_answers_itself_and_its_cost_is_told() -> None:
    big, small = BackEnd("main", [GOOD]), BackEnd("other", [GOOD])
    events = await events_of(routing([big], [small]))
    assert events == [Accepted("x1"), TextDelta("hello"), UsageReported(Usage(10, 5, cost=0.1)), Finished()]
    assert small.asked == []


@pytest.mark.parametrize("failure", [DOWN, THROTTLED, evolve(DOWN, kind=FailureKind.PERMANENT, code="provider_auth")])
async def test_before_the_first_token_a_failure_moves_on_unseen(failure: Failed) -> None:
    big, small = BackEnd("main", [[Progress(0.1), failure]]), BackEnd("other", [GOOD])
    events = await events_of(routing([big], [small]))
    assert not [event for event in events if isinstance(event, Failed | Accepted)]
    assert events[-1] == Finished()
    (asked,) = small.asked
    assert (asked.model, asked.slug, asked.input) == ("small", "small-slug", {"max_tokens": 7, "prompt": "hi"})


async def test_after_the_first_token_nothing_is_spliced() -> None:
    big, small = BackEnd("main", [[TextDelta("hel"), DOWN]]), BackEnd("other", [GOOD])
    assert await events_of(routing([big], [small])) == [TextDelta("hel"), DOWN]
    assert small.asked == []


async def test_bad_input_is_nobodys_fault_and_moves_nowhere() -> None:
    big, small = BackEnd("main", [[BAD_INPUT]]), BackEnd("other", [GOOD])
    routes = routing([big], [small])
    for _ in range(10):
        assert await events_of(routes) == [BAD_INPUT]
    assert len(big.asked) == 10


async def test_when_every_route_fails_the_last_failure_is_the_attempts() -> None:
    big, small = BackEnd("main", [[DOWN]]), BackEnd("other", [[evolve(DOWN, code="timeout")]])
    assert await events_of(routing([big], [small])) == [evolve(DOWN, code="timeout")]


async def test_credentials_take_turns_and_one_over_its_quota_rests_alone() -> None:
    clock = Clock()
    first, second = BackEnd("main", [[THROTTLED], GOOD]), BackEnd("main", [GOOD])
    routes = routing([first, second], [], clock)
    for _ in range(6):
        assert (await events_of(routes))[-1] == Finished()
    assert len(first.asked) == 1
    clock.now += 31
    for _ in range(6):
        await events_of(routes)
    assert len(first.asked) > 1


async def test_a_breaker_opens_after_failures_in_a_row_and_lets_one_try_after_its_rest() -> None:
    clock = Clock()
    big = BackEnd("main", [[DOWN]] * 6 + [GOOD])
    routes = routing([big], [], clock)
    for _ in range(5):
        assert await events_of(routes) == [DOWN]
    (resting,) = await events_of(routes)
    assert isinstance(resting, Failed)
    assert (resting.kind, resting.code) == (FailureKind.UNAVAILABLE, "provider_resting")
    assert resting.retry_after == pytest.approx(5.0)
    assert len(big.asked) == 5
    clock.now += 5.1
    assert await events_of(routes) == [DOWN]
    (resting,) = await events_of(routes)
    assert isinstance(resting, Failed)
    assert resting.retry_after == pytest.approx(10.0)
    clock.now += 10.1
    assert (await events_of(routes))[-1] == Finished()


async def test_a_quota_in_requests_a_minute_is_waited_for_without_asking() -> None:
    clock = Clock()
    big = BackEnd("main", [GOOD])
    routes = routing([big], [], clock, requests_per_minute=2)
    assert [(await events_of(routes))[-1] for _ in range(2)] == [Finished()] * 2
    (resting,) = await events_of(routes)
    assert isinstance(resting, Failed)
    assert resting.retry_after == pytest.approx(30.0)
    clock.now += 30
    assert (await events_of(routes))[-1] == Finished()


async def test_closing_early_closes_the_back_end_and_blames_nobody() -> None:
    big = BackEnd("main", [GOOD])
    routes = routing([big], [])
    async with aclosing(routes.routed()["main"].run(request())) as events:
        assert await anext(events) == Accepted("x1")
    assert big.closed == 1
    assert routes.state()[0]["running"] == 0
    assert (await events_of(routes))[-1] == Finished()


async def test_a_kept_answer_is_told_at_once_marked_and_only_while_it_is_fresh() -> None:
    clock = Clock()
    big = BackEnd("main", [GOOD])
    routes = routing([big], [], clock, cache_seconds=60)
    await events_of(routes, request(prompt="hi", seed=1))
    clock.now += 59
    told = await events_of(routes, request(seed=1, prompt="hi"))
    assert told[0] == TextDelta("hello")
    assert told[-1] == Finished("cached", {"age_seconds": 59.0})
    assert len(big.asked) == 1
    await events_of(routes, request(prompt="hi", seed=2))
    clock.now += 61
    await events_of(routes, request(prompt="hi", seed=1))
    assert len(big.asked) == 3


async def test_a_file_of_a_fallback_says_whose_it_is() -> None:
    file: list[ProviderEvent] = [OutputReady(0, url="https://x/"), Finished()]
    events = await events_of(routing([BackEnd("main", [[DOWN]])], [BackEnd("other", [file])]))
    assert events[0] == OutputReady(0, url="https://x/", provider="other")


async def test_what_nothing_here_can_run_is_refused_for_good() -> None:
    (failed,) = await events_of(routing([], []))
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.code) == (FailureKind.PERMANENT, "no_provider")


# --- the parts, pure ------------------------------------------------------------------------------------


def test_a_breaker_opens_when_more_than_half_of_a_minute_failed() -> None:
    breaker = Breaker(BreakerPolicy(row=100))
    for second, good in enumerate([True, False, True, False, False]):
        assert breaker.wait(second) == 0
        breaker.begin()
        breaker.succeeded(second) if good else breaker.failed(DOWN, second)
    assert breaker.wait(5) > 0


def test_old_failures_are_forgotten() -> None:
    breaker = Breaker(BreakerPolicy(row=100))
    for minute in range(20):
        breaker.begin()
        breaker.failed(DOWN, minute * 61.0)
    assert breaker.wait(20 * 61.0) == 0


def test_tokens_are_reserved_and_settled() -> None:
    quota = Quota(tokens=Bucket(1000))
    assert quota.wait(900, 0) == 0
    quota.begin(900, 0)
    assert quota.wait(600, 0) == pytest.approx(30.0)
    quota.end(900, 100, 0)
    assert quota.wait(600, 0) == 0
    quota.begin(600, 0)
    quota.end(600, 1500, 0)
    assert quota.wait(1, 0) > 30


def test_as_many_at_once_as_the_model_takes() -> None:
    quota = Quota.of(Rules.of({"max_concurrency": 1}))
    quota.begin(0, 0)
    assert quota.wait(0, 0) > 0
    quota.end(0, None, 0)
    assert quota.wait(0, 0) == 0


def test_an_estimate_counts_what_is_said_and_the_longest_answer() -> None:
    assert estimate({"prompt": "x" * 400, "max_tokens": 100}) == 200
    assert estimate({"messages": [{"content": "x" * 40}]}) == 10 + 512


def test_the_cache_is_bounded_by_count_and_by_size() -> None:
    cache = AnswerCache(most=2, most_characters=10)
    keys = [key_of(uuid4(), "1", {"n": n}) for n in range(3)]
    for key in keys:
        cache.put(key, Kept("abc", 0.0))
    assert [cache.get(key, 0.0) is not None for key in keys] == [False, True, True]
    cache.put(keys[0], Kept("x" * 9, 0.0))
    assert [cache.get(key, 0.0) is not None for key in keys] == [True, False, False]
