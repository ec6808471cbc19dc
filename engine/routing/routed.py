"""The provider that picks: the model that was asked for with each of our credentials, then the models it falls back to.

Before anything was shown to the client, a failure of the back end moves on to the next route, unseen. After that the
failure is the attempt's: text of two models is never spliced. When no route works, a task waits for the one that will,
or is given an answer that was kept. May import `engine.models`' rows and the protocol.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import structlog
from attrs import define, field, frozen

from engine.providers.protocol import (
    CACHED,
    Failed,
    Finished,
    Provider,
    ProviderEvent,
    ProviderRequest,
    TextDelta,
    UsageReported,
)
from engine.routing.breaker import HOPELESS
from engine.routing.cache import Kept, key_of
from engine.routing.journey import Journey
from engine.routing.ride import Moved, Ride
from engine.routing.routes import Route, Routes
from engine.routing.rules import Rules
from engine.tasks.events import Usage

log = structlog.get_logger("elwift.routing")


@define(eq=False)
class Routing(Routes):
    """The routes of a node, and a provider for each name that takes them."""

    def routed(self) -> dict[str, Provider]:
        """A provider for each name, to be used in the place of the back ends themselves."""
        return {name: Routed(name, self) for name in self.providers}


@frozen
class Routed:
    """A provider that runs a request on the first route that works."""

    name: str
    routing: Routes = field(repr=False)

    @property
    def adopts(self) -> bool:
        """Whether a finished piece of work can be had again by its id, without being done again."""
        return any(getattr(provider, "adopts", False) for provider in self.routing.providers[self.name])

    async def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """See the Protocol."""
        for told in self._kept(request, instead=False):
            yield told
            if isinstance(told, Finished):
                return
        journey = Journey(self.routing, in_doubt=request.external_id is not None or request.intent_at is not None)
        for route in self.routing.routes(self.name, request):
            if journey.skips(route):
                continue
            if (wait := self.routing.wait(route)) > 0:
                journey.waits(wait, route)
                continue
            journey.sets_out(route)
            moved: Moved | None = None
            async with aclosing(self._one(route)) as events:
                async for event in events:
                    if isinstance(event, Moved):
                        moved = event
                        break
                    yield journey.told(event)
            if moved is None:
                return
            _note(route, moved.failure)
            journey.moves(moved, route)
        for told in self._last_resort(request, journey):
            yield told

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

    def _last_resort(self, request: ProviderRequest, journey: Journey) -> Iterator[ProviderEvent]:
        """No route has worked: an answer that was kept, or the failure; and what was paid for nothing."""
        if journey.usage is not None:
            yield UsageReported(journey.usage)
        verdict = journey.verdict()
        kept = list(self._kept(request, instead=True)) if not journey.in_doubt else []
        for told in kept or [verdict]:
            yield journey.told(told)

    def _kept(self, request: ProviderRequest, instead: bool) -> Iterator[ProviderEvent]:
        """An answer that was given before to the very same input, if it is young enough: to be told at once, or
        `instead` of a failure. It is not paid again."""
        model = self.routing.model_of(request)
        rules = Rules.of(model.settings) if model else Rules()
        age = rules.stale if instead else rules.cache
        if model is None or age is None or request.external_id is not None:
            return
        now = self.routing.clock()
        kept = self.routing.cache.get(key_of(model.id, request.version, request.input), now - age)
        if kept is not None:
            yield from _told(kept, now, paid=instead)


def _told(kept: Kept, now: float, paid: bool) -> Iterator[ProviderEvent]:
    """`paid`: usage of routes that failed before stands already."""
    yield TextDelta(kept.text)
    if not paid:
        yield UsageReported(Usage(input_tokens=0, output_tokens=0, cost=0.0))
    yield Finished(CACHED, {"age_seconds": round(now - kept.at, 3)})


def _note(route: Route, failure: Failed) -> None:
    """What only a person can mend is said loudly."""
    told = {"provider": route.provider.name, "credential": route.credential, "model": route.request.model}
    if failure.code in HOPELESS:
        log.error("a provider refuses us", **told, code=failure.code)
    else:
        log.info("moving on", **told, code=failure.code)
