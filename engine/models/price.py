"""What was used, in money: the price of each unit times how much of it. Pure.

Units that are always known: `input_token`, `output_token`, `second` (of run time). Any other name is one that the
provider itself counts (`image_output_count`, `video_output_duration_seconds`), or `run`, a prediction that succeeded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from attrs import evolve

from engine.tasks.events import Usage

N = TypeVar("N", int, float)


def priced(usage: Usage, price: Mapping[str, float], counts: Mapping[str, float] | None = None) -> Usage:
    """The usage with its cost in US dollars; as it is when it has one already, or when nothing in it has a price."""
    if usage.cost is not None:
        return usage
    amounts: dict[str, float | None] = {
        **(counts or {}),
        "input_token": usage.input_tokens,
        "output_token": usage.output_tokens,
        "second": usage.predict_seconds,
    }
    known = [each * amount for unit, each in price.items() if (amount := amounts.get(unit)) is not None]
    return evolve(usage, cost=sum(known)) if known else usage


def together(usages: list[Usage]) -> Usage:
    """The sum, of what is known."""
    return Usage(
        input_tokens=_sum([each.input_tokens for each in usages]),
        output_tokens=_sum([each.output_tokens for each in usages]),
        predict_seconds=_sum([each.predict_seconds for each in usages]),
        cost=_sum([each.cost for each in usages]),
    )


def _sum(figures: Iterable[N | None]) -> N | None:
    known = [figure for figure in figures if figure is not None]
    return sum(known[1:], known[0]) if known else None
