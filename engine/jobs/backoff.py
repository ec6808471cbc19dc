"""How long a failed attempt waits before the next one. Pure; imports nothing of ours.

The default is Oban's formula: 15 + 2^n seconds, where n is the attempt that failed (scaled to 20 when a job may try
more often than that), plus up to a tenth of jitter, so that jobs that failed together do not come back together.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from attrs import evolve, field, frozen

_FULL_SCALE = 20
"""The attempt after which Oban's exponent grows no further."""


def _positive(_instance: object, attribute: object, value: float) -> None:
    if value < 0:
        raise ValueError(f"{attribute} must not be negative, got {value}")


@frozen
class Backoff:
    """`floor + base ** attempt` seconds, at most `ceiling`, plus up to `jitter` (a fraction) of it."""

    floor: float = field(default=15.0, validator=_positive)
    base: float = field(default=2.0, validator=_positive)
    ceiling: float = field(default=86_400.0, validator=_positive)
    jitter: float = field(default=0.1, validator=_positive)


DEFAULT = Backoff()
QUICK = Backoff(floor=0.0, base=2.0, ceiling=60.0)
"""For providers that recover in seconds: 2, 4, 8 … 60 s."""

_QUICK_PROVIDERS = frozenset({"simulate", "local", "openai", "openai-chat", "anthropic", "gemini", "cog"})


def policy(provider: str, settings: Mapping[str, Any]) -> Backoff:
    """How attempts at a model back off: as its settings say, else as is usual for its provider.

    `settings["backoff"]` may have any of `floor`, `base`, `ceiling`, `jitter`; what cannot be read is passed over.
    """
    usual = QUICK if provider in _QUICK_PROVIDERS else DEFAULT
    given = settings.get("backoff")
    if not isinstance(given, Mapping):
        return usual
    try:
        return evolve(usual, **{name: float(value) for name, value in given.items()})
    except (TypeError, ValueError):
        return usual


def exponent(attempt: int, max_attempts: int) -> int:
    """The n of 2^n: the attempt itself, or its share of 20 when there are more than 20 attempts."""
    if max_attempts <= _FULL_SCALE:
        return attempt
    return round(attempt / max_attempts * _FULL_SCALE)


def delay(
    attempt: int,
    max_attempts: int,
    policy: Backoff = DEFAULT,
    rand: Callable[[], float] = random.random,
) -> float:
    """Seconds to wait after failed attempt number `attempt` (from 1)."""
    try:
        grown = policy.base ** exponent(max(attempt, 0), max_attempts)
    except OverflowError:
        grown = policy.ceiling
    bare = min(policy.floor + grown, policy.ceiling)
    return bare + rand() * policy.jitter * bare


def retry_at(
    attempt: int,
    max_attempts: int,
    now: float,
    policy: Backoff = DEFAULT,
    rand: Callable[[], float] = random.random,
) -> float:
    """The Unix time at which a job whose attempt `attempt` failed at `now` may run again."""
    return now + delay(attempt, max_attempts, policy, rand)
