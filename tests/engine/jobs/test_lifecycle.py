"""Which state follows which."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.jobs.job import Cancel, Complete, Discard, JobOutcome, JobState, Retry, Snooze
from engine.jobs.lifecycle import NEXT, TERMINAL, UNFINISHED, allows, settle

outcomes = st.one_of(
    st.just(Complete()),
    st.builds(Retry, st.text(), st.none() | st.floats(0, 1e9)),
    st.builds(Snooze, st.floats(0, 1e9)),
    st.builds(Discard, st.text()),
    st.builds(Cancel),
)


def test_every_state_is_either_terminal_or_unfinished() -> None:
    assert set(JobState) == TERMINAL | UNFINISHED
    assert not TERMINAL & UNFINISHED


def test_a_terminal_job_returns_only_to_the_line() -> None:
    assert all(NEXT[state] == {JobState.AVAILABLE} for state in TERMINAL)


@given(outcome=outcomes, attempt=st.integers(1, 20), most=st.integers(1, 20))
def test_every_outcome_leads_where_the_table_allows(outcome: JobOutcome, attempt: int, most: int) -> None:
    settled = settle(outcome, attempt, most, now=1000.0)
    assert allows(JobState.EXECUTING, settled.state)
    assert settled.attempt in (attempt, attempt - 1)


def test_a_failed_attempt_waits_for_its_backoff_and_keeps_its_error() -> None:
    settled = settle(Retry("boom"), 1, 3, now=1000.0, rand=lambda: 0.0)
    assert (settled.state, settled.scheduled_at, settled.error) == (JobState.RETRYABLE, 1017.0, "boom")


def test_a_retry_may_name_its_own_time() -> None:
    assert settle(Retry("boom", at=1234.0), 1, 3, now=1000.0).scheduled_at == 1234.0


def test_the_last_attempt_that_fails_makes_a_dead_letter() -> None:
    assert settle(Retry("boom"), 3, 3, now=1000.0).state is JobState.DISCARDED


def test_a_snooze_does_not_count_the_attempt() -> None:
    settled = settle(Snooze(at=2000.0), 3, 3, now=1000.0)
    assert (settled.state, settled.attempt, settled.scheduled_at) == (JobState.SCHEDULED, 2, 2000.0)


@pytest.mark.parametrize(
    ("outcome", "state"),
    [(Complete(), JobState.COMPLETED), (Discard("no"), JobState.DISCARDED), (Cancel(), JobState.CANCELLED)],
)
def test_the_other_outcomes_are_final(outcome: JobOutcome, state: JobState) -> None:
    assert settle(outcome, 1, 3, now=0.0).state is state
