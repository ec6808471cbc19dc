"""The Cog provider against real Cog servers: text, a picture, cancel, a failure, a crash, slots, and lost webhooks."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import httpx
import pytest
import trio
from attrs import evolve

from engine.providers.cog import Cog, Patience
from engine.providers.cog_wire import Server
from engine.providers.protocol import (
    Accepted,
    Failed,
    FailureKind,
    Finished,
    OutputReady,
    Progress,
    ProviderEvent,
    TextDelta,
)
from tests.held import held
from tests.real.cog.servers import MODELS, CogServer, cog_server, events_of, provider_of, request

pytestmark = pytest.mark.real
SCHEMA = {
    "openapi": "3.0.2",
    "info": {"title": "Cog", "version": "0.1.0"},
    "paths": {"/predictions": {"post": {"x-cog-streaming": True}}},
    "components": {
        "schemas": {
            "Input": {
                "type": "object",
                "properties": {"prompt": {"type": "string"}, "steps": {"type": "integer"}, "pause": {"type": "number"}},
                "required": ["prompt"],
            },
            "Output": {"type": "array", "items": {"type": "string"}},
        }
    },
}
"""As `cog build` writes it for the teller."""


@pytest.fixture(scope="module")
def teller() -> Iterator[CogServer]:
    with held(lambda: cog_server("teller")) as server:
        yield server


def text_of(events: list[ProviderEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def idle(server: CogServer) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        with trio.fail_after(10):
            while await server.health(http) != "READY":  # noqa: ASYNC110 - the server has no way to tell
                await trio.sleep(0.05)


async def test_text_streams_with_progress_and_an_end(teller: CogServer) -> None:
    async with provider_of(teller) as (provider, receiver):
        events = await events_of(provider, request(steps=4))
    assert isinstance(events[0], Accepted)
    assert text_of(events) == "word1 word2 word3 word4 "
    assert sum(isinstance(event, TextDelta) for event in events) > 1
    assert isinstance(events[-1], Finished)
    fractions = [event.fraction for event in events if isinstance(event, Progress)]
    assert fractions == sorted(fractions)
    assert receiver.heard > 2


async def test_a_picture_comes_as_a_file() -> None:
    async with cog_server("painter") as painter, provider_of(painter) as (provider, _):
        events = await events_of(provider, request())
    (picture,) = [event for event in events if isinstance(event, OutputReady)]
    assert picture.url is not None
    kind, _, encoded = picture.url.partition(";base64,")
    assert (kind, b64decode(encoded, validate=True)[:4]) == ("data:image/png", b"\x89PNG")
    assert isinstance(events[-1], Finished)


async def test_a_failure_of_the_model_is_told_in_its_words(teller: CogServer) -> None:
    async with provider_of(teller) as (provider, _):
        last = (await events_of(provider, request(prompt="fail")))[-1]
    assert isinstance(last, Failed)
    assert (last.kind, last.code) == (FailureKind.RETRYABLE, "prediction_failed")
    assert "not in the mood" in last.message


async def test_closing_early_frees_the_slot(teller: CogServer) -> None:
    async with provider_of(teller) as (provider, _):
        async with aclosing(provider.run(request(steps=1000, pause=0.1))) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    break
        await idle(teller)
        assert isinstance((await events_of(provider, request()))[-1], Finished)


async def test_a_server_without_a_free_slot_costs_no_attempt(teller: CogServer) -> None:
    patience = Patience(slot=0.3, slot_again=0.1)
    async with provider_of(teller, patience=patience) as (provider, _), AsyncExitStack() as stack:
        first = await stack.enter_async_context(aclosing(provider.run(request(steps=1000, pause=0.1))))
        assert isinstance(await anext(first), Accepted)
        waits, busy = await events_of(provider, request())
    assert isinstance(waits, Progress)
    assert isinstance(busy, Failed)
    assert (busy.kind, busy.code) == (FailureKind.UNAVAILABLE, "provider_busy")
    await idle(teller)


async def test_when_all_webhooks_are_lost_the_loss_is_said_and_from_then_on_connections_are_held(
    tmp_path: Path,
) -> None:
    """The model runs once for the result that was lost, and once for each that is not."""
    runs = tmp_path / "runs"
    patience = Patience(silence=0.2, end=0.3)
    async with (
        cog_server("teller", RUNS=str(runs)) as server,
        provider_of(server, patience=patience) as (provider, hooks),
    ):
        hooks.deaf = True
        last = (await events_of(provider, request(steps=4)))[-1]
        assert isinstance(last, Failed)
        assert (last.kind, last.code) == (FailureKind.RETRYABLE, "result_lost")
        assert len(runs.read_text().splitlines()) == 1
        for _ in range(2):
            events = await events_of(provider, request(steps=4))
            assert text_of(events) == "word1 word2 word3 word4 "
            assert isinstance(events[-1], Finished)
        assert len(runs.read_text().splitlines()) == 3
        hooks.deaf = False
        events = await events_of(provider, request(steps=4))
        assert isinstance(events[-1], Finished)


async def test_text_reaches_us_while_the_model_still_runs(teller: CogServer) -> None:
    async with provider_of(teller) as (provider, _), aclosing(provider.run(request(steps=1000, pause=0.02))) as events:
        pieces = 0
        async for event in events:
            pieces += isinstance(event, TextDelta)
            if pieces == 5:
                break
    await idle(teller)


async def test_an_attempt_that_is_taken_up_again_goes_on_with_its_prediction(tmp_path: Path) -> None:
    """As after a crash of ours: the webhooks go to the same place, and nothing is asked for twice."""
    runs, wanted = tmp_path / "runs", request(steps=10, pause=0.1)
    async with cog_server("teller", RUNS=str(runs)) as server, provider_of(server) as (provider, _):
        provider.leaving = lambda: True
        async with aclosing(provider.run(wanted)) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    break
        again = await events_of(provider, evolve(wanted, external_id=str(wanted.attempt_id)))
    assert text_of(again) == "".join(f"word{step} " for step in range(1, 11))
    assert len(runs.read_text().splitlines()) == 1


async def test_an_attempt_that_may_have_asked_hears_of_its_prediction_before_it_asks(tmp_path: Path) -> None:
    runs, wanted = tmp_path / "runs", request(steps=10, pause=0.1)
    async with cog_server("teller", RUNS=str(runs)) as server, provider_of(server) as (provider, _):
        provider.leaving = lambda: True
        async with aclosing(provider.run(wanted)) as events:
            assert isinstance(await anext(events), Accepted)
        again = await events_of(provider, evolve(wanted, intent_at=0.0))
    assert isinstance(again[-1], Finished)
    assert len(runs.read_text().splitlines()) == 1


async def test_several_slots_of_a_model_that_awaits() -> None:
    async with cog_server("patient", COG_MAX_CONCURRENCY="3") as server, provider_of(server) as (provider, _):
        done: list[list[ProviderEvent]] = []

        async def one() -> None:
            done.append(await events_of(provider, request(pause=0.3)))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one)
    assert [isinstance(events[-1], Finished) for events in done] == [True] * 5
    assert sorted(text_of(events) for events in done) == ["awaited"] * 5


async def test_of_several_slots_a_silent_prediction_is_told_from_one_that_is_over() -> None:
    patience = Patience(silence=0.2, end=0.3)
    async with (
        cog_server("patient", COG_MAX_CONCURRENCY="3") as server,
        provider_of(server, patience=patience, slots=3) as (provider, hooks),
    ):
        events = await events_of(provider, request(pause=1.5))
        assert isinstance(events[-1], Finished)
        hooks.deaf = True
        last = (await events_of(provider, request(pause=0.1)))[-1]
    assert isinstance(last, Failed)
    assert last.code == "result_lost"


async def test_an_input_that_its_schema_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "teller.py").write_text((MODELS / "teller.py").read_text())
    (tmp_path / ".cog").mkdir()
    (tmp_path / ".cog" / "openapi_schema.json").write_text(json.dumps(SCHEMA))
    async with cog_server("teller", tmp_path) as server, provider_of(server) as (provider, _):
        (refused,) = await events_of(provider, request(steps="many"))
        events = await events_of(provider, request(steps=2))
        assert text_of(events) == "word1 word2 "
    assert isinstance(refused, Failed)
    assert (refused.kind, refused.code) == (FailureKind.INVALID_INPUT, "invalid_input")
    assert "steps" in refused.message


async def test_a_held_connection_streams_where_the_model_does(tmp_path: Path) -> None:
    (tmp_path / "teller.py").write_text((MODELS / "teller.py").read_text())
    (tmp_path / ".cog").mkdir()
    (tmp_path / ".cog" / "openapi_schema.json").write_text(json.dumps(SCHEMA))
    patience = Patience(silence=0.1, end=0.1)
    async with cog_server("teller", tmp_path) as server, provider_of(server, patience=patience) as (provider, hooks):
        hooks.deaf = True
        assert isinstance((await events_of(provider, request(steps=1)))[-1], Failed)
        async with aclosing(provider.run(request(steps=1000, pause=0.02))) as events:
            pieces = 0
            async for event in events:
                pieces += isinstance(event, TextDelta)
                if pieces == 5:
                    break
        await idle(server)
        events_at_once = await events_of(provider, request(steps=3))
    assert text_of(events_at_once) == "word1 word2 word3 "
    assert isinstance(events_at_once[-1], Finished)


async def test_a_worker_that_crashes_fails_the_attempt_and_then_nothing_works_until_it_is_started_again() -> None:
    async with cog_server("teller") as server, provider_of(server) as (provider, _):
        last = (await events_of(provider, request(prompt="crash")))[-1]
        assert isinstance(last, Failed)
        assert last.kind is FailureKind.RETRYABLE
        (after,) = await events_of(provider, request())
        assert isinstance(after, Failed)
        assert after.kind in (FailureKind.RETRYABLE, FailureKind.UNAVAILABLE)


async def test_a_server_that_is_not_there_and_one_that_is_not_known() -> None:
    async with provider_of() as (provider, _):
        (unknown,) = await events_of(provider, request("nobody"))
        nowhere = [Server("gone", "http://127.0.0.1:9")]
        gone = Cog(httpx.AsyncClient(trust_env=False), nowhere, lambda _: "http://127.0.0.1/")
        (unreachable,) = await events_of(gone, request("gone"))
    assert isinstance(unknown, Failed)
    assert isinstance(unreachable, Failed)
    assert (unknown.code, unreachable.code) == ("no_provider", "provider_unreachable")
