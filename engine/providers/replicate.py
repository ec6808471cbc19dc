"""Replicate: predictions created, followed by webhooks with polling as the net below, cancelled, adopted after a crash.

A thin client on httpx, because the official one's waiting and streaming need asyncio. It retries nothing that could buy
a prediction twice: after a lost answer it looks for the prediction before it gives up, and says so when it cannot know.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import httpx
import structlog
import trio
from attrs import define, frozen

from engine.ports import StorageDown
from engine.providers.deliveries import Deliveries, Waiting
from engine.providers.metrics import POSSIBLE_DUPLICATES
from engine.providers.protocol import (
    Accepted,
    Failed,
    FailureKind,
    Finished,
    Progress,
    ProviderEvent,
    ProviderRequest,
    TextDelta,
    UsageReported,
)
from engine.providers.replicate_wire import (
    BadPrediction,
    Prediction,
    creation,
    failure_of,
    files_of,
    newer,
    progress_in,
    read_prediction,
    refusal,
    text_of,
    usage_of,
    webhook_url,
)

BASE_URL = "https://api.replicate.com"
SEARCHED = 20
"""How many predictions are looked at when one is searched for."""
log = structlog.get_logger("elwift.replicate")


@frozen
class Pace:
    """How often a prediction is asked for, in seconds. With webhooks the first question waits for a silence."""

    first: float = 0.5
    longest: float = 5.0
    silence: float = 15.0
    lost_after: float = 120.0
    """How long the service may be out of reach before the attempt fails."""
    run_limit: float = 1800.0
    cancel_within: float = 5.0


@frozen
class Lost(Exception):
    """An answer did not come, or could not be read: the service may or may not have done what was asked."""

    why: str


@frozen
class Refusal(Exception):
    """The service said no."""

    failed: Failed


class Replicate:
    """The provider. `public_url` is how Replicate reaches our webhooks (https); empty: polling alone."""

    name = "replicate"

    def __init__(
        self,
        http: httpx.AsyncClient,
        token: str,
        *,
        base_url: str = BASE_URL,
        public_url: str = "",
        pace: Pace | None = None,
        known: Callable[[str], Awaitable[bool]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`known`: whether a prediction's id already stands in our records, as another attempt's."""
        self._http = http
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        self._base_url = (base_url or BASE_URL).rstrip("/")
        self._public_url = public_url if public_url.startswith("https://") else ""
        self._pace = pace or Pace()
        self._known = known or _unknown
        self._clock = clock
        self._followed: set[str] = set()
        self.deliveries: Deliveries[Prediction] = Deliveries(newer)

    async def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """One attempt. Closing it early cancels the prediction."""
        with self.deliveries.waiting(request.attempt_id) as waiting:
            try:
                prediction = await self._begin(request)
            except Refusal as no:
                yield no.failed
                return
            except Lost as lost:
                yield _unreachable(lost)
                return
            async with aclosing(self._guarded(prediction, waiting)) as events:
                async for event in events:
                    yield event

    # --- beginning: create, or find what an earlier life of this attempt created ---------------------

    async def _begin(self, request: ProviderRequest) -> Prediction:
        if request.external_id:
            return await self._get(request.external_id)
        if request.intent_at is not None and (found := await self._find(request, request.intent_at)):
            return found
        began = self._clock()
        if request.intent_at is not None:
            POSSIBLE_DUPLICATES.labels(provider=self.name).inc()
        try:
            return await self._create(request)
        except Lost:
            if found := await self._find(request, began - 2.0):
                return found
            raise

    async def _create(self, request: ProviderRequest) -> Prediction:
        path, body = creation(request)
        if self._public_url:
            body["webhook"] = webhook_url(self._public_url, request)
            body["webhook_events_filter"] = ["start", "output", "logs", "completed"]
        headers = {"Cancel-After": f"{self._pace.run_limit:.0f}s"}
        return _prediction(await self._ask("POST", path, body, headers))

    async def _find(self, request: ProviderRequest, since: float) -> Prediction | None:
        """A prediction with this very input, created since, that no other attempt of ours follows or ever followed.

        The listing has no inputs, so each candidate is looked at.
        """
        query = urlencode({"created_after": datetime.fromtimestamp(since, UTC).isoformat()})
        try:
            page = await self._ask("GET", f"/v1/predictions?{query}")
            for identifier in _listed(page)[:SEARCHED]:
                if identifier in self._followed or await self._known(identifier):
                    continue
                candidate = await self._get(identifier)
                if candidate.input == request.input:
                    return candidate
        except (Lost, Refusal, StorageDown) as problem:
            log.warning("prediction_search_failed", task_id=str(request.task_id), why=str(problem))
        return None

    # --- following: newest news wins, whoever brings it ----------------------------------------------

    async def _guarded(
        self, prediction: Prediction, waiting: Waiting[Prediction]
    ) -> AsyncGenerator[ProviderEvent, None]:
        ended, story = False, Story()
        self._followed.add(prediction.id)
        try:
            yield Accepted(prediction.id, prediction.status)
            async with aclosing(self._follow(prediction, waiting)) as all_news:
                async for news in all_news:
                    ended = isinstance(news, Prediction) and news.terminal
                    for event in [news] if isinstance(news, Failed) else story.tell(news):
                        yield event
        finally:
            self._followed.discard(prediction.id)
            if not ended:
                await self._cancel(prediction.id)

    async def _follow(
        self, prediction: Prediction, waiting: Waiting[Prediction]
    ) -> AsyncGenerator[Prediction | Failed, None]:
        """The prediction as it grows, until it is terminal; a Failed when the service cannot be reached any more."""
        latest, pause, reached = prediction, self._pace.first, trio.current_time()
        yield latest
        while not latest.terminal:
            news = await waiting.take(self._pace.silence if self._public_url else pause)
            if news is None:
                pause = min(pause * 1.5, self._pace.longest)
                try:
                    news, reached = await self._get(prediction.id), trio.current_time()
                except Refusal as no:
                    if no.failed.kind is not FailureKind.UNAVAILABLE:
                        yield no.failed
                        return
                except Lost as lost:
                    if trio.current_time() - reached > self._pace.lost_after:
                        yield _unreachable(lost)
                        return
            if news is not None and news.id == prediction.id and newer(news, latest):
                latest = news
                yield latest

    async def _get(self, identifier: str) -> Prediction:
        return _prediction(await self._ask("GET", f"/v1/predictions/{identifier}"))

    async def _cancel(self, identifier: str) -> None:
        """Tells the service to stop, also while we are being cancelled ourselves, but not for long."""
        with trio.CancelScope(shield=True), trio.move_on_after(self._pace.cancel_within):
            try:
                await self._ask("POST", f"/v1/predictions/{identifier}/cancel")
            except (Lost, Refusal) as problem:
                log.warning("cancel_failed", prediction=identifier, why=str(problem))

    async def _ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        """One request; its decoded answer. Raises Lost or Refusal."""
        try:
            answer = await self._http.request(
                method, self._base_url + path, json=body, headers={**self._headers, **(headers or {})}
            )
        except httpx.HTTPError as problem:
            raise Lost(type(problem).__name__) from problem
        decoded = _decoded(answer)
        if answer.status_code >= 500 or answer.is_redirect:
            raise Lost(f"HTTP {answer.status_code}")
        if answer.status_code >= 400:
            raise Refusal(refusal(answer.status_code, answer.headers, decoded))
        return decoded


