"""Replicate, against a server that behaves like it, good days and bad."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import replicate
import trio
import trio.testing
from attrs import evolve
from replicate.webhook import Webhooks, WebhookSigningSecret

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
from engine.providers.replicate import Pace, Replicate
from engine.providers.replicate_wire import Prediction, files_of, newer, progress_in, read_prediction, text_of
from engine.providers.webhooks import sign
from tests.engine.providers import fake_replicate
from tests.engine.providers.fake_replicate import SECRET, TOKEN, Service

QUICK = Pace(
    first=0.01, longest=0.03, silence=0.05, lost_after=0.3, gone_after=0.2, stop_within=2.0, search=(0.01, 0.05)
)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with fake_replicate.serving() as service:
        yield service


@asynccontextmanager
async def client(service: Service, token: str = TOKEN, **options: Any) -> AsyncIterator[Replicate]:
    """A provider with its errands attended to."""
    async with httpx.AsyncClient(timeout=0.5, trust_env=False) as http, trio.open_nursery() as nursery:
        provider = Replicate(http, token, base_url=service.url, **{"pace": QUICK, **options})
        nursery.start_soon(provider.errands.attend)
        await trio.testing.wait_all_tasks_blocked()
        yield provider
        nursery.cancel_scope.cancel()


@pytest.fixture
async def provider(service: Service) -> AsyncIterator[Replicate]:
    async with client(service) as provider:
        yield provider


def request(input: dict[str, Any] | None = None, **fields: Any) -> ProviderRequest:
    base = {"task_id": uuid4(), "attempt": 1, "attempt_id": uuid4(), "model": "painter", "slug": "acme/painter"}
    return ProviderRequest(**{**base, "version": "", "input": input or {"prompt": "hi"}, **fields})


def script(**what: Any) -> dict[str, Any]:
    return {"prompt": "hi", "script": what}


async def events_of(provider: Replicate, wanted: ProviderRequest) -> list[ProviderEvent]:
    with trio.fail_after(10):
        async with aclosing(provider.run(wanted)) as events:
            return [event async for event in events]


async def test_a_prediction_is_followed_to_its_files(provider: Replicate) -> None:
    url = "https://replicate.delivery/xezq/out-0.png"
    events = await events_of(provider, request(script(output=[url], cost=0.5)))
    assert isinstance(events[0], Accepted)
    assert events[-2:] == [OutputReady(0, url=url), Finished("succeeded", {"predict_time": 0.5, "total_time": 99.0})]
    fractions = [event.fraction for event in events if isinstance(event, Progress)]
    assert fractions == sorted(fractions)
    assert max(fractions) > 0
    assert any(isinstance(event, UsageReported) and event.usage.predict_seconds == 0.5 for event in events)


async def test_text_in_pieces_arrives_once_and_in_order(provider: Replicate) -> None:
    pieces = ["Once", " upon", " a", " time"]
    events = await events_of(provider, request(script(pieces=pieces, steps=4)))
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "Once upon a time"
    assert isinstance(events[-1], Finished)


@pytest.mark.parametrize(
    ("what", "kind", "code"),
    [
        ({"end": "failed", "error": "CUDA out of memory"}, FailureKind.RETRYABLE, "prediction_failed"),
        ({"end": "aborted"}, FailureKind.RETRYABLE, "not_started"),
        ({"end": "canceled"}, FailureKind.CANCELLED, "cancelled"),
        ({"output": None}, FailureKind.RETRYABLE, "no_output"),
        ({"output": []}, FailureKind.RETRYABLE, "no_output"),
    ],
)
async def test_every_bad_end_has_its_kind(provider: Replicate, what: Any, kind: FailureKind, code: str) -> None:
    last = (await events_of(provider, request(script(**what))))[-1]
    assert isinstance(last, Failed)
    assert (last.kind, last.code) == (kind, code)


@pytest.mark.parametrize(
    ("fault", "kind", "code", "retry_after"),
    [
        ("throttled for long", FailureKind.UNAVAILABLE, "provider_throttled", 1200.0),
        ("payment", FailureKind.QUOTA, "provider_quota", None),
        ("500", FailureKind.RETRYABLE, "answer_lost", None),
        ("502", FailureKind.RETRYABLE, "answer_lost", None),
        ("redirect https://elsewhere.example/", FailureKind.PERMANENT, "provider_misconfigured", None),
        ("html", FailureKind.RETRYABLE, "answer_lost", None),
        ("half json", FailureKind.RETRYABLE, "answer_lost", None),
        ("hostile id", FailureKind.RETRYABLE, "answer_lost", None),
        ("hang before", FailureKind.RETRYABLE, "answer_lost", None),
        ("lost before", FailureKind.RETRYABLE, "answer_lost", None),
    ],
)
async def test_a_create_that_fails_fails_once_and_creates_nothing(
    provider: Replicate, service: Service, fault: str, kind: FailureKind, code: str, retry_after: float | None
) -> None:
    service.faults.append(("^POST", fault))
    events = await events_of(provider, request())
    (failed,) = events
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.code, failed.retry_after and round(failed.retry_after)) == (kind, code, retry_after)
    assert failed.in_doubt is (code == "answer_lost")
    assert sum(method == "POST" and "cancel" not in target for method, target in service.requests) <= 1


async def test_bad_input_and_a_bad_token_are_told_apart(provider: Replicate, service: Service) -> None:
    (refused,) = await events_of(provider, request({"prompt": 7}))
    assert isinstance(refused, Failed)
    assert refused.kind is FailureKind.INVALID_INPUT
    assert "input.prompt" in refused.message
    async with client(service, "wrong") as stranger:
        (refused,) = await events_of(stranger, request())
    assert isinstance(refused, Failed)
    assert (refused.kind, refused.code) == (FailureKind.PERMANENT, "provider_auth")


async def test_a_prediction_whose_create_answer_was_lost_is_found_and_not_bought_again(
    provider: Replicate, service: Service
) -> None:
    service.faults.append(("^POST", "lost after"))
    events = await events_of(provider, request())
    assert isinstance(events[-1], Finished)
    assert service.creates() == 1


async def test_a_lost_prediction_of_somebody_else_with_the_same_input_is_left_alone(
    provider: Replicate, service: Service
) -> None:
    async with aclosing(provider.run(request(script(steps=50)))) as other:
        assert isinstance(await anext(other), Accepted)
        await anext(other)
        service.faults.append(("^POST", "lost before"))
        events = await events_of(provider, request(script(steps=50)))
    assert isinstance(events[-1], Failed)


async def test_after_a_crash_a_prediction_is_adopted_by_its_id(provider: Replicate, service: Service) -> None:
    run = service.create({"input": {"prompt": "hi"}})
    events = await events_of(provider, request(external_id=run.id))
    assert events[0] == Accepted(run.id, "starting")
    assert isinstance(events[-1], Finished)
    assert service.creates() == 1


async def test_after_a_crash_between_intent_and_answer_the_prediction_is_searched_for(
    provider: Replicate, service: Service
) -> None:
    run = service.create({"input": {"prompt": "hi"}})
    events = await events_of(provider, request(intent_at=run.created_at - 1))
    assert isinstance(events[0], Accepted)
    assert events[0].external_id == run.id
    assert service.creates() == 1


async def test_closing_early_cancels_the_prediction(provider: Replicate, service: Service) -> None:
    async with aclosing(provider.run(request(script(steps=1000, interval=1)))) as events:
        assert isinstance(await anext(events), Accepted)
    (run,) = service.runs.values()
    with trio.fail_after(5):
        await run.over.wait()
    assert run.status == "canceled"


async def test_cancellation_cancels_the_prediction_too(provider: Replicate, service: Service) -> None:
    with trio.move_on_after(0.2):
        await events_of(provider, request(script(steps=1000, interval=1)))
    (run,) = service.runs.values()
    with trio.fail_after(5):
        await run.over.wait()
    assert run.status == "canceled"


async def test_the_service_going_away_for_a_moment_is_waited_out(provider: Replicate, service: Service) -> None:
    service.faults.extend([("^GET", "503 html"), ("^GET", "half json"), ("^GET", "lost before"), ("^GET", "throttled")])
    assert isinstance((await events_of(provider, request(script(interval=0.1))))[-1], Finished)


async def test_the_service_staying_away_fails_the_attempt(provider: Replicate, service: Service) -> None:
    service.faults.extend([("^GET", "500")] * 1000)
    last = (await events_of(provider, request(script(steps=1000))))[-1]
    assert isinstance(last, Failed)
    assert last.code == "provider_unreachable"


async def test_a_deadline_travels_with_the_create(provider: Replicate, service: Service) -> None:
    await events_of(provider, request())
    assert service.headers[0]["cancel-after"] == "1800s"
    assert service.requests[0] == ("POST", "/v1/models/acme/painter/predictions")


async def test_with_webhooks_nothing_is_asked_while_they_come(service: Service) -> None:
    async with client(service, public_url="https://app.example", pace=Pace(silence=30)) as provider:
        wanted = request(script(interval=0.05))
        async with trio.open_nursery() as nursery:

            async def webhooks() -> None:
                await service.created.wait()
                (run,) = service.runs.values()
                await run.over.wait()
                final = read_prediction(service.view(run))
                early = Prediction(run.id, "processing")
                for news in (final, early, final):  # overtaken and repeated deliveries
                    provider.deliveries.deliver(wanted.attempt_id, news)

            nursery.start_soon(webhooks)
            events = await events_of(provider, wanted)
    assert isinstance(events[-1], Finished)
    assert [method for method, _ in service.requests] == ["POST"]
    assert not provider.deliveries.deliver(wanted.attempt_id, Prediction("x", "succeeded"))
    (run,) = service.runs.values()
    assert run.body["webhook"] == (
        f"https://app.example/webhooks/replicate?task={wanted.task_id}&attempt={wanted.attempt_id}"
    )


async def test_without_a_single_webhook_polling_finishes_the_task(service: Service) -> None:
    service.webhooks = False
    async with client(service, public_url="https://app.example") as provider:
        assert isinstance((await events_of(provider, request()))[-1], Finished)


async def test_the_token_goes_nowhere_else(service: Service) -> None:
    """Neither behind a redirect nor to the next page of a listing that is somewhere else."""
    async with fake_replicate.serving() as elsewhere, client(service) as provider:
        service.faults.append(("^POST", f"redirect {elsewhere.url}/v1/predictions"))
        (failed,) = await events_of(provider, request())
        assert isinstance(failed, Failed)
        assert failed.code == "provider_misconfigured"
        for number in range(3):
            service.create({"input": {"prompt": str(number)}})
        service.page, url = 2, service.url
        service.url = elsewhere.url
        service.faults.append(("^POST", "lost before"))
        (failed,) = await events_of(provider, request())
        service.url = url
        assert isinstance(failed, Failed)
        assert failed.code == "answer_lost"
        assert elsewhere.requests == []


@pytest.mark.parametrize("more", ["", "/", "/v1", "/v1/"])
async def test_the_address_may_be_written_as_either_official_client_wants_it(service: Service, more: str) -> None:
    async with client(service) as provider:
        provider.api.base_url = Replicate(provider.api.http, TOKEN, base_url=service.url + more).api.base_url
        assert isinstance((await events_of(provider, request()))[-1], Finished)


@pytest.mark.parametrize("skew", [-3600.0, 0.0, 3600.0])
async def test_a_lost_prediction_is_found_on_the_third_page_whatever_the_services_clock_says(
    provider: Replicate, service: Service, skew: float
) -> None:
    service.skew, service.page, service.brief = skew, 2, True
    service.faults.append(("^POST", "lost after"))
    async with trio.open_nursery() as nursery:

        async def others() -> None:
            await service.created.wait()
            for number in range(5):
                service.create({"input": {"prompt": str(number)}})

        nursery.start_soon(others)
        events = await events_of(provider, request(script(interval=0.1)))
    assert isinstance(events[-1], Finished)
    assert service.creates() == 6


async def test_an_old_prediction_with_the_same_input_is_not_taken_for_a_lost_one(
    provider: Replicate, service: Service
) -> None:
    old = service.create({"input": {"prompt": "hi"}})
    old.created_at -= 600
    service.faults.append(("^POST", "lost before"))
    (failed,) = await events_of(provider, request())
    assert isinstance(failed, Failed)
    assert failed.code == "answer_lost"


async def test_a_repeated_call_says_whether_it_may_be_paid_twice(provider: Replicate, service: Service) -> None:
    first = await events_of(provider, request(intent_at=time.time() - 60))
    assert isinstance(first[0], Accepted)
    assert first[0].repeats == 0  # it was looked for, and is not there
    service.faults.append(("^GET /v1/predictions ", "500"))
    second = await events_of(provider, request(intent_at=time.time() - 60))
    assert isinstance(second[0], Accepted)
    assert second[0].repeats == 1  # nobody knows


async def test_what_takes_too_long_is_stopped_and_its_cost_told(service: Service) -> None:
    service.faults.append(("^POST /v1/models", "no deadline"))
    async with client(service, pace=evolve(QUICK, run_limit=0.2, grace=0.2)) as provider:
        events = await events_of(provider, request(script(steps=1000, interval=0.05, cost=0.5)))
    failed, used = events[-1], events[-2]
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.code) == (FailureKind.PERMANENT, "timeout")
    assert isinstance(used, UsageReported)
    assert used.usage.predict_seconds == 0.5
    assert not service.running()


@pytest.mark.parametrize("gone", ["removed", "unknown", "empty"])
async def test_a_result_that_is_gone_is_not_bought_again(provider: Replicate, service: Service, gone: str) -> None:
    run = service.create({"input": script()})
    await run.over.wait()
    run.removed = gone == "removed"
    run.output = None if gone == "empty" else run.output
    identifier = "f" * 26 if gone == "unknown" else run.id
    failed = (await events_of(provider, request(external_id=identifier)))[-1]
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.code) == (FailureKind.LOST, "result_lost")
    assert service.creates() == 1


async def test_the_fake_satisfies_the_official_client(service: Service) -> None:
    """It is not what we run on: under trio it fails where it would have to wait. But it knows what the service says."""
    service.models["acme/painter"] = {
        "url": "https://replicate.com/acme/painter", "owner": "acme", "name": "painter", "description": "Paints",
        "visibility": "public", "github_url": None, "paper_url": None, "license_url": None, "run_count": 1,
        "cover_image_url": None, "default_example": None,
        "latest_version": {"id": "a" * 64, "created_at": "2026-01-01T00:00:00Z", "cog_version": "0.16.0",
                           "openapi_schema": {"components": {"schemas": {"Input": {}}}}},
    }  # fmt: skip
    service.page = 2

    def drive() -> Any:
        client = replicate.Client(api_token=TOKEN, base_url=service.url)
        prediction = client.models.predictions.create(("acme", "painter"), input=script(output="done"))
        while prediction.status not in ("succeeded", "failed", "canceled"):
            prediction.reload()
        held = client.models.predictions.create(("acme", "painter"), input=script(held=True))
        held.cancel()
        while held.status != "canceled":
            held.reload()
        client.predictions.create(version="b" * 64, input=script())
        pages = client.predictions.list()
        listed = [*pages.results, *client.predictions.list(pages.next).results]
        model = client.models.get("acme/painter")
        return prediction.status, prediction.output, len(listed), model.latest_version.openapi_schema

    schema = {"components": {"schemas": {"Input": {}}}}
    assert await trio.to_thread.run_sync(drive) == ("succeeded", "done", 3, schema)


async def test_the_official_client_takes_our_signatures_and_refuses_others() -> None:
    body, stamp = b'{"id": "p1"}', int(time.time())
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(stamp),
        "webhook-signature": sign(SECRET, "msg_1", stamp, body),
    }
    secret = WebhookSigningSecret(key=SECRET)
    Webhooks.validate(headers=headers, body=body.decode(), secret=secret)
    with pytest.raises(ValueError, match="signature"):
        Webhooks.validate(headers=headers, body=body.decode() + " ", secret=secret)


# --- the words, pure ------------------------------------------------------------------------------------


def test_news_never_go_back() -> None:
    start, late = Prediction("a", "starting"), Prediction("a", "processing", output=["x"])
    done = Prediction("a", "succeeded", output=["x", "y"])
    assert newer(late, start)
    assert newer(done, late)
    assert not newer(late, done)
    assert not newer(Prediction("a", "processing", output=[]), late)
    assert not newer(done, done)


def test_percentages_are_read_from_logs() -> None:
    assert progress_in(" 10%|#  | 1/10\n 40%|####") == 0.4
    assert progress_in("loaded 1.5GB") is None
    assert progress_in("100%") == 1.0
    assert progress_in("999%") == 1.0


def test_files_and_text_are_told_apart() -> None:
    url = "https://replicate.delivery/a.png"
    assert text_of([url]) is None
    assert text_of("see https://example.com for more") == "see https://example.com for more"
    assert [file.url for file in files_of({"image": url, "masks": [url, {"deep": url}], "score": 0.5})] == [url] * 3
    assert text_of({"a": 1}) is None


def test_an_uuid_is_what_ties_a_webhook_to_its_attempt() -> None:
    assert isinstance(request().attempt_id, UUID)
