"""Lines of cron: what they mean, what is refused, and that last and following enclose every moment."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.jobs.cron import Every, parse


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("line", "now", "last", "following"),
    [
        ("*/15 * * * *", "2026-11-22T08:41:30", "2026-11-22T08:30", "2026-11-22T08:45"),
        ("0 3 * * *", "2026-11-22T03:00", "2026-11-22T03:00", "2026-11-23T03:00"),
        ("30 4 1,15 * *", "2026-11-22T08:00", "2026-11-15T04:30", "2026-12-01T04:30"),
        ("0 22 * * mon-fri", "2026-11-22T08:00", "2026-11-20T22:00", "2026-11-23T22:00"),  # a Sunday
        ("0 0 13 * 5", "2026-11-14T00:00", "2026-11-13T00:00", "2026-11-20T00:00"),  # the 13th, or a Friday
        ("0 0 29 feb *", "2026-11-22T08:00", "2024-02-29T00:00", "2028-02-29T00:00"),
        ("5-50/20 8-9 * * 7", "2026-11-22T08:30", "2026-11-22T08:25", "2026-11-22T08:45"),
        ("@weekly", "2026-11-25T12:00", "2026-11-22T00:00", "2026-11-29T00:00"),
        ("@monthly", "2026-12-31T23:59", "2026-12-01T00:00", "2027-01-01T00:00"),
    ],
)
def test_a_line_means_what_it_means_to_cron(line: str, now: str, last: str, following: str) -> None:
    schedule = parse(line)
    assert schedule.last(at(now)) == at(last)
    assert schedule.following(at(now)) == at(following)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("* * * *", "five fields"),
        ("60 * * * *", "0-59"),
        ("*/0 * * * *", "0-59"),
        ("5-2 * * * *", "0-59"),
        ("* * * foo *", "foo"),
        ("0 0 31 2,4 *", "never"),
        ("@often", "@daily"),
    ],
)
def test_a_line_that_cannot_be_is_refused_in_words(line: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        parse(line)


LINES = ("* * * * *", "7 */5 * * *", "0 0 1 * 1", "59 23 31 12 *", "0 12 29 2 *", "@hourly")


@given(st.sampled_from(LINES), st.integers(0, 4_000_000_000))
def test_no_time_lies_between_last_and_following(line: str, now: int) -> None:
    schedule = parse(line)
    last, following = schedule.last(now), schedule.following(now)
    assert last <= now < following
    assert schedule.following(last) == following
    assert schedule.last(following) == following


def test_every_so_many_seconds_is_aligned_for_all_servers() -> None:
    assert (Every(60.0).last(119.0), Every(60.0).following(119.0), Every(60.0).last(120.0)) == (60.0, 120.0, 120.0)
