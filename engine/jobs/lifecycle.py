"""The rules of a job's life: which state follows which, and what an outcome makes of a job. Pure.

The same rules are applied twice: here, for jobs that run from memory while the database is away, and in SQL
(`persistence.jobs`), where the fence is checked in the same statement. Tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Callable
from random import random

from attrs import frozen

from engine.jobs import backoff
from engine.jobs.backoff import Backoff
from engine.jobs.job import Cancel, Complete, Discard, JobOutcome, JobState, Retry, Snooze

TERMINAL = frozenset({JobState.COMPLETED, JobState.CANCELLED, JobState.DISCARDED})
WAITING = frozenset({JobState.AVAILABLE, JobState.SCHEDULED, JobState.RETRYABLE})
UNFINISHED = WAITING | {JobState.SUSPENDED, JobState.EXECUTING}

MAX_RESCUES = 50
"""How often a job may lose its node and still be run again without counting the attempt."""
CALM_RESCUES = 3
"""How often it is run again at once. After that it waits first, ever longer: a job that takes its node down does so
beside ever fewer others, and those that only happened to be there come to their end meanwhile."""
LONGEST_CALM = 30.0
"""Seconds that it waits at most."""

NEXT: dict[JobState, frozenset[JobState]] = {
    JobState.SUSPENDED: frozenset({JobState.AVAILABLE, JobState.SCHEDULED, JobState.CANCELLED}),
    JobState.AVAILABLE: frozenset({JobState.EXECUTING, JobState.CANCELLED, JobState.SUSPENDED}),
    JobState.SCHEDULED: frozenset({JobState.AVAILABLE, JobState.CANCELLED, JobState.SUSPENDED}),
    JobState.RETRYABLE: frozenset({JobState.AVAILABLE, JobState.CANCELLED}),
    JobState.EXECUTING: TERMINAL | {JobState.AVAILABLE, JobState.SCHEDULED, JobState.RETRYABLE},
    JobState.COMPLETED: frozenset({JobState.AVAILABLE}),
    JobState.CANCELLED: frozenset({JobState.AVAILABLE}),
    JobState.DISCARDED: frozenset({JobState.AVAILABLE}),
}
"""Every step a job may take. Terminal jobs return to `available` only by hand."""


def allows(current: JobState, following: JobState) -> bool:
    """Whether a job may go from one state straight to the other."""
    return following in NEXT[current]


@frozen
class Settled:
    """What an outcome makes of an executing job. `scheduled_at` is Unix time; `error` goes on the job's list."""

    state: JobState
    attempt: int
    scheduled_at: float | None = None
    error: str | None = None


def settle(
    outcome: JobOutcome,
    attempt: int,
    max_attempts: int,
    now: float,
    policy: Backoff = backoff.DEFAULT,
    rand: Callable[[], float] = random,
) -> Settled:
    """The job's next state, once attempt number `attempt` ended with `outcome`."""
    match outcome:
        case Complete():
            return Settled(JobState.COMPLETED, attempt)
        case Discard(error):
            return Settled(JobState.DISCARDED, attempt, error=error)
        case Cancel(reason):
            return Settled(JobState.CANCELLED, attempt, error=reason)
        case Snooze(at, _):
            return Settled(JobState.SCHEDULED, max(attempt - 1, 0), scheduled_at=at)
        case Retry(error, _) if attempt >= max_attempts:
            return Settled(JobState.DISCARDED, attempt, error=error)
        case Retry(error, at):
            due = at if at is not None else backoff.retry_at(attempt, max_attempts, now, policy, rand)
            return Settled(JobState.RETRYABLE, attempt, scheduled_at=due, error=error)
