"""A circuit breaker: who fails too often is left alone for a while, then tried with one request.

One for each (provider, credential, model): a credential that is over its quota must not keep a healthy one from work.
Pure but for its state.
"""

from __future__ import annotations

import math
from collections import deque

from attrs import define, field, frozen

from engine.providers.protocol import Failed, FailureKind

FAULTS = frozenset({FailureKind.RETRYABLE, FailureKind.QUOTA, FailureKind.UNAVAILABLE})
"""Failures of the back end. The rest is in what was asked for, and no user's bad input keeps others from a model."""
HEALTHY = frozenset(
    {"provider_busy", "provider_starting", "prediction_failed", "no_output", "output_changed", "simulated_failure"}
)
"""Said by a back end that is well: it is full, or not ready yet, or its model could make nothing of an input (or was
asked to fail)."""
HOPELESS = frozenset({"provider_auth", "unknown_model", "model_not_found", "provider_misconfigured"})
"""Failures that no waiting mends, but a person does."""
ALWAYS_TRIPS = HOPELESS | {"provider_quota"}
MOST_DOUBLED = 16


@frozen
class BreakerPolicy:
    """It opens after `row` failures in a row, or when more than `rate` of at least `least` requests in the last
    `window` seconds failed; for `cooldown` seconds at first, twice as long each time, up to `longest`. `probe` is the
    longest that others are told to wait for a request that tries. Who says how long it wants to be left alone is
    believed `believed` times in a row, for at least `shortest` seconds; then its word is a lower bound."""

    row: int = 5
    rate: float = 0.5
    least: int = 5
    window: float = 60.0
    cooldown: float = 5.0
    longest: float = 300.0
    probe: float = 60.0
    believed: int = 3
    shortest: float = 1.0


@define
class Breaker:
    """Times are in seconds of one monotonic clock. `why` is the failure that opened it, until it closes."""

    policy: BreakerPolicy = field(factory=BreakerPolicy)
    open_until: float = -math.inf
    trips: int = 0
    why: Failed | None = None
    _trying: bool = False
    _rest: float = 0.0
    _row: int = 0
    _seen: deque[tuple[float, bool]] = field(factory=deque)

    def wait(self, now: float) -> float:
        """Seconds until a request may go; 0.0: now. After a cool-down one request at a time tries."""
        if now < self.open_until:
            return self.open_until - now
        return min(max(self.policy.cooldown, self._rest), self.policy.probe) if self._trying else 0.0

    @property
    def hopeless(self) -> bool:
        """Whether it was opened by what no waiting mends."""
        return self.why is not None and self.why.code in HOPELESS

    def begin(self) -> None:
        """A request goes."""
        self._trying = self.trips > 0

    def alive(self) -> None:
        """The back end has taken a request, and is at work on it: another may try."""
        self._trying = False

    def succeeded(self, now: float) -> None:
        self._trying, self._row, self.trips, self.why = False, 0, 0, None
        self._note(now, good=True)

    def failed(self, failure: Failed, now: float) -> None:
        """A failure. One that lies in what was asked for says nothing of the back end."""
        was_trying, self._trying = self._trying, False
        if failure.code in HEALTHY or (failure.kind not in FAULTS and failure.code not in ALWAYS_TRIPS):
            return
        self._note(now, good=False)
        self._row += 1
        asked = failure.retry_after if failure.kind in (FailureKind.QUOTA, FailureKind.UNAVAILABLE) else None
        throttled = asked is not None or failure.kind is FailureKind.QUOTA
        if throttled or was_trying or failure.code in ALWAYS_TRIPS or self._too_many():
            self._trip(now, asked, failure)

    def gave_up(self) -> None:
        """The request was dropped half-way, by us: nothing is known."""
        self._trying = False

    def _too_many(self) -> bool:
        bad = sum(not good for _, good in self._seen)
        often = len(self._seen) >= self.policy.least and bad > self.policy.rate * len(self._seen)
        return self._row >= self.policy.row or often

    def _trip(self, now: float, asked: float | None, failure: Failed) -> None:
        own = min(self.policy.cooldown * 2 ** min(self.trips, MOST_DOUBLED), self.policy.longest)
        least = own if asked is None or self.trips >= self.policy.believed else self.policy.shortest
        self._rest = max(least, asked or 0.0)
        self.open_until = max(self.open_until, now + self._rest)
        self.trips += 1
        self.why = failure
        self._row = 0
        self._seen.clear()

    def _note(self, now: float, good: bool) -> None:
        self._seen.append((now, good))
        while self._seen[0][0] < now - self.policy.window:
            self._seen.popleft()
