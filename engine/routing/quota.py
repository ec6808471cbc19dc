"""How much a provider lets us ask: requests and tokens a minute, and how many at once. Pure but for its state.

Tokens are reserved by an estimate before the call and settled by what the provider reports, so that a minute's quota is
neither overrun by long answers nor wasted by short ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import define, field

from engine.routing.rules import Rules

MINUTE = 60.0
CHARACTERS_A_TOKEN = 4
"""A rough measure that holds for English; the settlement corrects it."""
UNSTATED_ANSWER = 512
TYPICAL_SECONDS = 5.0
"""How long a request takes, before one has ended."""
LATEST_COUNTS = 0.2
"""The weight of the latest request in the mean of their lengths."""


@define
class Bucket:
    """Fills with `per_minute` units a minute, up to a minute's worth. It may be overdrawn by a settlement."""

    per_minute: float
    level: float = field(init=False)
    _at: float | None = None

    def __attrs_post_init__(self) -> None:
        self.level = self.per_minute

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` can be taken; more than a minute's worth needs a full bucket."""
        self._fill(now)
        missing = min(amount, self.per_minute) - self.level
        return max(0.0, missing * MINUTE / self.per_minute)

    def take(self, amount: float, now: float) -> None:
        """Takes; a negative amount is given back, and never makes more than a minute's worth."""
        self._fill(now)
        self.level = min(self.per_minute, self.level - amount)

    def takes(self, amount: float) -> float:
        """Seconds in which it fills by `amount`."""
        return min(amount, self.per_minute) * MINUTE / self.per_minute

    def _fill(self, now: float) -> None:
        if self._at is not None:
            self.level = min(self.per_minute, self.level + (now - self._at) * self.per_minute / MINUTE)
        self._at = now


@define
class Quota:
    """The limits of one (provider, credential, model); those that are not set do not bind. `mean`: how long a request
    takes, in seconds."""

    requests: Bucket | None = None
    tokens: Bucket | None = None
    most: int | None = None
    running: int = 0
    mean: float = TYPICAL_SECONDS

    @classmethod
    def of(cls, rules: Rules) -> Quota:
        return cls(
            Bucket(rules.requests) if rules.requests else None,
            Bucket(rules.tokens) if rules.tokens else None,
            rules.most,
        )

    def wait(self, tokens: int, now: float) -> float:
        """Seconds until a request of about `tokens` tokens may go; 0.0: now."""
        waits = [bucket.wait(amount, now) for bucket, amount in ((self.requests, 1), (self.tokens, tokens)) if bucket]
        if self.most is not None and self.running >= self.most:
            waits.append(self.mean / self.most)
        return max(waits, default=0.0)

    def spacing(self, tokens: int) -> float:
        """Seconds between two requests of this size that follow each other as closely as the limits allow."""
        spaces = [bucket.takes(amount) for bucket, amount in ((self.requests, 1), (self.tokens, tokens)) if bucket]
        if self.most is not None:
            spaces.append(self.mean / self.most)
        return max(spaces, default=0.0)

    def begin(self, tokens: int, now: float) -> None:
        self.running += 1
        if self.requests:
            self.requests.take(1, now)
        if self.tokens:
            self.tokens.take(tokens, now)

    def end(self, reserved: int, used: int | None, now: float, seconds: float | None = None) -> None:
        """`used` None: the provider did not say; the reservation stands. `seconds`: how long a good request took."""
        self.running -= 1
        if self.tokens and used is not None:
            self.tokens.take(used - reserved, now)
        if seconds is not None:
            self.mean += LATEST_COUNTS * (seconds - self.mean)


def estimate(given: Mapping[str, Any]) -> int:
    """Tokens that a request may take: what is said in it, and the longest answer that it allows."""
    said = sum(len(part) for part in _strings(given))
    limit = given.get("max_tokens")
    known = isinstance(limit, int) and not isinstance(limit, bool)
    return said // CHARACTERS_A_TOKEN + (limit if known and limit is not None else UNSTATED_ANSWER)


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [text for item in inner for text in _strings(item)]
