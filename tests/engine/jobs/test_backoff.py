"""How long a failed attempt waits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.jobs.backoff import DEFAULT, QUICK, Backoff, delay, policy, retry_at


@pytest.mark.parametrize(("attempt", "least", "most"), [(1, 17, 18.7), (5, 47, 51.7), (10, 1039, 1142.9)])
def test_default_is_fifteen_plus_two_to_the_attempt_plus_a_tenth(attempt: int, least: float, most: float) -> None:
    assert delay(attempt, 20, rand=lambda: 0.0) == least
    assert delay(attempt, 20, rand=lambda: 1.0) == pytest.approx(most)


def test_a_job_with_more_than_twenty_attempts_scales_its_exponent_to_twenty() -> None:
    assert delay(50, 100, rand=lambda: 0.0) == 15 + 2**10
    assert delay(100, 100, Backoff(ceiling=1e9), rand=lambda: 0.0) == 15 + 2**20


def test_a_quick_policy_has_no_floor_and_stops_at_its_ceiling() -> None:
    assert [delay(n, 20, QUICK, rand=lambda: 0.0) for n in (1, 2, 3, 10)] == [2, 4, 8, 60]


def test_retry_at_is_now_plus_the_delay() -> None:
    assert retry_at(1, 20, now=1000.0, rand=lambda: 0.0) == 1017.0


def test_a_negative_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        Backoff(floor=-1.0)


@given(attempt=st.integers(0, 10_000), most=st.integers(1, 10_000), luck=st.floats(0, 1))
def test_every_delay_is_finite_and_within_the_ceiling_and_its_jitter(attempt: int, most: int, luck: float) -> None:
    assert 0 < delay(attempt, most, rand=lambda: luck) <= DEFAULT.ceiling * 1.1


@pytest.mark.parametrize(
    ("provider", "settings", "expected"),
    [
        ("replicate", {}, DEFAULT),
        ("local", {}, QUICK),
        ("local", {"backoff": {"ceiling": 5}}, Backoff(floor=0.0, base=2.0, ceiling=5.0)),
        ("replicate", {"backoff": {"floor": 1, "base": 3, "jitter": 0}}, Backoff(floor=1.0, base=3.0, jitter=0.0)),
        ("replicate", {"backoff": {"floor": -1}}, DEFAULT),
        ("replicate", {"backoff": {"speed": 1}}, DEFAULT),
        ("replicate", {"backoff": "slow"}, DEFAULT),
    ],
)
def test_a_models_settings_say_how_its_attempts_back_off(
    provider: str, settings: dict[str, object], expected: Backoff
) -> None:
    assert policy(provider, settings) == expected
