"""What streams of tokens have in common, beyond what the providers' own tests show."""

from __future__ import annotations

import pytest

from engine.providers.llm import new_percent


@pytest.mark.parametrize(("limit", "told"), [(10, 10), (100, 100), (1024, 101), (100_000, 101)])
def test_progress_is_told_at_the_first_token_and_at_every_percent(limit: int, told: int) -> None:
    steps = [done for done in range(1, limit + 1) if new_percent(done - 1, done, limit)]
    assert len(steps) == told
    assert (steps[0], steps[-1]) == (1, limit)


def test_beyond_the_limit_it_goes_on_as_before() -> None:
    assert sum(new_percent(done - 1, done, 1000) for done in range(1001, 2001)) == 100
