"""Who may come in, and the promise of how long they will wait."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.errors import UserError
from engine.jobs.admission import Estimate, Line, Pace, check, wait
from engine.jobs.config import QueueConfig, Rate
from engine.jobs.ports import Waiting


def line(*waiting: tuple[str, int], clock: Callable[[], float] = lambda: 0.0) -> Line:
    made = Line(clock)
    made.reset((Waiting(4, user, jobs, jobs) for user, jobs in waiting), taken_at=0.0)
    return made


def test_a_newcomer_stands_behind_one_job_of_each_other_user() -> None:
    assert line(("a", 1000), ("b", 1), ("c", 7)).ahead(4, "new") == 3


def test_a_user_stands_behind_their_own_jobs_and_as_many_of_others() -> None:
    assert line(("me", 5), ("b", 100), ("c", 2)).ahead(4, "me") == 5 + 6 + 2


def test_a_crowd_too_large_to_name_counts_by_its_mean() -> None:
    made = line(("a", 10))
    made.reset([Waiting(4, "a", 10, 10), Waiting(4, "", 600, 900, users=300)], taken_at=0.0)
    assert (made.total, made.ahead(4, "new"), made.ahead(4, "a")) == (610, 301, 610)


def test_more_urgent_jobs_all_go_first_and_less_urgent_ones_never() -> None:
    made = line(("a", 10))
    assert (made.ahead(9, "new"), made.ahead(0, "new")) == (10, 0)


def test_the_line_moves_as_jobs_join_and_leave() -> None:
    made = line(("a", 2))
    made.join(4, "a")
    made.join(4, "b")
    assert (made.total, made.ahead(4, "c")) == (4, 2)
    for _ in range(3):
        made.leave(4, "a")
    made.leave(4, "nobody")
    assert (made.total, made.ahead(4, "c")) == (1, 1)


def test_those_who_come_together_see_each_other_before_they_have_rows() -> None:
    made = line(("a", 3))
    for user in "bcd":
        made.admit(4, user)
    assert (made.total, made.ahead(4, "new"), made.unfinished["b"]) == (6, 4, 1)
    made.join(4, "b")
    made.start_at_once(4, "c")
    made.refuse(4, "d")
    assert (made.total, made.unfinished["b"], made.unfinished["c"], made.unfinished["d"]) == (4, 1, 1, 0)


def test_counts_that_were_asked_for_before_a_job_came_do_not_forget_it() -> None:
    now = 10.0
    made = line(clock=lambda: now)
    made.join(4, "a")
    now = 11.0
    made.join(4, "b")
    made.admit(4, "c")
    made.reset([Waiting(4, "a", 1, 1)], taken_at=10.5)
    assert (made.total, made.unfinished["b"], made.unfinished["c"]) == (3, 1, 1)
    made.reset([Waiting(4, "a", 1, 1), Waiting(4, "b", 1, 1)], taken_at=11.5)
    assert made.total == 3


def test_who_was_let_in_and_never_came_is_forgotten() -> None:
    now = 10.0
    made = line(clock=lambda: now)
    made.admit(4, "c")
    now = 25.0
    made.reset([], taken_at=25.0)
    assert (made.total, made.unfinished["c"]) == (0, 0)


def test_a_free_slot_means_no_wait() -> None:
    assert wait(before=1, free=2, slots=4, seconds=10.0, config=QueueConfig()) == 0.0


@pytest.mark.parametrize(("before", "expected"), [(0, 1.25), (1, 3.75), (10, 26.25)])
def test_with_all_slots_busy_one_is_free_each_share_of_a_jobs_time(before: int, expected: float) -> None:
    assert wait(before, free=0, slots=4, seconds=10.0, config=QueueConfig()) == expected


def test_a_rate_limit_that_is_slower_than_the_slots_decides() -> None:
    config = QueueConfig(rate=Rate(1, period=60.0))
    assert wait(before=10, free=0, slots=100, seconds=1.0, config=config) == 600.0


def test_the_pace_is_a_guess_until_the_first_job_has_ended() -> None:
    pace = Pace(5.0)
    assert pace.seconds() == 5.0
    pace.observe(1.0)
    assert pace.seconds() == 1.0
    for _ in range(1000):
        pace.observe(3.0)
    assert pace.seconds() == pytest.approx(3.0, abs=0.05)


def test_the_short_jobs_that_end_first_do_not_pass_for_all() -> None:
    """Ten slots: in the first second nine jobs of a tenth of a second have ended, one after the other in one slot, and
    nine jobs of ten seconds are still running. The mean of what ended is a tenth; the truth is five seconds."""
    pace = Pace(5.0, slots=10)
    for _ in range(9):
        pace.observe(0.1)
    assert pace.seconds(running=9, ages=9.0) > 0.8


def test_the_time_between_two_jobs_of_a_slot_counts() -> None:
    pace = Pace(5.0)
    for _ in range(300):
        pace.observe(0.1)
        pace.observe_gap(0.05)
    assert pace.seconds() == pytest.approx(0.15, abs=0.001)


def test_jobs_that_have_become_longer_are_noticed_before_they_end() -> None:
    pace = Pace(5.0, slots=2)
    for _ in range(100):
        pace.observe(0.1)
    assert pace.seconds(running=2, ages=0.2) == pytest.approx(0.1)
    assert pace.seconds(running=2, ages=60.0) == 30.0


def test_a_user_at_their_quota_is_refused_and_others_are_not() -> None:
    config, made = QueueConfig(user_quota=3), line(("many", 3))
    with pytest.raises(UserError) as refusal:
        check(config, made, "many", Estimate(3, 42.0))
    assert (refusal.value.code, refusal.value.retry_after) == ("over_quota", 42.0)
    check(config, made, "other", Estimate(1, 14.0))


def test_a_full_queue_refuses_everybody_and_says_when_to_come_back() -> None:
    with pytest.raises(UserError) as refusal:
        check(QueueConfig(max_waiting=5), line(("a", 5)), "b", Estimate(1, 0.2))
    assert (refusal.value.code, refusal.value.retry_after) == ("over_capacity", 1.0)


def test_a_wait_that_is_too_long_is_refused_until_it_is_not() -> None:
    with pytest.raises(UserError) as refusal:
        check(QueueConfig(max_wait=60.0), line(("a", 5)), "b", Estimate(1, 90.0))
    assert refusal.value.retry_after == 30.0
    check(QueueConfig(max_wait=60.0), line(("a", 5)), "b", Estimate(1, 59.0))


def test_no_advice_is_longer_than_five_minutes() -> None:
    with pytest.raises(UserError) as refusal:
        check(QueueConfig(max_wait=60.0), line(("a", 5)), "b", Estimate(1, 90_000.0))
    assert refusal.value.retry_after == 300.0
