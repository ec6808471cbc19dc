"""What a model's row says about its traffic: its settings, read once and forgivingly. Pure.

A setting that is no sensible figure counts as not set: a slip in a row must not stop the tasks of its model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from attrs import frozen


@frozen
class Rules:
    """`requests` and `tokens` a minute, `most` at once; seconds for which an answer is kept, and for which it may stand
    in when nothing else works (`stale`); `context`: tokens that the model can read; `policy_moves_on`: whether content
    that its provider declines is offered to the fallbacks."""

    requests: float | None = None
    tokens: float | None = None
    most: int | None = None
    cache: float | None = None
    stale: float | None = None
    context: float | None = None
    policy_moves_on: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Rules:
        """From the `settings` of a model's row."""
        most = _positive(settings.get("max_concurrency"))
        return cls(
            requests=_positive(settings.get("requests_per_minute")),
            tokens=_positive(settings.get("tokens_per_minute")),
            most=None if most is None else max(1, int(most)),
            cache=_positive(settings.get("cache_seconds")),
            stale=_positive(settings.get("stale_seconds")),
            context=_positive(settings.get("context_tokens")),
            policy_moves_on=settings.get("content_policy_fallback") is True,
        )

    @property
    def keeps(self) -> bool:
        """Whether answers are kept."""
        return self.cache is not None or self.stale is not None


def _positive(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) and value > 0 else None
