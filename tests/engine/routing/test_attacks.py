"""What would hurt if routing were careless: bills, herds, poisoned breakers, one bad key, one bad user."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import pytest
import trio
from attrs import define, evolve, field
from hypothesis import given
from hypothesis import strategies as st

from engine.providers.protocol import (
    Accepted,
    Failed,
    FailureKind,
    Finished,
    ProviderEvent,
    ProviderRequest,
    TextDelta,
    UsageReported,
)
from engine.routing import Routing
from engine.routing.breaker import Breaker, BreakerPolicy
from engine.routing.quota import Bucket, Quota
from engine.routing.routes import LATEST, Traffic
from engine.routing.rules import Rules
from engine.tasks.events import Usage
from tests.engine.routing.test_routing import (
    BAD_INPUT,
    DOWN,
    GOOD,
    THROTTLED,
    BackEnd,
    Clock,
    Table,
    events_of,
    model,
    request,
    routing,
)

REVOKED = Failed(FailureKind.PERMANENT, "provider_auth", "no", "tell")
TOO_LONG = Failed(FailureKind.INVALID_INPUT, "context_length", "long", "shorten")
DECLINED = Failed(FailureKind.PERMANENT, "content_policy", "no", "change")
BUSY = Failed(FailureKind.UNAVAILABLE, "provider_busy", "full", "wait", retry_after=1.0)
ON_PURPOSE = Failed(FailureKind.RETRYABLE, "simulated_failure", "as you wished", "wish otherwise")
INEPT = Failed(FailureKind.RETRYABLE, "prediction_failed", "the model made nothing of it", "change")


def only(events: list[ProviderEvent]) -> Failed:
    (failed,) = events
    assert isinstance(failed, Failed)
    return failed


# --- breakers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [BAD_INPUT, DECLINED, INEPT, TOO_LONG, BUSY, ON_PURPOSE])
async def test_what_lies_in_the_input_or_in_a_full_server_opens_no_breaker(failure: Failed) -> None:
    """Else one user with a bad prompt would take a model from all others."""
    big = BackEnd("main", [[failure]])
    routes = routing([big], [])
    for _ in range(20):
        assert only(await events_of(routes)).code == failure.code
    assert len(big.asked) == 20


async def test_of_many_that_come_after_a_rest_one_tries_until_it_is_heard_of() -> None:
    clock, back_end = Clock(), Held("main")
    routes = routing([back_end], [], clock)  # type: ignore[list-item]
    back_end.failing = True
    for _ in range(5):
        await events_of(routes)
    back_end.failing = False
    clock.now += 5.1
    back_end.asked = 0
    async with trio.open_nursery() as nursery:
        outcomes: list[list[ProviderEvent]] = []

        async def one() -> None:
            outcomes.append(await events_of(routes))

        for _ in range(50):
            nursery.start_soon(one)
        await trio.testing.wait_all_tasks_blocked()
        assert back_end.asked == 1
        assert {only(events).code for events in outcomes} == {"provider_resting"}
        back_end.speak.set()  # the first word: others may come, while it goes on
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            nursery.start_soon(one)
            await trio.testing.wait_all_tasks_blocked()
        assert back_end.asked == 4
        back_end.end.set()
    assert sum(isinstance(events[-1], Finished) for events in outcomes) == 4


async def test_a_provider_that_is_over_its_quota_for_years_is_still_only_over_its_quota() -> None:
    clock, big = Clock(), BackEnd("main", [[evolve(THROTTLED, retry_after=0.5)]])
    routes = routing([big], [], clock)
    for _ in range(2000):
        await events_of(routes)
        clock.now += 400
    assert len(big.asked) == 2000


@given(st.lists(st.sampled_from(["good", "down", "quota", "auth", "bad", "gone"]), max_size=200), st.floats(0.0, 700.0))
def test_a_breaker_always_lets_somebody_try_again(story: list[str], step: float) -> None:
    breaker, now = Breaker(BreakerPolicy()), 0.0
    failures = {"down": DOWN, "quota": THROTTLED, "auth": REVOKED, "bad": BAD_INPUT}
    for outcome in story:
        now += step
        if breaker.wait(now) > 0:
            continue
        breaker.begin()
        if outcome == "good":
            breaker.succeeded(now)
            assert breaker.wait(now) == 0
        elif outcome == "gone":
            breaker.gave_up()
        else:
            breaker.failed(failures[outcome], now)
    assert breaker.wait(now) < 300.1
    assert breaker.wait(now + 300.1) == 0.0


# --- waiting ------------------------------------------------------------------------------------------------


async def test_a_quota_that_is_used_up_for_an_hour_costs_no_attempt_and_is_said_to_each_once() -> None:
    """The first to hear it waits like the others, and nobody asks the provider in the meantime."""
    clock, big = Clock(), BackEnd("main", [[evolve(THROTTLED, retry_after=3600.0)]])
    routes = routing([big], [], clock)
    told = [only(await events_of(routes)) for _ in range(100)]
    assert {failed.kind for failed in told} == {FailureKind.UNAVAILABLE}
    assert told[0].code == "quota"
    waits = [failed.retry_after or 0.0 for failed in told]
    assert min(waits) >= 3600.0
    assert len(set(waits)) == 100
    assert len(big.asked) == 1


@pytest.mark.parametrize(("said", "most"), [(1e12, 6 * 3600.0), (float("inf"), 5.0), (float("nan"), 5.0), (-3.0, 5.0)])
async def test_a_wait_that_makes_no_sense_is_not_waited_for(said: float, most: float) -> None:
    routes = routing([BackEnd("main", [[evolve(THROTTLED, retry_after=said)]])], [])
    assert (only(await events_of(routes)).retry_after or 0.0) <= most
    shown = routing([BackEnd("main", [[TextDelta("a"), evolve(THROTTLED, retry_after=said)]])], [])
    last = (await events_of(shown))[-1]
    assert isinstance(last, Failed)
    assert last.retry_after is None or last.retry_after <= most


async def test_who_always_says_come_at_once_and_always_refuses_is_left_alone_all_the_same() -> None:
    """Tasks that wait lose no attempt: without this they would ask for ever, as fast as they can."""
    clock, big = Clock(), BackEnd("main", [[evolve(THROTTLED, retry_after=0.0)]])
    routes = routing([big], [], clock)
    began = clock.now
    while clock.now < began + 600:
        clock.now += only(await events_of(routes)).retry_after or 0.0
    assert len(big.asked) <= 10


async def test_a_quota_error_that_names_no_time_rests_all_the_same() -> None:
    clock, big = Clock(), BackEnd("main", [[evolve(THROTTLED, retry_after=None)]])
    routes = routing([big], [], clock)
    waits = [only(await events_of(routes)).retry_after or 0.0 for _ in range(3)]
    assert waits[0] == pytest.approx(5.0)
    assert len(big.asked) == 1


async def test_a_thousand_tasks_before_a_small_quota_come_back_one_by_one() -> None:
    """Not all of them every second: they would do nothing else."""
    clock, big = Clock(), BackEnd("main", [GOOD])
    routes = routing([big], [], clock, requests_per_minute=60)
    waiting = dict.fromkeys(range(1000), clock.now)
    asked = done = 0
    while waiting and asked < 20_000:
        number = min(waiting, key=lambda each: waiting[each])
        clock.now = max(clock.now, waiting[number])
        asked += 1
        last = (await events_of(routes))[-1]
        if isinstance(last, Finished):
            del waiting[number]
            done += 1
        else:
            assert isinstance(last, Failed)
            waiting[number] = clock.now + (last.retry_after or 0.0)
    assert done == 1000
    assert clock.now - 1000.0 < 1.1 * 1000
    assert asked < 8 * 1000


def test_who_waits_for_one_of_few_places_waits_as_long_as_those_take() -> None:
    quota = Quota.of(Rules(most=2))
    for _ in range(2):
        quota.begin(0, 0.0)
    for _ in range(30):
        quota.begin(0, 0.0)
        quota.end(0, None, 0.0, seconds=40.0)
    traffic = Traffic(Rules(most=2), quota)
    waits = [traffic.book(traffic.wait(0, 0.0), 0, 0.0) for _ in range(10)]
    assert waits == pytest.approx([20.0 * number for number in range(1, 11)], rel=0.02)


def test_nobody_is_sent_away_for_ever() -> None:
    traffic = Traffic(Rules(requests=1), Quota.of(Rules(requests=1)))
    traffic.quota.begin(0, 0.0)
    assert max(traffic.book(traffic.wait(0, 0.0), 0, 0.0) for _ in range(1000)) == 60.0 + LATEST


async def test_a_full_server_is_waited_for_even_when_its_stand_in_is_down() -> None:
    big, small = BackEnd("main", [[BUSY]]), BackEnd("other", [[DOWN]])
    failed = only(await events_of(routing([big], [small])))
    assert (failed.kind, failed.code) == (FailureKind.UNAVAILABLE, "provider_busy")


# --- quotas ---------------------------------------------------------------------------------------------------


async def test_requests_at_the_same_time_do_not_overrun_a_quota() -> None:
    back_end = Held("main")
    routes = routing([back_end], [], None, tokens_per_minute=2000)  # type: ignore[list-item]
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(events_of, routes, request(prompt="x" * 952, max_tokens=262))
        await trio.testing.wait_all_tasks_blocked()
        assert back_end.asked == 4
        back_end.speak.set()
        back_end.end.set()


async def test_a_failure_gives_its_reservation_back_and_an_answer_of_unknown_size_keeps_it() -> None:
    clock, big = Clock(), BackEnd("main", [[DOWN]] * 4 + [[TextDelta("a"), Finished()]])
    routes = routing([big], [], clock, tokens_per_minute=600)
    for _ in range(4):
        assert only(await events_of(routes)) == DOWN
    assert (await events_of(routes))[-1] == Finished()
    failed = only(await events_of(routes))
    assert failed.code == "provider_resting"


@given(st.lists(st.tuples(st.integers(1, 2000), st.one_of(st.none(), st.integers(0, 5000)), st.floats(0, 30))))
def test_a_bucket_is_never_fuller_than_a_minutes_worth(story: list[tuple[int, int | None, float]]) -> None:
    quota, now = Quota(tokens=Bucket(1000)), 0.0
    for reserved, used, step in story:
        now += step
        quota.begin(reserved, now)
        quota.end(reserved, used, now)
        assert quota.tokens is not None
        assert quota.tokens.level <= 1000
        assert quota.running == 0


async def test_a_changed_limit_counts_from_then_on() -> None:
    clock, big = Clock(), BackEnd("main", [GOOD])
    table = Table({"big": model("big", "main", settings={"requests_per_minute": 1})})
    routes = Routing(table, {"main": [big]}, clock)
    assert (await events_of(routes))[-1] == Finished()
    assert only(await events_of(routes)).code == "provider_resting"
    table.rows["big"] = evolve(table.rows["big"], settings={"requests_per_minute": 100})
    assert (await events_of(routes))[-1] == Finished()


@pytest.mark.parametrize("nonsense", ["many", -1, 0, True, None, float("nan"), float("inf"), [], {"a": 1}])
def test_a_setting_that_makes_no_sense_is_not_set(nonsense: Any) -> None:
    names = ("requests_per_minute", "tokens_per_minute", "max_concurrency", "cache_seconds", "stale_seconds")
    assert Rules.of(dict.fromkeys(names, nonsense)) == Rules()


# --- credentials ------------------------------------------------------------------------------------------------


async def test_of_several_credentials_a_revoked_one_is_left_alone_and_shown_to_operators() -> None:
    clock = Clock()
    good, revoked = BackEnd("main", [GOOD]), BackEnd("main", [[REVOKED]])
    routes = routing([good, revoked], [], clock)
    for _ in range(20):
        assert (await events_of(routes))[-1] == Finished()
        clock.now += 0.1
    assert len(revoked.asked) == 1
    (bad,) = [route for route in routes.state() if route["hopeless"]]
    assert (bad["provider"], bad["credential"], bad["why"]) == ("main", 1, "provider_auth")


async def test_when_the_only_credential_is_revoked_tasks_fail_and_do_not_wait_for_ever() -> None:
    revoked = BackEnd("main", [[REVOKED]])
    routes = routing([revoked], [])
    for _ in range(3):
        assert only(await events_of(routes)) == REVOKED
    assert len(revoked.asked) == 1


# --- which failure moves where -----------------------------------------------------------------------------------


async def test_a_prompt_that_is_too_long_goes_to_a_model_that_reads_more_and_not_to_another_credential() -> None:
    tiny, wide = (
        model("tiny", "tiny", settings={"context_tokens": 1000}),
        model("wide", "wide", settings={"context_tokens": 9000}),
    )
    big = model("big", "main", fallbacks=(tiny.id, wide.id), settings={"context_tokens": 2000})
    backs = {"main": [BackEnd("main", [[TOO_LONG]]) for _ in range(2)]}
    others = {name: [BackEnd(name, [GOOD])] for name in ("tiny", "wide")}
    routes = Routing(Table({"big": big, "tiny": tiny, "wide": wide}), {**backs, **others})
    assert (await events_of(routes))[-1] == Finished()
    assert sum(len(each.asked) for each in backs["main"]) == 1
    assert [len(others[name][0].asked) for name in ("tiny", "wide")] == [0, 1]


async def test_declined_content_is_offered_to_others_only_where_that_is_wished() -> None:
    big, small = BackEnd("main", [[DECLINED]]), BackEnd("other", [GOOD])
    assert await events_of(routing([big], [small])) == [DECLINED]
    assert small.asked == []
    assert (await events_of(routing([big], [small], content_policy_fallback=True)))[-1] == Finished()


async def test_an_input_that_does_not_suit_the_stand_in_is_not_blamed_on_the_user() -> None:
    big, small = BackEnd("main", [[DOWN]]), BackEnd("other", [[BAD_INPUT]])
    assert await events_of(routing([big], [small])) == [DOWN]


async def test_a_stand_in_that_breaks_in_its_middle_is_not_spliced_either() -> None:
    big, small = BackEnd("main", [[DOWN]]), BackEnd("other", [[TextDelta("hal"), DOWN]])
    assert await events_of(routing([big], [small])) == [TextDelta("hal"), DOWN]


# --- the bill ----------------------------------------------------------------------------------------------------


async def test_what_a_route_used_before_it_was_left_is_on_the_bill() -> None:
    big = BackEnd("main", [[UsageReported(Usage(100, 0)), DOWN]])
    events = await events_of(routing([big], [BackEnd("other", [GOOD])]))
    assert [event.usage for event in events if isinstance(event, UsageReported)][-1] == Usage(110, 5, None, 1.0)
    events = await events_of(routing([big], [BackEnd("other", [[DOWN]])]))
    assert events[-2:] == [UsageReported(Usage(100, 0, None, 1.0)), DOWN]


async def test_a_kept_answer_is_not_paid_again() -> None:
    routes = routing([BackEnd("main", [GOOD])], [], cache_seconds=60)
    first, again = await events_of(routes), await events_of(routes)
    assert first[-2] == UsageReported(Usage(10, 5, cost=0.1))
    assert again[-2] == UsageReported(Usage(0, 0, cost=0.0))
    assert again[-1] == Finished("cached", {"age_seconds": 0.0})


async def test_an_old_answer_stands_in_when_nothing_else_works_and_its_age_is_told() -> None:
    clock, big = Clock(), BackEnd("main", [GOOD, [UsageReported(Usage(3, 0)), DOWN]])
    routes = routing([big], [], clock, stale_seconds=3600)
    await events_of(routes)
    clock.now += 600
    events = await events_of(routes)
    assert events[0] == UsageReported(Usage(3, 0, cost=0.03))
    assert events[-2:] == [TextDelta("hello"), Finished("cached", {"age_seconds": 600.0})]
    clock.now += 3600
    assert isinstance((await events_of(routes))[-1], Failed)
    assert len(big.asked) == 3


async def test_work_that_is_under_way_is_taken_up_whatever_rests() -> None:
    """It is paid already, and costs no quota; left alone it would be bought again."""
    clock, big = Clock(), BackEnd("main", [GOOD, [evolve(THROTTLED, retry_after=900.0)], GOOD])
    routes = routing([big], [BackEnd("other", [GOOD])], clock, requests_per_minute=2)
    await events_of(routes)
    await events_of(routes)
    adopted = evolve(request(), external_id="x1", attempt_id=uuid4())
    assert (await events_of(routes, adopted))[-1] == Finished()
    assert big.asked[-1].external_id == "x1"


@define
class Held:
    """A back end that says its first word, and its last, when it is let."""

    name: str
    asked: int = 0
    failing: bool = False
    speak: trio.Event = field(factory=trio.Event)
    end: trio.Event = field(factory=trio.Event)

    async def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        self.asked += 1
        if self.failing:
            yield DOWN
            return
        await self.speak.wait()
        yield Accepted("x")
        yield TextDelta("a")
        await self.end.wait()
        yield Finished()


async def test_closing_half_way_lets_the_next_one_try() -> None:
    clock, back_end = Clock(), Held("main", failing=True)
    routes = routing([back_end], [], clock)  # type: ignore[list-item]
    for _ in range(5):
        await events_of(routes)
    back_end.failing = False
    clock.now += 5.1
    back_end.speak.set()
    async with aclosing(routes.routed()["main"].run(request())) as events:
        await anext(events)
    back_end.end.set()
    assert (await events_of(routes))[-1] == Finished()
