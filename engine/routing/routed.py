"""The provider that picks: the model that was asked for with each of our credentials, then the models it falls back to.

Before anything was shown to the client, a failure of the back end moves on to the next route, unseen. After that the
failure is the attempt's: text of two models is never spliced. May import `engine.models`' rows and the protocol.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol
from uuid import UUID

import structlog
from attrs import define, evolve, field, frozen

from engine.models.price import priced, together
from engine.ports import Model
from engine.providers.protocol import (
    CACHED,
    Accepted,
    Failed,
    FailureKind,
    Finished,
    OutputReady,
    Provider,
    ProviderEvent,
    ProviderRequest,
    TextDelta,
    UsageReported,
)
from engine.routing.breaker import Breaker
from engine.routing.cache import AnswerCache, Kept, key_of
from engine.routing.quota import Quota, estimate
from engine.tasks.events import Usage

MOST_FALLBACKS = 5
MOVES_ON = frozenset({FailureKind.RETRYABLE, FailureKind.QUOTA, FailureKind.UNAVAILABLE})
MOVES_ON_CODES = frozenset({"provider_auth", "unknown_model", "model_not_found", "context_length"})
"""Failures that another model or credential may not have."""
log = structlog.get_logger("elwift.routing")


class ModelTable(Protocol):
    """As much of the model registry as routing needs."""

    def find(self, name: str) -> Model | None: ...

    def get(self, model_id: UUID) -> Model | None: ...


@frozen
class Route:
    """One way to an answer: a back end (of one credential) and the model that it is asked for."""

    provider: Provider
    credential: int
    model: Model | None
    request: ProviderRequest
    fallback: bool

    @property
    def key(self) -> tuple[str, int, str]:
        return self.provider.name, self.credential, self.request.slug


@define
class Traffic:
    """What is known of one route over time."""

    breaker: Breaker
    quota: Quota


@define(eq=False)
class Routing:
    """All back ends of a node. `providers`: by name, one instance for each credential."""

    models: ModelTable
    providers: Mapping[str, Sequence[Provider]]
    clock: Callable[[], float] = time.monotonic
    cache: AnswerCache = field(factory=AnswerCache)
    _traffic: dict[tuple[str, int, str], Traffic] = field(factory=dict)
    _turn: int = 0

    def routed(self) -> dict[str, Provider]:
        """A provider for each name, to be used in the place of the back ends themselves."""
        return {name: Routed(name, self) for name in self.providers}

    def routes(self, name: str, request: ProviderRequest) -> Iterator[Route]:
        """The ways for a request, in the order in which they are tried."""
        model = self.models.find(f"{request.model}:{request.version}") or self.models.find(request.model)
        yield from self._with_each_credential(name, model, request, fallback=False)
        for identifier in (model.fallbacks if model else ())[:MOST_FALLBACKS]:
            other = self.models.get(identifier)
            if other is not None and other.is_active:
                yield from self._with_each_credential(other.provider, other, _for(other, request), fallback=True)

    def _with_each_credential(
        self, name: str, model: Model | None, request: ProviderRequest, fallback: bool
    ) -> Iterator[Route]:
        instances = self.providers.get(name, ())
        self._turn += 1
        for step in range(len(instances)):
            credential = (self._turn + step) % len(instances)
            yield Route(instances[credential], credential, model, request, fallback)

    def traffic(self, route: Route) -> Traffic:
        if route.key not in self._traffic:
            settings = route.model.settings if route.model else {}
            self._traffic[route.key] = Traffic(Breaker(), Quota.of(settings))
        return self._traffic[route.key]

    def state(self) -> list[dict[str, Any]]:
        """For operators: each route, whether it is open, and until when it rests."""
        now = self.clock()
        return [
            {
                "provider": provider,
                "credential": credential,
                "model": slug,
                "running": traffic.quota.running,
                "rests_for_seconds": round(max(0.0, traffic.breaker.open_until - now), 1),
                "trips": traffic.breaker.trips,
            }
            for (provider, credential, slug), traffic in self._traffic.items()
        ]


@frozen
class Routed:
    """A provider that runs a request on the first route that works."""

    name: str
    routing: Routing = field(repr=False)

    async def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """See the Protocol. The failure of the last route that was tried is the attempt's."""
        if (kept := self._kept(request)) is not None:
            for told in _told(kept, self.routing.clock()):
                yield told
            return
        journey = Journey(in_doubt=request.external_id is not None or request.intent_at is not None)
        for route in self.routing.routes(self.name, request):
            wait = self._wait(route)
            if wait > 0:
                journey.rests(wait)
                continue
            journey.sets_out(route)
            async with aclosing(self._one(route)) as events:
                async for event in events:
                    if isinstance(event, Moved):
                        journey.moves(event)
                        break
                    yield journey.told(event)
            if journey.failure is None:
                return
            code = journey.failure.code
            log.info("moving on", provider=route.provider.name, model=route.request.model, code=code)
        if journey.failure is not None and journey.used:
            yield UsageReported(together(journey.used))
        yield journey.told(journey.failure or _resting(journey.soonest))

    def _wait(self, route: Route) -> float:
        if route.request.external_id is not None:
            return 0.0  # what is under way is paid: looking after it is no new request
        traffic, now = self.routing.traffic(route), self.routing.clock()
        return max(traffic.breaker.wait(now), traffic.quota.wait(estimate(route.request.input), now))

    async def _one(self, route: Route) -> AsyncGenerator[ProviderEvent | Moved, None]:
        """One route's events; `Moved` when it failed before it had shown anything."""
        ride = Ride(route, self.routing)
        ride.begin()
        try:
            async with aclosing(route.provider.run(route.request)) as events:
                async for event in events:
                    for told in ride.see(event):
                        yield told
        finally:
            ride.end()

    def _kept(self, request: ProviderRequest) -> Kept | None:
        model = self.routing.models.find(request.model)
        seconds = model.settings.get("cache_seconds") if model else None
        if model is None or not seconds or request.external_id:
            return None
        key = key_of(model.id, request.version, request.input)
        return self.routing.cache.get(key, self.routing.clock() - float(seconds))


