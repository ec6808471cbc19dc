"""The Cog provider against real Cog servers: text, a picture, cancel, a failure, a crash, slots, and lost webhooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing
from typing import Any
from uuid import uuid4

import httpx
import pytest
import trio

from engine.outputs.fetch import decode_data_url
from engine.providers.cog import Cog, Patience
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
)
from tests.held import held
from tests.real.cog.servers import CogServer, cog_server, provider_of

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def teller() -> Iterator[CogServer]:
    with held(lambda: cog_server("teller")) as server:
        yield server


def request(server: str = "0", **input: Any) -> ProviderRequest:
    return ProviderRequest(uuid4(), 1, uuid4(), "model", server, "", {"prompt": "hi", **input})


async def events_of(provider: Cog, wanted: ProviderRequest) -> list[ProviderEvent]:
    with trio.fail_after(30):
        async with aclosing(provider.run(wanted)) as events:
            return [event async for event in events]


async def idle(server: CogServer) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        with trio.fail_after(10):
            while await server.health(http) != "READY":  # noqa: ASYNC110 - the server has no way to tell
                await trio.sleep(0.05)


async def test_text_streams_with_progress_and_an_end(teller: CogServer) -> None:
    async with provider_of(teller) as (provider, receiver):
        events = await events_of(provider, request(steps=4))
    assert isinstance(events[0], Accepted)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "word1 word2 word3 word4 "
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
    declared, data = decode_data_url(picture.url)
    assert (declared, data[:4]) == ("image/png", b"\x89PNG")
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
    async with provider_of(teller) as (provider, _), AsyncExitStack() as stack:
        first = await stack.enter_async_context(aclosing(provider.run(request(steps=1000, pause=0.1))))
        assert isinstance(await anext(first), Accepted)
        (busy,) = await events_of(provider, request())
    assert isinstance(busy, Failed)
    assert (busy.kind, busy.code) == (FailureKind.UNAVAILABLE, "provider_busy")
    await idle(teller)


async def test_when_all_webhooks_are_lost_it_runs_once_more_at_most_and_then_fails(teller: CogServer) -> None:
    async with provider_of(teller, patience=Patience(silence=0.3)) as (provider, receiver):
        receiver.deaf = True
        last = (await events_of(provider, request(steps=4)))[-1]
    assert isinstance(last, Failed)
    assert (last.kind, last.code) == (FailureKind.RETRYABLE, "result_lost")
    assert receiver.heard <= 2 * 12


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
        gone = Cog(httpx.AsyncClient(trust_env=False), {"gone": "http://127.0.0.1:9"}, lambda _: "")
        (unreachable,) = await events_of(gone, request("gone"))
    assert isinstance(unknown, Failed)
    assert isinstance(unreachable, Failed)
    assert (unknown.code, unreachable.code) == ("no_provider", "provider_unreachable")
