"""GPT, Claude, Gemini and everybody's chat completions against their wire formats and their bad days.

The fake that plays the services is itself read by the official clients, at the end.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import anthropic
import httpx
import httpx2
import openai
import pytest
import trio
from google import genai
from google.genai import types

from engine.http.sdk import sdk_client
from engine.http.transport import client
from engine.providers.anthropic import Anthropic
from engine.providers.gemini import Gemini
from engine.providers.openai import OpenAI
from engine.providers.openai_compatible import OpenAICompatible
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

LLM = OpenAI | Anthropic | Gemini | OpenAICompatible
NAMES = ("openai", "chat", "anthropic", "gemini")
IMPATIENT = Deadlines(connect=5.0, first_token=0.6, between_tokens=0.3)
PLAIN = ssl.create_default_context()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with fake_llm.serving() as service:
        yield service


@pytest.fixture(params=NAMES)
async def provider(request: pytest.FixtureRequest, service: Service) -> AsyncIterator[LLM]:
    provider = make(request.param, service.url)
    yield provider
    await close(provider)


@pytest.fixture(params=NAMES)
async def impatient(request: pytest.FixtureRequest, service: Service) -> AsyncIterator[LLM]:
    provider = make(request.param, service.url, IMPATIENT)
    yield provider
    await close(provider)


def make(name: str, url: str, deadlines: Deadlines | None = None) -> LLM:
    if name == "openai":
        return OpenAI("key", f"{url}/v1", deadlines, sdk_client(PLAIN))
    if name == "anthropic":
        return Anthropic("key", url, deadlines, sdk_client(PLAIN))
    http = client(httpx.Timeout(5), PLAIN, 10)
    if name == "gemini":
        return Gemini(http, "key", url, deadlines)

    async def base_url() -> str:
        return f"{url}/v1"

    return OpenAICompatible("chat", http, base_url, "key", deadlines or Deadlines())


async def close(provider: LLM) -> None:
    match provider:
        case Gemini():
            await provider._client.aclose()
        case OpenAICompatible():
            await provider.client.aclose()
        case _:
            await provider.aclose()


def name_of(provider: LLM) -> str:
    return provider.name


def request(**input: Any) -> ProviderRequest:
    given = {"prompt": "Say hello", **input}
    return ProviderRequest(uuid4(), 1, uuid4(), "a model", "the-slug", "", given)


async def events_of(provider: LLM, wanted: ProviderRequest | None = None) -> list[ProviderEvent]:
    with trio.fail_after(20):
        async with aclosing(provider.run(wanted or request())) as events:
            return [event async for event in events]


def text_of(events: list[ProviderEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def usage_of(events: list[ProviderEvent]) -> Usage | None:
    """The last figures that were told: they take the place of those before."""
    return next((event.usage for event in reversed(events) if isinstance(event, UsageReported)), None)


def kind_and_code(events: list[ProviderEvent]) -> tuple[FailureKind, str]:
    assert isinstance(events[-1], Failed), events
    assert sum(isinstance(event, Failed | Finished) for event in events) == 1
    return events[-1].kind, events[-1].code


# --- good days ----------------------------------------------------------------------------------------------


async def test_text_streams_with_progress_and_usage_and_an_end(provider: LLM) -> None:
    events = await events_of(provider, request(max_tokens=6))
    assert text_of(events) == "Hello there wörld"
    fractions = [event.fraction for event in events if isinstance(event, Progress)]
    assert fractions
    assert set(fractions) <= {1 / 6, 2 / 6, 3 / 6}
    assert usage_of(events) == Usage(*USED)
    assert isinstance(events[-1], Finished)


@pytest.mark.parametrize("dress", ["crlf", "bytes"])
async def test_however_the_stream_is_cut_and_its_lines_are_ended_the_text_is_the_same(
    provider: LLM, service: Service, dress: str
) -> None:
    service.plan = Plan(words=["Grüße, ", "世界 ", "🙂", "\n\n", "data: x"], dress=dress)
    events = await events_of(provider)
    assert text_of(events) == "Grüße, 世界 🙂\n\ndata: x"
    assert isinstance(events[-1], Finished)


async def test_tokens_that_wait_in_the_connection_are_told_together(provider: LLM, service: Service) -> None:
    service.plan = Plan(words=["word "] * 2000)
    events = await events_of(provider)
    texts = [event for event in events if isinstance(event, TextDelta)]
    assert text_of(events) == "word " * 2000
    assert len(texts) < 500


async def test_what_was_asked_reaches_the_service_and_is_asked_once(provider: LLM, service: Service) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    await events_of(provider, request(messages=messages, system="be kind", max_tokens=5, temperature=0.5))
    (asked,) = service.requests
    body = json.dumps(json.loads(asked.body))
    for word in ('"a"', '"b"', '"c"', "0.5", "5"):
        assert word in body
    assert "be kind" in body or name_of(provider) == "chat"  # there, a conversation is sent as it is given


async def test_one_connection_serves_one_answer_after_the_other() -> None:
    async with fake_llm.serving(keep=True) as service:
        for number, name in enumerate(NAMES):
            provider = make(name, service.url)
            for _ in range(3):
                assert text_of(await events_of(provider)) == "Hello there wörld"
            assert len(service.connections) == number + 1, name
            await close(provider)


# --- how an answer ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stop"),
    [
        ("openai", "max_output_tokens"),
        ("chat", "length"),
        ("chat", "tool_calls"),
        ("anthropic", "max_tokens"),
        ("anthropic", "tool_use"),
        ("anthropic", "stop_sequence"),
        ("gemini", "MAX_TOKENS"),
    ],
)
async def test_an_answer_that_ends_for_another_reason_is_finished_and_says_which(
    service: Service, name: str, stop: str
) -> None:
    service.plan = Plan(stop=stop)
    provider = make(name, service.url)
    events = await events_of(provider)
    assert isinstance(events[-1], Finished)
    assert events[-1].raw_status == stop
    assert usage_of(events) == Usage(*USED)
    await close(provider)


@pytest.mark.parametrize(
    ("name", "stop"),
    [
        ("openai", "content_filter"),
        ("openai", "refusal"),
        ("chat", "content_filter"),
        ("chat", "refusal"),
        ("anthropic", "refusal"),
        ("gemini", "SAFETY"),
        ("gemini", "RECITATION"),
    ],
)
async def test_declined_content_is_told_apart_and_its_tokens_are_counted(
    service: Service, name: str, stop: str
) -> None:
    service.plan = Plan(stop=stop)
    provider = make(name, service.url)
    events = await events_of(provider)
    assert kind_and_code(events) == (FailureKind.PERMANENT, "content_policy")
    assert usage_of(events) == Usage(*USED)
    await close(provider)


async def test_a_prompt_that_gemini_blocks_is_declined(service: Service) -> None:
    service.plan = Plan(words=[], fault="blocked")
    provider = make("gemini", service.url)
    assert kind_and_code(await events_of(provider)) == (FailureKind.PERMANENT, "content_policy")
    await close(provider)


async def test_what_a_model_thinks_is_progress_and_no_text(provider: LLM, service: Service) -> None:
    service.plan = Plan(thinks=3)
    events = await events_of(provider)
    assert text_of(events) == "Hello there wörld"
    assert any(event.step == "thinking" for event in events if isinstance(event, Progress))


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind", "code"),
    [
        ("500", FailureKind.RETRYABLE, "provider_error"),
        ("no json", FailureKind.RETRYABLE, "provider_error"),
        ("429", FailureKind.QUOTA, "quota"),
        ("429 plain", FailureKind.QUOTA, "quota"),
        ("quota", FailureKind.QUOTA, "quota"),
        ("auth", FailureKind.PERMANENT, "provider_auth"),
        ("policy", FailureKind.PERMANENT, "content_policy"),
        ("context", FailureKind.INVALID_INPUT, "context_length"),
        ("bad input", FailureKind.INVALID_INPUT, "invalid_request"),
        ("redirect", FailureKind.PERMANENT, "provider_misconfigured"),
        ("wrong type", FailureKind.RETRYABLE, "bad_response"),
        ("drop", FailureKind.RETRYABLE, "stream_broken"),
    ],
)
async def test_a_refusal_has_its_kind_and_is_not_asked_again(
    provider: LLM, service: Service, fault: str, kind: FailureKind, code: str
) -> None:
    service.plan = Plan(fault=fault)
    events = await events_of(provider)
    assert kind_and_code(events) == (kind, code)
    assert usage_of(events) is None
    assert len(service.requests) == 1


async def test_when_to_come_again_is_passed_on_and_made_up_by_nobody(provider: LLM, service: Service) -> None:
    for fault, seconds in (("429", 3.0), ("429 plain", None)):
        service.plan = Plan(fault=fault)
        failed = (await events_of(provider))[-1]
        assert isinstance(failed, Failed)
        assert failed.retry_after == seconds


# --- broken streams -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind", "code"),
    [
        ("ends", FailureKind.RETRYABLE, "stream_broken"),
        ("cut", FailureKind.RETRYABLE, "stream_broken"),
        ("half json", FailureKind.RETRYABLE, "bad_response"),
        ("gibberish", FailureKind.RETRYABLE, "bad_response"),
        ("wrong shape", FailureKind.RETRYABLE, "bad_response"),
        ("endless line", FailureKind.RETRYABLE, "bad_response"),
        ("error mid", FailureKind.RETRYABLE, "provider_error"),
        ("limited mid", FailureKind.QUOTA, "quota"),
    ],
)
async def test_a_stream_that_breaks_is_no_success_and_what_it_used_is_told(
    provider: LLM, service: Service, fault: str, kind: FailureKind, code: str
) -> None:
    service.plan = Plan(fault=fault, fault_after=2)
    events = await events_of(provider)
    assert text_of(events) == "Hello there"
    assert kind_and_code(events) == (kind, code)
    used = usage_of(events)
    assert used is not None
    assert used.input_tokens
    assert used.output_tokens is not None
    assert used.output_tokens >= 2


async def test_a_stream_that_breaks_before_a_word_is_no_success_either(provider: LLM, service: Service) -> None:
    service.plan = Plan(words=[], fault="ends at once")
    events = await events_of(provider)
    assert kind_and_code(events) == (FailureKind.RETRYABLE, "stream_broken")
    assert text_of(events) == ""


@pytest.mark.parametrize("fault", ["hang before", "hang mid", "pings"])
async def test_a_silence_has_a_deadline_and_a_ping_is_no_word(impatient: LLM, service: Service, fault: str) -> None:
    service.plan = Plan(fault=fault, fault_after=1)
    assert kind_and_code(await events_of(impatient)) == (FailureKind.RETRYABLE, "timeout")
    if service.requests:  # else the machine was too busy to hear it in time
        with trio.fail_after(5):
            await service.closed_early.wait()


async def test_a_service_that_is_not_there_is_said_to_be_down() -> None:
    for name in NAMES:
        provider = make(name, "http://127.0.0.1:9")
        assert kind_and_code(await events_of(provider)) == (FailureKind.RETRYABLE, "provider_down")
        await close(provider)


# --- closing early ------------------------------------------------------------------------------------------


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


async def test_what_a_cancelled_stream_has_used_was_told_before(provider: LLM, service: Service) -> None:
    service.plan = Plan(words=["word "] * 10_000, pause=0.005)
    seen: list[ProviderEvent] = []
    async with aclosing(provider.run(request(max_tokens=100))) as events:
        async for event in events:
            seen.append(event)
            used = usage_of(seen)
            if used is not None and (used.output_tokens or 0) > 1:
                return
    raise AssertionError("no word of what was used while it streamed")


# --- the fake, as the official clients read it --------------------------------------------------------------


async def test_the_fake_speaks_as_openais_own_client_reads_it(service: Service) -> None:
    async with openai.AsyncOpenAI(api_key="key", base_url=f"{service.url}/v1", max_retries=0) as sdk:
        answer = await sdk.responses.create(model="gpt", input="hi", stream=True)
        events = [event async for event in answer]
        assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "Hello there wörld"
        assert events[-1].type == "response.completed"
        assert events[-1].response.usage.output_tokens == USED[1]
        turn: Any = {"role": "user", "content": "hi"}
        more = {"include_usage": True}
        chat = await sdk.chat.completions.create(model="gpt", messages=[turn], stream=True, stream_options=more)  # type: ignore[call-overload]
        chunks = [chunk async for chunk in chat]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello there wörld"
        assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], USED[1])
        refusals = {"429": openai.RateLimitError, "auth": openai.AuthenticationError, "context": openai.BadRequestError}
        for fault, error in refusals.items():
            service.plan = Plan(fault=fault)
            with pytest.raises(error):
                await sdk.responses.create(model="gpt", input="hi", stream=True)
        service.plan = Plan(fault="error mid", fault_after=1)
        broken = await sdk.chat.completions.create(model="gpt", messages=[turn], stream=True)
        with pytest.raises(openai.APIError):
            _ = [chunk async for chunk in broken]


async def test_the_fake_speaks_as_anthropics_own_client_reads_it(service: Service) -> None:
    async with anthropic.AsyncAnthropic(api_key="key", base_url=service.url, max_retries=0) as sdk:
        wish: Any = {"model": "claude", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
        async with sdk.messages.stream(**wish) as stream:
            assert "".join([text async for text in stream.text_stream]) == "Hello there wörld"
            message = await stream.get_final_message()
        assert (message.usage.input_tokens, message.usage.output_tokens) == USED
        refusals = {"429": anthropic.RateLimitError, "auth": anthropic.AuthenticationError}
        for fault, error in refusals.items():
            service.plan = Plan(fault=fault)
            with pytest.raises(error):
                await sdk.messages.create(**wish, stream=True)
        service.plan = Plan(fault="error mid", fault_after=1)
        broken = await sdk.messages.create(**wish, stream=True)
        with pytest.raises(anthropic.APIStatusError, match="overloaded"):
            _ = [event async for event in broken]


async def test_the_fake_speaks_as_googles_own_client_reads_it(service: Service) -> None:
    http = httpx2.AsyncClient()
    options = types.HttpOptions(base_url=service.url, httpx_async_client=http)
    sdk = genai.Client(api_key="key", vertexai=False, http_options=options)
    chunks = await sdk.aio.models.generate_content_stream(model="gemini", contents="hi")
    seen = [chunk async for chunk in chunks]
    assert "".join(chunk.text or "" for chunk in seen) == "Hello there wörld"
    assert seen[-1].usage_metadata.candidates_token_count == USED[1]
    service.plan = Plan(fault="429")
    with pytest.raises(genai.errors.ClientError) as refused:
        _ = [chunk async for chunk in await sdk.aio.models.generate_content_stream(model="gemini", contents="hi")]
    assert refused.value.code == 429
    await http.aclose()