@frozen
class Moved:
    """The route failed and nobody has seen anything of it. `usage` is what it had used all the same."""

    failure: Failed
    usage: Usage | None = None


@define
class Journey:
    """What is known over all routes of one request. `used` is what was paid on those that were left; `in_doubt`: more
    may be under way on one of them, or on one of an earlier life of this attempt, than this one knows of."""

    in_doubt: bool = False
    used: list[Usage] = field(factory=list)
    failure: Failed | None = None
    soonest: float | None = None

    def rests(self, wait: float) -> None:
        self.soonest = wait if self.soonest is None else min(self.soonest, wait)

    def sets_out(self, route: Route) -> None:
        """The first route is given what an earlier life knew, and answers for it."""
        self.failure = None
        if not route.fallback:
            self.in_doubt = False

    def moves(self, moved: Moved) -> None:
        self.failure = moved.failure
        self.in_doubt = self.in_doubt or moved.failure.in_doubt
        if moved.usage is not None:
            self.used.append(moved.usage)

    def told(self, event: ProviderEvent) -> ProviderEvent:
        """The event as it stands in the whole: usage is that of all routes, and the end carries the doubts."""
        match event:
            case UsageReported(usage) if self.used:
                return evolve(event, usage=together([*self.used, usage]))
            case Finished() | Failed() if self.in_doubt:
                return evolve(event, in_doubt=True)
            case _:
                return event


@define
class Ride:
    """What one request on one route has come to."""

    route: Route
    routing: Routing
    reserved: int = 0
    shown: bool = False
    files: bool = False
    text: list[str] = field(factory=list)
    usage: Usage | None = None
    outcome: Failed | Finished | None = None

    def begin(self) -> None:
        traffic, now = self.routing.traffic(self.route), self.routing.clock()
        self.reserved = estimate(self.route.request.input)
        traffic.breaker.begin(now)
        traffic.quota.begin(self.reserved, now)

    def see(self, event: ProviderEvent) -> Iterator[ProviderEvent | Moved]:
        match event:
            case Failed():
                self.outcome = event
                moves = not self.shown and (event.kind in MOVES_ON or event.code in MOVES_ON_CODES)
                yield Moved(event, self.usage) if moves else event
            case Finished():
                self.outcome = event
                self._keep()
                yield event
            case Accepted() if self.route.fallback:
                return  # the attempt's record is of the model that was asked for: this id is none of its provider's
            case UsageReported(usage, counts):
                self.usage = priced(usage, self.route.model.price if self.route.model else {}, counts)
                yield UsageReported(self.usage)
            case TextDelta(text):
                self.shown = True
                self.text.append(text)
                yield event
            case OutputReady():
                self.shown = self.files = True
                yield evolve(event, provider=self.route.provider.name)
            case _:
                yield event

    def end(self) -> None:
        traffic, now = self.routing.traffic(self.route), self.routing.clock()
        traffic.quota.end(self.reserved, _tokens(self.usage), now)
        match self.outcome:
            case Failed():
                traffic.breaker.failed(self.outcome, now)
            case Finished():
                traffic.breaker.succeeded(now)
            case None:
                traffic.breaker.gave_up()

    def _keep(self) -> None:
        model, request = self.route.model, self.route.request
        if model is not None and model.settings.get("cache_seconds") and self.text and not self.files:
            kept = Kept("".join(self.text), self.usage, self.routing.clock())
            self.routing.cache.put(key_of(model.id, request.version, request.input), kept)


def _for(model: Model, request: ProviderRequest) -> ProviderRequest:
    """The request as the other model can take it: its defaults, and of the input what its schema knows."""
    known = model.input_schema.get("properties")
    open_ended = not isinstance(known, dict) or model.input_schema.get("additionalProperties") is not False
    given = {name: value for name, value in request.input.items() if open_ended or name in (known or {})}
    return evolve(
        request,
        model=model.name,
        slug=model.slug,
        version=model.version,
        input={**model.defaults, **given},
        external_id=None,  # the id on record is of the model that was asked for; but this, too, may have been asked
    )


def _told(kept: Kept, now: float) -> Iterator[ProviderEvent]:
    yield TextDelta(kept.text)
    if kept.usage is not None:
        yield UsageReported(evolve(kept.usage, cost=0.0))
    yield Finished(CACHED, {"age_seconds": round(now - kept.at, 3)})


def _tokens(usage: Usage | None) -> int | None:
    if usage is None or (usage.input_tokens is None and usage.output_tokens is None):
        return None
    return (usage.input_tokens or 0) + (usage.output_tokens or 0)


def _resting(soonest: float | None) -> Failed:
    if soonest is None:
        words, action = "Nothing here can run this model.", "Choose another model; tell the operator."
        return Failed(FailureKind.PERMANENT, "no_provider", words, action)
    words = "The provider gets no more requests for now: it failed too often, or its quota is used up."
    return Failed(FailureKind.UNAVAILABLE, "provider_resting", words, "It is tried again by itself.", soonest)
