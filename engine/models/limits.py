"""What may stand in a model's price and settings: what is read elsewhere must be of the kind that is expected there."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from engine.errors import Problem, UserError

POSITIVE = ("requests_per_minute", "tokens_per_minute", "max_concurrency", "context_tokens")
"""Numbers above nought."""
SECONDS = ("cache_seconds", "stale_seconds")
"""Numbers, nought included."""
FLAGS = ("content_policy_fallback",)
BACKOFF = ("floor", "base", "ceiling", "jitter")
MOST_UNITS = 50


def check_settings(settings: Mapping[str, Any], queues: Collection[str] = ()) -> None:
    """Raises UserError (`invalid_request`) with each setting that could not be read later. `queues`: those there are;
    none: any name may be written."""
    wrong = [
        *(_wrong(name, "must be a number above 0") for name in POSITIVE if not _number(settings.get(name, 1), 0, True)),
        *(_wrong(name, "must be a number of seconds") for name in SECONDS if not _number(settings.get(name, 0), 0)),
        *(_wrong(name, "must be true or false") for name in FLAGS if not isinstance(settings.get(name, True), bool)),
    ]
    queue = settings.get("queue")
    if queue is not None and (not isinstance(queue, str) or (queues and queue not in queues)):
        wrong.append(_wrong("queue", f"must be one of {', '.join(sorted(queues))}"))
    backoff = settings.get("backoff", {})
    if not isinstance(backoff, Mapping) or not all(
        name in BACKOFF and _number(value, 0) for name, value in backoff.items()
    ):
        wrong.append(_wrong("backoff", f"must be an object with some of {', '.join(BACKOFF)}, in seconds"))
    _refuse(wrong)


def check_price(price: Mapping[str, Any]) -> None:
    """Raises UserError (`invalid_request`) unless every unit has a sensible price."""
    wrong = [
        Problem("must be US dollars, 0 or more", f"/price/{unit}")
        for unit, each in price.items()
        if not _number(each, 0)
    ]
    if len(price) > MOST_UNITS:
        wrong.append(Problem(f"has more than {MOST_UNITS} units", "/price"))
    _refuse(wrong)


def _number(value: Any, least: float, above: bool = False) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return False
    return value > least if above else value >= least


def _wrong(name: str, words: str) -> Problem:
    return Problem(words, f"/settings/{name}")


def _refuse(wrong: list[Problem]) -> None:
    if wrong:
        raise UserError("invalid_request", f"{wrong[0].where} {wrong[0].message}.", details=tuple(wrong))
