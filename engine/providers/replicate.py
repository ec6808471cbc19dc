"""Replicate: predictions created, followed by webhooks with polling as the net below, stopped, adopted after a crash.

Replicate has no idempotency key, so what could buy a prediction twice is done with care. A request whose answer was
lost is not repeated before the prediction was looked for; a worker that is stopped while it asks does not take the
answer with it; and a prediction is stopped only when its task is over, not when its server is.
The API is in `replicate_api`, its words in `replicate_wire`, what is left over in `settlement`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from uuid import UUID

import httpx
import structlog
import trio
from attrs import evolve, frozen

from engine.ports import StorageDown
from engine.providers import replicate_failures as failures
from engine.providers.deliveries import Deliveries, Waiting
from engine.providers.errands import Errands, Interrupted
from engine.providers.metrics import POSSIBLE_DUPLICATES
from engine.providers.protocol import (
    Accepted,
    Failed,
    FailureKind,
    ProviderEvent,
    ProviderRequest,
    UsageReported,
)
from engine.providers.replicate_api import BASE_URL, Api, Lost, Refusal
from engine.providers.replicate_pace import Pace, Watch
from engine.providers.replicate_search import Search, Wanted, is_it
from engine.providers.replicate_story import Story
from engine.providers.replicate_wire import (
    Prediction,
    counts_of,
    creation,
    newer,
    structure_of,
    text_of,
    usage_of,
    webhook_url,
)
from engine.providers.throttle import Throttle
from engine.tasks.events import Usage

__all__ = ["BASE_URL", "Pace", "Replicate", "Story"]

TIDYING_TRIES = 5
WEBHOOKS = ["start", "output", "logs", "completed"]
log = structlog.get_logger("elwift.replicate")


@frozen
class Begun:
    """A prediction to follow. `adopted`: another life of this attempt had made it."""

    prediction: Prediction
    adopted: bool = False
    repeats: int | None = None


async def _unknown(_: str, __: UUID) -> bool:
    return False


async def _nobody(_: UUID) -> bool:
    return False


class Replicate:
    """The provider. Made once; `errands.attend` must run while it is used."""

    name = "replicate"
    adopts = True
    """A finished prediction can be had again by its id, without running again."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        token: str,
        *,
        base_url: str = BASE_URL,
        public_url: str = "",
        pace: Pace | None = None,
        known: Callable[[str, UUID], Awaitable[bool]] = _unknown,
        wanted: Callable[[UUID], Awaitable[bool]] = _nobody,
        clock: Callable[[], float] = time.time,
        errands: Errands | None = None,
    ) -> None:
        """`public_url` is how Replicate reaches our webhooks (https); empty: polling alone. `known`: whether a
        prediction's id stands in our records, as that of another attempt than this one. `wanted`: whether a task still
        wants a result."""
        self.api = Api(http, token, base_url, clock=clock)
        self.search = Search(self.api, known)
        self.pace = pace or Pace()
        self.errands = errands or Errands()
        self.deliveries: Deliveries[Prediction] = Deliveries(newer)
        self.left: Callable[[ProviderRequest, str, bool], Awaitable[None]] = self._cancel
        """What is done with a prediction that nobody wants any more; the flag: beside the one that is wanted. It may
        raise Lost, Refusal, StorageDown."""
        self.public_url = public_url if public_url.startswith("https://") else ""
        self.tidying: list[UUID] = []
        """Attempts for which a prediction beside their own is being stopped and noted."""
        self._wanted = wanted
        self._clock = clock
        self._throttle = Throttle()
        self._pending: dict[UUID, float] = {}

    async def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """One attempt. Closing it early stops the prediction if its task is over, and leaves it if it is not."""
        with self.deliveries.waiting(request.attempt_id) as waiting:
            try:
                begun = await self._begin(request, waiting)
            except Refusal as no:
                yield evolve(no.failed, in_doubt=request.intent_at is not None)  # an earlier call may have been taken
                return
            except Lost as lost:
                yield failures.answer_lost(lost.why)
                return
            async with aclosing(self._guarded(request, begun, waiting)) as events:
                async for event in events:
                    yield event

    # --- beginning: ask, or find what was asked for before --------------------------------------------

    async def _begin(self, request: ProviderRequest, waiting: Waiting[Prediction]) -> Begun:
        """Nothing may wait between a prediction's coming and this end, or it is left to itself."""
        if request.external_id:
            self.search.claimed.add(request.external_id)
            return Begun(Prediction(request.external_id, "starting"), adopted=True)
        repeats = None
        if request.intent_at is not None:
            found, sure = await self._look(request, request.intent_at, waiting)
            if found:
                return Begun(found, adopted=True)
            repeats = 0 if sure else 1
            POSSIBLE_DUPLICATES.labels(provider=self.name).inc(repeats)
        asked_at = self._clock()
        try:
            return Begun(await self._asked(request), repeats=repeats)
        except Lost as lost:
            if lost.pending:
                self._note_pending(request.attempt_id)
            found, _ = await self._look(request, asked_at, waiting)
            if found is None:
                raise
            return Begun(found, repeats=repeats)

    def _note_pending(self, attempt_id: UUID) -> None:
        now = trio.current_time()
        self._pending = {attempt: until for attempt, until in self._pending.items() if until > now}
        self._pending[attempt_id] = now + self.pace.pending

    async def _asked(self, request: ProviderRequest) -> Prediction:
        """The prediction that is made for this request. Raises Lost or Refusal."""
        patience = trio.current_time() + self._throttle.longest
        while True:
            async with self._throttle.door() as closed:
                try:
                    return await self._bought(request, closed)
                except Refusal as no:
                    if closed is not None or no.failed.kind is not FailureKind.UNAVAILABLE:
                        raise
                    self._throttle.refused(no.failed.retry_after or 5.0)
                    if trio.current_time() > patience:
                        raise

    async def _bought(self, request: ProviderRequest, closed: float | None) -> Prediction:
        if closed is not None:
            raise Refusal(failures.refusal(429, {}, {"retry_after": closed}))
        try:
            return await self.errands.run(partial(self._create, request), partial(self._unwanted, request))
        except Interrupted as cut:
            raise Lost("the server ends") if cut.begun else Refusal(failures.unreachable("the server ends")) from cut

    async def _create(self, request: ProviderRequest) -> Prediction:
        path, body = creation(request)
        if self.public_url:
            body |= {"webhook": webhook_url(self.public_url, request), "webhook_events_filter": WEBHOOKS}
        headers = {"Cancel-After": f"{self.pace.run_limit:.0f}s"}
        with self.search.asking(self._looked_for(request, self._clock())):
            prediction = await self.api.create(path, body, headers)
            self.search.claimed.add(prediction.id)
            return prediction

    async def _unwanted(self, request: ProviderRequest, prediction: Prediction) -> None:
        self.search.claimed.discard(prediction.id)
        await self._leave(request, prediction.id)

    async def _look(
        self, request: ProviderRequest, since: float, waiting: Waiting[Prediction]
    ) -> tuple[Prediction | None, bool]:
        """The attempt's prediction, from a delivery or from the listing; if none, whether that is for sure."""
        sure = False
        wanted = self._looked_for(request, since)
        for pause in (0.0,) if self._clock() - since > self.pace.settled_after else self.pace.search:
            try:
                news = await waiting.take(pause)
                if news is not None and (found := await self._named(news.id, wanted)) is not None:
                    return found, True
                if (found := await self.search.first(wanted)) is not None:
                    return found, True
                sure = True
            except (Lost, Refusal, StorageDown) as problem:
                sure = False
                log.warning("prediction not found", task_id=str(request.task_id), why=str(problem))
        return None, sure and self._pending.pop(request.attempt_id, 0.0) < trio.current_time()

    def _looked_for(self, request: ProviderRequest, since: float) -> Wanted:
        return Wanted.of(request, since, bool(self.public_url))

    async def _named(self, identifier: str, wanted: Wanted) -> Prediction | None:
        """The prediction that a delivery for this attempt names, if it is what was asked for: whoever brings a delivery
        again may have changed the address to which it goes, for that is not signed."""
        prediction = await self.api.get(identifier)
        if identifier in self.search.claimed or not is_it(prediction, wanted):
            return None
        self.search.claimed.add(identifier)
        return prediction

    # --- following: newest news wins, whoever brings it ----------------------------------------------

    async def _guarded(
        self, request: ProviderRequest, begun: Begun, waiting: Waiting[Prediction]
    ) -> AsyncGenerator[ProviderEvent, None]:
        identifier, ended, story = begun.prediction.id, False, Story()
        try:
            yield Accepted(identifier, begun.prediction.status, begun.repeats)
            async with aclosing(self._follow(request, begun, waiting)) as all_news:
                async for news in all_news:
                    ended = isinstance(news, Failed) or (isinstance(news, Prediction) and news.terminal)
                    for event in self._told(story, news, begun.adopted):
                        yield event
        finally:
            self.search.claimed.discard(identifier)
            if not ended:
                self.errands.start(partial(self._leave, request, identifier))

    def _told(self, story: Story, news: Prediction | ProviderEvent, adopted: bool) -> list[ProviderEvent]:
        if not isinstance(news, Prediction):
            return [news]
        empty = news.status == "succeeded" and not text_of(news.output) and not structure_of(news.output)
        if empty and (news.data_removed or (adopted and not news.output)):
            return [failures.result_lost()]
        return story.tell(news)

    async def _follow(
        self, request: ProviderRequest, begun: Begun, waiting: Waiting[Prediction]
    ) -> AsyncGenerator[Prediction | ProviderEvent, None]:
        """The prediction as it grows, until it is terminal, or a Failed when there is no more to be known of it."""
        latest, watch = begun.prediction, Watch(self.pace, bool(self.public_url), begun.adopted)
        yield latest
        while not latest.terminal:
            news = await waiting.take(watch.pause)
            if news is not None and news.id != latest.id:
                if news.id not in self.search.claimed:
                    self.errands.start(partial(self._stray, request, news.id))
                continue
            if news is None:
                news = await self._asked_for(latest.id, watch)
            if news is not None and newer(news, latest):
                latest = news
                yield latest
            if latest.terminal:
                return
            if watch.late:
                async with aclosing(self._stopped(latest.id)) as last:
                    async for event in last:
                        yield event
                return
            if (failed := watch.verdict) is not None:
                yield failed
                return

    async def _asked_for(self, identifier: str, watch: Watch) -> Prediction | None:
        try:
            news = await self.api.get(identifier)
        except (Lost, Refusal) as problem:
            watch.missed(problem)
            return None
        watch.heard()
        return news

    async def _stopped(self, identifier: str) -> AsyncGenerator[Prediction | ProviderEvent, None]:
        """It takes too long: it is stopped, and what it cost is told, if that can be learned."""
        try:
            last = await self.ended(identifier)
        except (Lost, Refusal):
            yield failures.out_of_sight("it could not be stopped")
            return
        if last is not None and last.status != "canceled":
            yield last  # it made it after all
            return
        if last is not None and last.metrics:
            yield UsageReported(usage_of(last.metrics) or Usage(), counts_of(last))
        yield failures.took_too_long()

    # --- stopping ---------------------------------------------------------------------------------------

    async def _stray(self, request: ProviderRequest, identifier: str) -> None:
        """A delivery for this attempt of another prediction: one whose answer was lost, and that came late."""
        self.tidying.append(request.attempt_id)
        try:
            for _ in range(TIDYING_TRIES):
                try:
                    return await self._tidied(request, identifier)
                except (Lost, Refusal, StorageDown) as problem:
                    log.warning("stray prediction not stopped yet", prediction=identifier, why=str(problem))
                await trio.sleep(self.pace.longest)
        finally:
            self.tidying.remove(request.attempt_id)

    async def _tidied(self, request: ProviderRequest, identifier: str) -> None:
        if await self.search.known(identifier, request.attempt_id):
            return
        if await self._named(identifier, self._looked_for(request, 0.0)) is not None:
            try:
                await self.left(request, identifier, True)
            finally:
                self.search.claimed.discard(identifier)  # by now it is on record, or the settlement finds it

    async def _leave(self, request: ProviderRequest, identifier: str) -> None:
        """The attempt was cut short. Its server may be ending, or another may have it: then somebody will adopt it."""
        try:
            if not await self._wanted(request.task_id):
                await self.left(request, identifier, False)
        except (Lost, Refusal, StorageDown) as problem:  # the settlement tries again
            log.warning("prediction not stopped yet", prediction=identifier, why=str(problem))

    async def _cancel(self, _: ProviderRequest, identifier: str, beside: bool) -> None:
        await self.api.cancel(identifier)

    async def ended(self, identifier: str) -> Prediction | None:
        """Stops a prediction and sees it end. None: it is not there (any more).

        Raises:
            Lost, Refusal: its end could not be seen.
        """
        with trio.move_on_after(self.pace.stop_within):
            told = False
            while True:
                told = told or await self._told_to_stop(identifier)
                try:
                    last = await self.api.get(identifier)
                except Refusal as no:
                    if no.gone:
                        return None
                    raise
                if last.terminal:
                    return last
                await trio.sleep(self.pace.first)
        raise Lost("it does not stop")

    async def _told_to_stop(self, identifier: str) -> bool:
        """Whether the service has heard that it is to stop; one that is over may well be refused."""
        try:
            await self.api.cancel(identifier)
        except Refusal as no:
            return no.failed.kind is not FailureKind.UNAVAILABLE
        except Lost:
            return False
        return True
