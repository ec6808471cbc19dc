"""GPT, Claude and Gemini against their wire formats and their bad days; the fake is checked by the official clients."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import httpx
import httpx2
import pytest
import trio
from google import genai
from google.genai import types

from engine.providers.anthropic import Anthropic
from engine.providers.gemini import Gemini
from engine.providers.openai import OpenAI
from engine.providers.protocol import (
    Failed,
    FailureKind,
    Finished,
    Progress,
    ProviderEvent,
    ProviderRequest,
    TextDelta,
    UsageReported,
)
from engine.providers.streaming import Deadlines
from engine.tasks.events import Usage
from tests.engine.providers import fake_llm
from tests.engine.providers.fake_llm import USED, Plan, Service

LLM = OpenAI | Anthropic | Gemini
IMPATIENT = Deadlines(connect=1.0, first_token=0.3, between_tokens=0.2)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with fake_llm.serving() as service:
        yield service


@pytest.fixture(params=["openai", "anthropic", "gemini"])
async def provider(request: pytest.FixtureRequest, service: Service) -> AsyncIterator[LLM]:
    provider = make(request.param, service.url)
    yield provider
    await close(provider)


def make(name: str, url: str, deadlines: Deadlines | None = None) -> LLM:
    if name == "openai":
        return OpenAI("key", f"{url}/v1", deadlines)
    if name == "anthropic":
        return Anthropic("key", url, deadlines)
    return Gemini(httpx.AsyncClient(trust_env=False), "key", url, deadlines)


async def close(provider: LLM) -> None:
    await (provider._client.aclose() if isinstance(provider, Gemini) else provider.aclose())


def request(**input: Any) -> ProviderRequest:
    given = {"prompt": "Say hello", **input}
    return ProviderRequest(uuid4(), 1, uuid4(), "a model", "the-slug", "", given)


async def events_of(provider: LLM, wanted: ProviderRequest | None = None) -> list[ProviderEvent]:
    with trio.fail_after(20):
        async with aclosing(provider.run(wanted or request())) as events:
            return [event async for event in events]


def text_of(events: list[ProviderEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def kind_and_code(events: list[ProviderEvent]) -> tuple[FailureKind, str]:
    assert isinstance(events[-1], Failed)
    return events[-1].kind, events[-1].code


async def test_text_streams_with_progress_and_usage_and_an_end(provider: LLM) -> None:
    events = await events_of(provider, request(max_tokens=6))
    assert text_of(events) == "Hello there wörld"
    assert [event.fraction for event in events if isinstance(event, Progress)] == [1 / 6, 2 / 6, 3 / 6]
    assert UsageReported(Usage(*USED)) in events
    assert isinstance(events[-1], Finished)


async def test_what_was_asked_reaches_the_service_and_is_asked_once(provider: LLM, service: Service) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    await events_of(provider, request(messages=messages, system="be kind", max_tokens=5, temperature=0.5))
    (asked,) = service.requests
    body = json.dumps(json.loads(asked.body))
    for word in ('"a"', '"b"', '"c"', "be kind", "0.5", "5"):
        assert word in body


@pytest.mark.parametrize(
    ("fault", "kind", "code"),
    [
        ("500", FailureKind.RETRYABLE, "provider_error"),
        ("429", FailureKind.QUOTA, "quota"),
        ("quota", FailureKind.QUOTA, "quota"),
        ("auth", FailureKind.PERMANENT, "provider_auth"),
        ("context", FailureKind.INVALID_INPUT, "context_length"),
        ("bad input", FailureKind.INVALID_INPUT, "invalid_request"),
    ],
)
async def test_a_refusal_has_its_kind_and_is_not_asked_again(
    provider: LLM, service: Service, fault: str, kind: FailureKind, code: str
) -> None:
    service.plan = Plan(fault=fault)
    assert kind_and_code(await events_of(provider)) == (kind, code)
    assert len(service.requests) == 1


async def test_a_retry_after_is_passed_on(service: Service) -> None:
    service.plan = Plan(fault="429")
    for name in ("openai", "anthropic"):
        provider = make(name, service.url)
        failed = (await events_of(provider))[-1]
        assert isinstance(failed, Failed)
        assert failed.retry_after == 3.0
        await close(provider)


@pytest.mark.parametrize("fault", ["drop", "redirect", "wrong type", "half json", "ends", "error mid"])
async def test_a_broken_answer_fails_the_attempt_and_may_be_tried_again(
    provider: LLM, service: Service, fault: str
) -> None:
    service.plan = Plan(fault=fault, fault_after=1)
    events = await events_of(provider)
    assert isinstance(events[-1], Failed)
    assert events[-1].kind in (FailureKind.RETRYABLE, FailureKind.PERMANENT)
    if fault in ("half json", "ends", "error mid"):
        assert text_of(events) == "Hello"
    assert sum(isinstance(event, Failed | Finished) for event in events) == 1


@pytest.mark.parametrize("name", ["openai", "anthropic", "gemini"])
@pytest.mark.parametrize("fault", ["hang before", "hang mid"])
async def test_a_silence_has_a_deadline(service: Service, name: str, fault: str) -> None:
    service.plan = Plan(fault=fault, fault_after=1)
    provider = make(name, service.url, IMPATIENT)
    assert kind_and_code(await events_of(provider)) == (FailureKind.RETRYABLE, "timeout")
    await close(provider)


async def test_declined_content_is_told_apart(service: Service) -> None:
    for name, stop in (("openai", "content_filter"), ("anthropic", "refusal"), ("gemini", "SAFETY")):
        service.plan = Plan(stop=stop)
        provider = make(name, service.url)
        assert kind_and_code(await events_of(provider)) == (FailureKind.PERMANENT, "content_policy")
        await close(provider)


async def test_an_answer_cut_by_the_limit_is_finished_and_says_so(service: Service) -> None:
    for name, stop in (("openai", "max_output_tokens"), ("anthropic", "max_tokens"), ("gemini", "MAX_TOKENS")):
        service.plan = Plan(stop=stop)
        provider = make(name, service.url)
        assert (await events_of(provider))[-1] == Finished(stop)
        await close(provider)


async def test_closing_early_closes_the_stream_at_the_service(provider: LLM, service: Service) -> None:
    service.plan = Plan(words=["word "] * 10_000, pause=0.001)
    async with aclosing(provider.run(request())) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                break
    with trio.fail_after(5):
        await service.closed_early.wait()


async def test_cancellation_closes_the_stream_and_the_client_can_be_used_again(provider: LLM, service: Service) -> None:
    service.plan = Plan(words=["word "] * 10_000, pause=0.001)
    with trio.move_on_after(0.5):
        await events_of(provider)
    with trio.fail_after(5):
        await service.closed_early.wait()
    service.plan = Plan()
    assert text_of(await events_of(provider)) == "Hello there wörld"


async def test_a_service_that_is_not_there_is_said_to_be_down() -> None:
    for name in ("openai", "anthropic", "gemini"):
        provider = make(name, "http://127.0.0.1:9")
        assert kind_and_code(await events_of(provider)) == (FailureKind.RETRYABLE, "provider_down")
        await close(provider)


async def test_the_fake_speaks_geminis_wire_as_googles_own_client_reads_it(service: Service) -> None:
    http = httpx2.AsyncClient()
    options = types.HttpOptions(base_url=service.url, httpx_async_client=http)
    client = genai.Client(api_key="key", vertexai=False, http_options=options)
    chunks = await client.aio.models.generate_content_stream(model="gemini", contents="hi")
    seen = [chunk async for chunk in chunks]
    assert "".join(chunk.text or "" for chunk in seen) == "Hello there wörld"
    assert seen[-1].usage_metadata.candidates_token_count == USED[1]
    await http.aclose()
