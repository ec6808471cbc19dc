"""The Cog provider and what it can know of a server that lies, forgets, breaks off or takes its time."""

from __future__ import annotations

from contextlib import aclosing
from uuid import uuid4

import httpx
import pytest
import trio
from attrs import evolve

from engine.providers.cog import Cog, Patience
from engine.providers.cog_slots import Slots
from engine.providers.cog_wire import Health, Life, Server, busy, read_health, read_servers
from engine.providers.protocol import Accepted, Failed, FailureKind, Finished, Progress, ProviderEvent, TextDelta
from tests.engine.providers import fake_cog
from tests.engine.providers.fake_cog import Plan
from tests.real.cog.servers import events_of, provider_of, request

QUICK = Patience(
    answer=0.5, silence=0.1, illness=0.3, end=0.2, end_adopted=0.5, unclear=0.4, deaf=0.3, run=2.0, slot=0.4,
    slot_again=0.05, cancel=0.5,
)  # fmt: skip


def text_of(events: list[ProviderEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def failure(events: list[ProviderEvent]) -> Failed:
    assert isinstance(events[-1], Failed), events
    return events[-1]


@pytest.mark.parametrize(
    ("health", "slots"), [("", None), ("READY", None), ("READY", 4), ("", 1)], ids=["true", "lying", "many", "one"]
)
async def test_a_lost_end_is_found_out_and_the_model_runs_once_for_it(health: str, slots: int | None) -> None:
    plan = Plan(lose=("completed",), health=health)
    async with fake_cog.serving(plan, slots or 1) as cog:
        async with provider_of(cog, patience=QUICK, slots=None if slots == 4 else slots) as (provider, _):
            last = failure(await events_of(provider, request()))
        assert (last.code, len(cog.runs)) == ("result_lost", 1)


async def test_a_server_that_is_busy_for_ever_is_not_believed_for_ever() -> None:
    plan = Plan(lose=("completed",), health="BUSY")
    async with fake_cog.serving(plan) as cog, provider_of(cog, patience=evolve(QUICK, run=0.5)) as (provider, _):
        assert failure(await events_of(provider, request())).code == "prediction_timeout"
        assert (len(cog.runs), len(cog.cancels)) == (1, 1)


async def test_a_silent_prediction_is_left_alone_while_its_server_is_busy_with_it() -> None:
    plan = Plan(pieces=["late"], pause=1.2, lose=("start", "output"))
    async with fake_cog.serving(plan) as cog, provider_of(cog, patience=QUICK) as (provider, _):
        assert text_of(await events_of(provider, request())) == "late"
        assert (len(cog.runs), cog.cancels) == (1, [])


async def test_of_a_server_with_one_slot_the_next_prediction_tells_that_the_one_before_is_over() -> None:
    """The server is busy all the time, with others' work: its health tells nothing of ours."""
    async with fake_cog.serving(Plan(lose=("completed",))) as cog:
        async with provider_of(cog, patience=QUICK, slots=None) as (provider, _), trio.open_nursery() as nursery:
            ends: list[Failed] = []

            async def lost() -> None:
                ends.append(failure(await events_of(provider, request())))
                cog.plan.health = ""

            nursery.start_soon(lost)
            await cog.began.wait()
            while cog.running:  # noqa: ASYNC110 - the model runs in its own time
                await trio.sleep(0.01)
            cog.plan = Plan(pause=0.6, health="BUSY")
            await events_of(provider, request())
        assert [end.code for end in ends] == ["result_lost"]


async def test_once_a_webhook_arrives_connections_are_held_no_more() -> None:
    async with (
        fake_cog.serving(Plan(lose=("completed",))) as cog,
        provider_of(cog, patience=QUICK) as (provider, hooks),
    ):
        assert failure(await events_of(provider, request())).code == "result_lost"
        cog.plan = Plan()
        assert isinstance((await events_of(provider, request()))[-1], Finished)
        with trio.fail_after(5):
            while provider._slots["0"].lossy:  # noqa: ASYNC110 - the webhook may come after the answer
                await trio.sleep(0.01)
        assert hooks.heard > 0
        assert text_of(await events_of(provider, request())) == "Hello there you"
        assert (len(cog.runs), cog.puts) == (3, 4)  # the model does not stream: who holds asks twice


@pytest.mark.parametrize("streams", [True, False])
async def test_a_held_connection_that_breaks_fails_the_attempt_and_leaves_nothing_at_work(streams: bool) -> None:
    async with fake_cog.serving(Plan(lose=("completed",))) as cog, provider_of(cog, patience=QUICK) as (provider, _):
        assert failure(await events_of(provider, request())).code == "result_lost"
        cog.plan = Plan(streams=streams, cut_after=1, lose=("completed",), pieces=["a"] * 50)
        last = failure(await events_of(provider, request()))
        assert (last.kind, last.code) == (FailureKind.RETRYABLE, "stream_broken")
        with trio.fail_after(5):
            while cog.running:  # noqa: ASYNC110 - the server has no way to tell
                await trio.sleep(0.01)


async def test_a_server_on_another_machine_that_cannot_reach_us_is_held_from_the_beginning() -> None:
    """Our address is one of this machine, theirs is not: no webhook would ever come."""
    async with fake_cog.serving(Plan(lose=("start", "output", "completed"))) as cog:
        transport = Elsewhere(cog.url)
        async with httpx.AsyncClient(transport=transport) as http:
            server = Server("far", "http://gpu.example")
            provider = Cog(http, [server], lambda _: "http://127.0.0.1:4000/hook", QUICK)
            events = await events_of(provider, request("far"))
        assert text_of(events) == "Hello there you"
        assert len(cog.runs) == 1


class Elsewhere(httpx.AsyncBaseTransport):
    """The network, in which every name means the one server."""

    def __init__(self, url: str) -> None:
        self._inner = httpx.AsyncHTTPTransport()
        self._url = httpx.URL(url)

    async def handle_async_request(self, asked: httpx.Request) -> httpx.Response:
        asked.url = asked.url.copy_with(scheme=self._url.scheme, host=self._url.host, port=self._url.port)
        return await self._inner.handle_async_request(asked)


@pytest.mark.parametrize("held", [False, True])
async def test_a_worker_that_is_stopped_while_it_asks_leaves_nothing_at_work(held: bool) -> None:
    """The request may have been taken, though nobody heard the answer."""
    async with fake_cog.serving(Plan(pieces=["a"] * 1000)) as cog, provider_of(cog, patience=QUICK) as (provider, _):
        provider._slots["0"].lossy = held
        cog.plan.drop = 0 if held else 1
        with trio.move_on_after(0.05 if held else 0.02):
            async with aclosing(provider.run(request())) as events:
                async for _event in events:
                    pass
        with trio.fail_after(5):
            while cog.running:  # noqa: ASYNC110 - the server has no way to tell
                await trio.sleep(0.01)
        assert len(cog.runs) <= 1


async def test_who_waits_for_a_slot_says_so_and_goes_before_the_attempt_is_burnt() -> None:
    async with fake_cog.serving(Plan(pieces=["a"] * 1000, pause=0.05)) as cog:
        async with provider_of(cog, patience=QUICK) as (provider, _), aclosing(provider.run(request())) as first:
            assert isinstance(await anext(first), Accepted)
            waits, last = await events_of(provider, request())
        assert isinstance(waits, Progress)
        assert waits.step == "waiting"
        assert isinstance(last, Failed)
        assert (last.kind, last.code) == (FailureKind.UNAVAILABLE, "provider_busy")
        assert len(cog.runs) == 1


@pytest.mark.parametrize("health", ["UNHEALTHY", "DEFUNCT", "SETUP_FAILED"])
@pytest.mark.parametrize("status", [409, 503])
async def test_a_server_that_will_not_work_is_not_waited_for(health: str, status: int) -> None:
    plan = Plan(refusals=[(status, {})], health=health)
    async with fake_cog.serving(plan) as cog, provider_of(cog, patience=QUICK) as (provider, _):
        last = failure(await events_of(provider, request()))
    assert (last.kind, last.code) == (FailureKind.RETRYABLE, "provider_unhealthy")


async def test_a_server_that_lost_its_prediction_with_its_life_is_known_by_its_birth() -> None:
    async with (
        fake_cog.serving(Plan(pieces=["a"] * 50, pause=0.05)) as cog,
        provider_of(cog, patience=QUICK) as (provider, _),
        aclosing(provider.run(request())) as events,
    ):
        async for event in events:
            if isinstance(event, TextDelta):
                cog.crash()
            last = event
    assert isinstance(last, Failed)
    assert (last.kind, last.code) == (FailureKind.RETRYABLE, "model_server_restarted")


async def test_an_attempt_that_is_taken_up_again_never_asks() -> None:
    """What became of it is unknown for good: that is said, after the time in which the server repeats its word."""
    async with fake_cog.serving() as cog, provider_of(cog, patience=QUICK) as (provider, _):
        wanted = request()
        taken_up = evolve(wanted, external_id=str(wanted.attempt_id))
        assert failure(await events_of(provider, taken_up)).code == "result_lost"
        assert (cog.puts, cog.runs) == (0, [])


async def test_a_prediction_that_our_crash_cancelled_is_made_again() -> None:
    """It had been held by a connection, which ended with us; its word of that is no wish of the user's."""
    async with fake_cog.serving() as cog, provider_of(cog, patience=QUICK) as (provider, hooks):
        wanted = request()
        taken_up = evolve(wanted, external_id=str(wanted.attempt_id))
        async with trio.open_nursery() as nursery, httpx.AsyncClient(trust_env=False) as http:
            ends: list[Failed] = []

            async def follow() -> None:
                ends.append(failure(await events_of(provider, taken_up)))

            nursery.start_soon(follow)
            await trio.testing.wait_all_tasks_blocked()
            word = {"id": str(wanted.attempt_id), "status": "canceled", "output": ["half"]}
            await http.post(hooks.webhook(wanted.attempt_id), json=word)
    assert [(end.kind, end.code) for end in ends] == [(FailureKind.RETRYABLE, "model_server_restarted")]


# --- pure ---------------------------------------------------------------------------------------------------


def test_servers_are_read_with_their_slots() -> None:
    assert read_servers(" a=http://h:1/ , b=https://h/x;slots=4") == [
        Server("a", "http://h:1"),
        Server("b", "https://h/x", 4),
    ]
    assert read_servers("") == []
    for nonsense in ("a", "a=ftp://h", "=http://h", "a=http://h;slots=0", "a=http://h;slots=many", "a=http://h;x=1"):
        with pytest.raises(ValueError, match="name=http"):
            read_servers(nonsense)


@pytest.mark.parametrize("answer", [None, [], {}, {"status": 3}, "READY"])
def test_what_is_no_health_is_no_health(answer: object) -> None:
    assert read_health(answer) == Health("UNREACHABLE")


def test_a_start_in_vain_is_forgiven_twice() -> None:
    life = Life()
    life.vain = 2
    assert not life.hopeless
    life.vain = 3
    assert life.hopeless


def test_a_task_that_came_in_vain_comes_back_less_and_less_often() -> None:
    waits = [busy(evolve(request(), attempt=attempt)).retry_after for attempt in (1, 2, 5, 10, 10_000)]
    assert waits[0] == 1.0
    assert waits == sorted(waits, key=lambda wait: wait or 0.0)
    assert waits[-1] == 15.0


def test_what_is_known_of_slots() -> None:
    """Told, or seen; what proves to be at work although another was taken since shows that there are several."""
    first, second = uuid4(), uuid4()
    slots = Slots(Server("a", "http://h"))
    slots.running[first] = 0.0
    assert slots.at_once is None
    slots.seen("BUSY")
    assert slots.at_once == 1
    slots.running[second] = 1.0
    assert slots.passed(first)
    assert not slots.passed(second)
    slots.told(first, terminal=False)
    assert slots.at_once == 2
    assert not slots.passed(first)
    assert Slots(Server("a", "http://h", 3)).at_once == 3


async def test_a_good_prediction_needs_one_request_and_its_usage_is_told() -> None:
    async with fake_cog.serving() as cog, provider_of(cog, patience=QUICK, slots=1) as (provider, _):
        events = await events_of(provider, request())
        assert text_of(events) == "Hello there you"
        assert isinstance(events[-1], Finished)
        assert (cog.puts, len(cog.runs), cog.cancels) == (1, 1, [])
