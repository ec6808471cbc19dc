"""All ways of a node to an answer, and what is known of each over time: its breaker, its quota, who comes back when."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol
from uuid import UUID

from attrs import define, evolve, field, frozen

from engine.ports import Model
from engine.providers.protocol import Provider, ProviderRequest
from engine.routing.breaker import Breaker
from engine.routing.cache import AnswerCache
from engine.routing.quota import Quota, estimate
from engine.routing.rules import Rules

MOST_FALLBACKS = 5
BREATH = 0.02
"""Seconds between two requests that come back after a rest, at the least: all at once they would only be in each
other's way."""
LATEST = 300.0
"""Nobody is sent away for so many seconds more for the sake of those before: the limits may change meanwhile."""


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
    rules: Rules
    request: ProviderRequest
    fallback: bool

    @property
    def key(self) -> tuple[str, int, str]:
        return self.provider.name, self.credential, self.request.slug

    @property
    def origin(self) -> tuple[str, str]:
        """Whose model it is, whatever the credential."""
        return self.provider.name, self.request.slug


@define
class Traffic:
    """What is known of one route over time, by one monotonic clock."""

    rules: Rules
    quota: Quota
    breaker: Breaker = field(factory=Breaker)
    booked: float = -math.inf
    """When the last of those who were sent away comes back."""

    def wait(self, tokens: int, now: float) -> float:
        """Seconds until a request may go; 0.0: now."""
        return max(self.breaker.wait(now), self.quota.wait(tokens, now))

    def book(self, wait: float, tokens: int, now: float) -> float:
        """Seconds after which this request, which must `wait`, is to come back: each at a moment of its own."""
        at = max(now + wait, self.booked + max(BREATH, self.quota.spacing(tokens)))
        self.booked = min(at, now + wait + LATEST)
        return self.booked - now

    def ruled(self, rules: Rules) -> None:
        """A model's settings can change while it works."""
        if rules != self.rules:
            fresh = Quota.of(rules)
            fresh.running, fresh.mean = self.quota.running, self.quota.mean
            self.rules, self.quota, self.booked = rules, fresh, -math.inf


@define(eq=False)
class Routes:
    """All back ends of a node. `providers`: by name, one instance for each credential."""

    models: ModelTable
    providers: Mapping[str, Sequence[Provider]]
    clock: Callable[[], float] = time.monotonic
    cache: AnswerCache = field(factory=AnswerCache)
    _traffic: dict[tuple[str, int, str], Traffic] = field(factory=dict)
    _turn: int = 0

    def model_of(self, request: ProviderRequest) -> Model | None:
        """The row of the model that is asked for."""
        return self.models.find(f"{request.model}:{request.version}") or self.models.find(request.model)

    def routes(self, name: str, request: ProviderRequest) -> Iterator[Route]:
        """The ways for a request, in the order in which they are tried."""
        model = self.model_of(request)
        yield from self._with_each_credential(name, model, request, fallback=False)
        for identifier in (model.fallbacks if model else ())[:MOST_FALLBACKS]:
            other = self.models.get(identifier)
            if other is not None and other.is_active:
                yield from self._with_each_credential(other.provider, other, _for(other, request), fallback=True)

    def _with_each_credential(
        self, name: str, model: Model | None, request: ProviderRequest, fallback: bool
    ) -> Iterator[Route]:
        instances = self.providers.get(name, ())
        rules = Rules.of(model.settings if model else {})
        self._turn += 1
        first = self._turn
        for step in range(len(instances)):
            credential = (first + step) % len(instances)
            yield Route(instances[credential], credential, model, rules, request, fallback)

    def traffic(self, route: Route) -> Traffic:
        """What is known of the route."""
        traffic = self._traffic.get(route.key)
        if traffic is None:
            traffic = self._traffic[route.key] = Traffic(route.rules, Quota.of(route.rules))
        traffic.ruled(route.rules)
        return traffic

    def wait(self, route: Route) -> float:
        """Seconds until the route may be taken. What is under way is paid: looking after it is no new request."""
        if route.request.external_id is not None:
            return 0.0
        return self.traffic(route).wait(estimate(route.request.input), self.clock())

    def state(self) -> list[dict[str, Any]]:
        """For operators: each route, whether it rests and why, and for how long."""
        now = self.clock()
        return [
            {
                "provider": provider,
                "credential": credential,
                "model": slug,
                "running": traffic.quota.running,
                "rests_for_seconds": round(max(0.0, traffic.breaker.open_until - now), 1),
                "trips": traffic.breaker.trips,
                "why": traffic.breaker.why.code if traffic.breaker.why else None,
                "hopeless": traffic.breaker.hopeless,
            }
            for (provider, credential, slug), traffic in self._traffic.items()
        ]


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