@define
class Story:
    """What was already told of a prediction, so that only what is new is told."""

    shown: str = ""
    progress: float = 0.0

    def tell(self, prediction: Prediction) -> list[ProviderEvent]:
        events: list[ProviderEvent] = []
        text = text_of(prediction.output)
        if text is not None and text.startswith(self.shown) and len(text) > len(self.shown):
            events.append(TextDelta(text[len(self.shown) :]))
            self.shown = text
        if not prediction.terminal:
            return events + self._progress(prediction)
        return events + self._end(prediction, text)

    def _progress(self, prediction: Prediction) -> list[ProviderEvent]:
        fraction = progress_in(prediction.logs)
        self.progress = max(self.progress, fraction or 0.0)
        return [Progress(self.progress, step=prediction.status)]

    def _end(self, prediction: Prediction, text: str | None) -> list[ProviderEvent]:
        usage = usage_of(prediction.metrics)
        events: list[ProviderEvent] = [UsageReported(usage)] if usage else []
        if prediction.status != "succeeded":
            return [*events, failure_of(prediction)]
        files = [] if text else files_of(prediction.output)
        if not text and not files:
            return [*events, _nothing()]
        if text is not None and text != self.shown:
            return [*events, _changed()]
        return [*events, *files, Finished(prediction.status, prediction.metrics)]


def _listed(page: Any) -> list[str]:
    results = page.get("results") if isinstance(page, dict) else None
    return [str(item["id"]) for item in results or [] if isinstance(item, dict) and "id" in item]


async def _unknown(_: str) -> bool:
    return False


def _decoded(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None


def _prediction(answer: Any) -> Prediction:
    try:
        return read_prediction(answer)
    except BadPrediction as problem:
        raise Lost(str(problem)) from problem


def _unreachable(lost: Lost) -> Failed:
    words = f"Replicate could not be reached ({lost.why})."
    return Failed(FailureKind.RETRYABLE, "provider_unreachable", words, "It is tried again.")


def _nothing() -> Failed:
    words = "The model reported success without any output."
    return Failed(FailureKind.RETRYABLE, "no_output", words, "It is tried again.", None, "succeeded")


def _changed() -> Failed:
    words = "The model's final text differs from what it had streamed."
    return Failed(FailureKind.RETRYABLE, "output_changed", words, "It is tried again.", None, "succeeded")
