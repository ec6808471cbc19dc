"""One request on one route: what was shown of it, what it used, how it ended, and what its route learns from that."""

from __future__ import annotations

import math
from collections.abc import Iterator

from attrs import define, evolve, field, frozen

from engine.models.price import priced
from engine.providers.protocol import (
    Accepted,
    Failed,
    FailureKind,
    Finished,
    OutputReady,
    ProviderEvent,
    TextDelta,
    UsageReported,
)
from engine.routing.cache import Kept, key_of
from engine.routing.quota import estimate
from engine.routing.routes import Route, Routes
from engine.tasks.events import Usage

MOVES_ON = frozenset({FailureKind.RETRYABLE, FailureKind.QUOTA, FailureKind.UNAVAILABLE})
MOVES_ON_CODES = frozenset({"provider_auth", "unknown_model", "model_not_found", "context_length"})
"""Failures that another model or credential may not have."""
LONGEST_WAIT = 6 * 3600.0
"""Seconds for which a provider is believed that says how long it wants to be left alone."""


@frozen
class Moved:
    """The route failed and nobody has seen anything of it. `usage` is what it had used all the same."""

    failure: Failed
    usage: Usage | None = None


@define
class Ride:
    """What one request on one route has come to."""

    route: Route
    routes: Routes
    reserved: int = 0
    began: float = 0.0
    shown: bool = False
    files: bool = False
    text: list[str] = field(factory=list)
    usage: Usage | None = None
    outcome: Failed | Finished | None = None

    def begin(self) -> None:
        traffic, self.began = self.routes.traffic(self.route), self.routes.clock()
        if self.route.request.external_id is None:
            self.reserved = estimate(self.route.request.input)
            traffic.quota.begin(self.reserved, self.began)
        else:
            traffic.quota.running += 1
        traffic.breaker.begin()

    def see(self, event: ProviderEvent) -> Iterator[ProviderEvent | Moved]:
        match event:
            case Failed():
                failure = self.outcome = _bounded(event)
                yield Moved(failure, self.usage) if self._moves(failure) else failure
            case Finished():
                self.outcome = event
                self._keep()
                yield event
            case Accepted():
                self._alive()
                if not self.route.fallback:  # the attempt's record is of the model that was asked for
                    yield event
            case UsageReported(usage, counts):
                self.usage = priced(usage, self.route.model.price if self.route.model else {}, counts)
                yield UsageReported(self.usage)
            case TextDelta(text):
                self._alive()
                self.shown = True
                self.text.append(text)
                yield event
            case OutputReady():
                self._alive()
                self.shown = self.files = True
                yield evolve(event, provider=self.route.provider.name)
            case _:
                yield event

    def end(self) -> None:
        traffic, now = self.routes.traffic(self.route), self.routes.clock()
        good = isinstance(self.outcome, Finished)
        traffic.quota.end(self.reserved, self._used(), now, now - self.began if good else None)
        match self.outcome:
            case Failed():
                traffic.breaker.failed(self.outcome, now)
            case Finished():
                traffic.breaker.succeeded(now)
            case None:
                traffic.breaker.gave_up()

    def _alive(self) -> None:
        if not self.shown:
            self.routes.traffic(self.route).breaker.alive()

    def _moves(self, failure: Failed) -> bool:
        """Whether another route may do better, and nobody would notice."""
        if self.shown:
            return False
        if failure.code == "content_policy":
            return self.route.rules.policy_moves_on or self.route.fallback
        unfit = self.route.fallback and failure.kind is FailureKind.INVALID_INPUT  # the input was another model's
        return failure.kind in MOVES_ON or failure.code in MOVES_ON_CODES or unfit

    def _used(self) -> int | None:
        """Tokens, None when nobody knows. A request that failed before it had shown anything has used none."""
        usage = self.usage
        if usage is not None and not (usage.input_tokens is None and usage.output_tokens is None):
            return (usage.input_tokens or 0) + (usage.output_tokens or 0)
        return 0 if isinstance(self.outcome, Failed) and not self.shown else None

    def _keep(self) -> None:
        model, request = self.route.model, self.route.request
        if model is not None and self.route.rules.keeps and self.text and not self.files:
            kept = Kept("".join(self.text), self.routes.clock())
            self.routes.cache.put(key_of(model.id, request.version, request.input), kept)


def _bounded(failure: Failed) -> Failed:
    """The failure with a wait that makes sense, or none: the figure is somebody else's."""
    wait = failure.retry_after
    if wait is None or 0 <= wait <= LONGEST_WAIT:
        return failure
    return evolve(failure, retry_after=LONGEST_WAIT if math.isfinite(wait) and wait > 0 else None)
