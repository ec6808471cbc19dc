"""A circuit breaker: who fails too often is left alone for a while, then tried with one request.

One for each (provider, credential, model): a credential that is over its quota must not keep a healthy one from work.
Pure but for its state.
"""

from __future__ import annotations

import math
from collections import deque

from attrs import define, field, frozen

from engine.providers.protocol import Failed, FailureKind

NOT_ITS_FAULT = frozenset({FailureKind.INVALID_INPUT, FailureKind.CANCELLED})
ALWAYS_TRIPS = frozenset({"provider_auth", "provider_quota", "unknown_model", "model_not_found"})


@frozen
class BreakerPolicy:
    """It opens after `row` failures in a row, or when more than `rate` of at least `least` requests in the last
    `window` seconds failed; for `cooldown` seconds at first, twice as long each time, up to `longest`."""

    row: int = 5
    rate: float = 0.5
    least: int = 5
    window: float = 60.0
    cooldown: float = 5.0
    longest: float = 300.0


@define
class Breaker:
    """Times are in seconds of one monotonic clock."""

    policy: BreakerPolicy = field(factory=BreakerPolicy)
    open_until: float = -math.inf
    trips: int = 0
    _trying: bool = False
    _row: int = 0
    _seen: deque[tuple[float, bool]] = field(factory=deque)

    def wait(self, now: float) -> float:
        """Seconds until a request may go; 0.0: now. After a cool-down one request at a time tries."""
        if now < self.open_until:
            return self.open_until - now
        return self.policy.cooldown if self._trying else 0.0

    def begin(self, now: float) -> None:
        """A request goes."""
        self._trying = self.trips > 0

    def succeeded(self, now: float) -> None:
        self._trying, self._row, self.trips = False, 0, 0
        self._note(now, good=True)

    def failed(self, failure: Failed, now: float) -> None:
        """A failure of the back end; one that lies in the input, or a cancellation, says nothing of it."""
        was_trying, self._trying = self._trying, False
        if failure.kind in NOT_ITS_FAULT:
            return
        self._note(now, good=False)
        self._row += 1
        asked = failure.retry_after if failure.kind in (FailureKind.QUOTA, FailureKind.UNAVAILABLE) else None
        if asked is not None or was_trying or failure.code in ALWAYS_TRIPS or self._too_many():
            self._trip(now, asked)

    def gave_up(self) -> None:
        """The request was dropped half-way, by us: nothing is known."""
        self._trying = False

    def _too_many(self) -> bool:
        bad = sum(not good for _, good in self._seen)
        often = len(self._seen) >= self.policy.least and bad > self.policy.rate * len(self._seen)
        return self._row >= self.policy.row or often

    def _trip(self, now: float, asked: float | None) -> None:
        own = min(self.policy.cooldown * 2**self.trips, self.policy.longest)
        self.open_until = now + max(own if asked is None else asked, 0.0)
        self.trips += 1
        self._row = 0
        self._seen.clear()

    def _note(self, now: float, good: bool) -> None:
        self._seen.append((now, good))
        while self._seen[0][0] < now - self.policy.window:
            self._seen.popleft()
