"""One request over all its routes: what was paid on those that were left, and what is said when none of them works.

Pure but for its state and the places that are booked for those who come back.
"""

from __future__ import annotations

from attrs import define, evolve, field

from engine.models.price import together
from engine.providers.protocol import Failed, FailureKind, Finished, ProviderEvent, UsageReported
from engine.routing.quota import estimate
from engine.routing.ride import Moved
from engine.routing.routes import Route, Routes
from engine.tasks.events import Usage

SOON = 2.0
"""Seconds after which a back end without capacity is asked again, when it does not say itself."""
OF_THE_MODEL = frozenset({"context_length", "content_policy"})
"""What fails with one credential fails with each: only another model may do better."""


@define
class Journey:
    """What is known over all routes of one request. `used` is what was paid on those that were left; `in_doubt`: more
    may be under way on one of them, or on one of an earlier life of this attempt, than this one knows of. `rests`: the
    routes that will work later, the wait for each, and the failure that says so, if one does."""

    routes: Routes
    in_doubt: bool = False
    used: list[Usage] = field(factory=list)
    failure: Failed | None = None
    failed_on: Route | None = None
    rests: list[tuple[float, Route, Failed | None]] = field(factory=list)

    def skips(self, route: Route) -> bool:
        """Whether it would fail there for the same reason."""
        failure, on = self.failure, self.failed_on
        if failure is None or on is None or failure.code not in OF_THE_MODEL:
            return False
        known = route.rules.context and on.rules.context
        small = failure.code == "context_length" and known and (route.rules.context or 0) <= (on.rules.context or 0)
        return route.origin == on.origin or bool(small)

    def waits(self, wait: float, route: Route) -> None:
        """The route rests. One whose rest mends nothing fails as it did."""
        breaker = self.routes.traffic(route).breaker
        if breaker.hopeless and breaker.why is not None:
            self.failure, self.failed_on = self.failure or breaker.why, self.failed_on or route
        else:
            self.rests.append((wait, route, None))

    def sets_out(self, route: Route) -> None:
        """The first route is given what an earlier life knew, and answers for it."""
        if not route.fallback:
            self.in_doubt = False

    def moves(self, moved: Moved, route: Route) -> None:
        """The route has failed, unseen, and is left."""
        failure = moved.failure
        self.in_doubt = self.in_doubt or failure.in_doubt
        if moved.usage is not None:
            self.used.append(moved.usage)
        if failure.kind in (FailureKind.UNAVAILABLE, FailureKind.QUOTA) and failure.code != "provider_quota":
            wait = max(self.routes.wait(route), failure.retry_after or 0.0)
            self.rests.append((wait or SOON, route, failure))
        elif not (route.fallback and failure.kind is FailureKind.INVALID_INPUT and self.failed_on):
            self.failure, self.failed_on = failure, route

    def told(self, event: ProviderEvent) -> ProviderEvent:
        """The event as it stands in the whole: usage is that of all routes, and the end carries the doubts."""
        match event:
            case UsageReported(usage) if self.used:
                return evolve(event, usage=together([*self.used, usage]))
            case Finished() | Failed() if self.in_doubt:
                return evolve(event, in_doubt=True)
            case _:
                return event

    @property
    def usage(self) -> Usage | None:
        """What was paid for nothing."""
        return together(self.used) if self.used else None

    def verdict(self) -> Failed:
        """No route has worked. If one will, the task waits for it, which costs no attempt; each task for its moment."""
        if self.rests and not (self.failure and self.failure.code in OF_THE_MODEL):
            wait, route, failure = min(self.rests, key=lambda rest: rest[0])
            traffic, tokens = self.routes.traffic(route), estimate(route.request.input)
            again = traffic.book(wait, tokens, self.routes.clock())
            return evolve(failure or RESTING, kind=FailureKind.UNAVAILABLE, retry_after=again)
        return self.failure or NO_PROVIDER


RESTING = Failed(
    FailureKind.UNAVAILABLE,
    "provider_resting",
    "The provider gets no more requests for now: it failed too often, or its quota is used up.",
    "It is tried again by itself.",
)
NO_PROVIDER = Failed(
    FailureKind.PERMANENT, "no_provider", "Nothing here can run this model.", "Choose another model; tell the operator."
)
