"""How much a provider lets us ask: requests and tokens a minute, and how many at once. Pure but for its state.

Tokens are reserved by an estimate before the call and settled by what the provider reports, so that a minute's quota is
neither overrun by long answers nor wasted by short ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import define, field

MINUTE = 60.0
CHARACTERS_A_TOKEN = 4
"""A rough measure that holds for English; the settlement corrects it."""
UNSTATED_ANSWER = 512


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
        self._fill(now)
        self.level -= amount

    def _fill(self, now: float) -> None:
        if self._at is not None:
            self.level = min(self.per_minute, self.level + (now - self._at) * self.per_minute / MINUTE)
        self._at = now


@define
class Quota:
    """The limits of one (provider, credential, model); those that are not set do not bind."""

    requests: Bucket | None = None
    tokens: Bucket | None = None
    most: int | None = None
    running: int = 0

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Quota:
        """From a model's settings: `requests_per_minute`, `tokens_per_minute`, `max_concurrency`."""
        requests, tokens = settings.get("requests_per_minute"), settings.get("tokens_per_minute")
        return cls(
            Bucket(float(requests)) if requests else None,
            Bucket(float(tokens)) if tokens else None,
            settings.get("max_concurrency"),
        )

    def wait(self, tokens: int, now: float) -> float:
        """Seconds until a request of about `tokens` tokens may go; 0.0: now."""
        waits = [bucket.wait(amount, now) for bucket, amount in ((self.requests, 1), (self.tokens, tokens)) if bucket]
        if self.most is not None and self.running >= self.most:
            waits.append(1.0)
        return max(waits, default=0.0)

    def begin(self, tokens: int, now: float) -> None:
        self.running += 1
        if self.requests:
            self.requests.take(1, now)
        if self.tokens:
            self.tokens.take(tokens, now)

    def end(self, reserved: int, used: int | None, now: float) -> None:
        """`used` None: the provider did not say; the reservation stands."""
        self.running -= 1
        if self.tokens and used is not None:
            self.tokens.take(used - reserved, now)


def estimate(given: Mapping[str, Any]) -> int:
    """Tokens that a request may take: what is said in it, and the longest answer that it allows."""
    said = sum(len(part) for part in _strings(given))
    limit = given.get("max_tokens")
    return said // CHARACTERS_A_TOKEN + (limit if isinstance(limit, int) else UNSTATED_ANSWER)


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [text for item in inner for text in _strings(item)]
