"""The worker: a process that runs jobs of one lane, one after another, each in the slot it was given.

It ends when the lane has nothing to start. A handler that raises ends its worker, as does an order to stop: the
dispatcher, which monitors workers, then settles the job (`after_death`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping

import trio

from engine.jobs import metrics
from engine.jobs.backoff import Backoff
from engine.jobs.job import Complete, Discard, Job, JobOutcome, Recorded, Retry, Snooze
from engine.jobs.lane import Lane, Running
from engine.jobs.lifecycle import settle
from engine.otp import SHUTDOWN, Exit, Reason, Shutdown, init_ack, self_

log = logging.getLogger(__name__)

JobHandler = Callable[[Job], Awaitable[JobOutcome | Recorded]]

_LONGEST_ERROR = 2000

GIVEN_BACK = frozenset({"draining", "refused", "cancelled", "lease_lost"})
"""Orders to stop after which the worker's side has nothing to write."""


async def work(lane: Lane, handlers: Mapping[str, JobHandler]) -> None:
    """The body of a worker process."""
    init_ack()
    me = self_()
    while (held := lane.take(me)) is not None:
        await _run(lane, handlers, held)
        await trio.lowlevel.checkpoint()


async def _run(lane: Lane, handlers: Mapping[str, JobHandler], held: Running) -> None:
    job = held.job
    metrics.queue_wait(job.queue).observe(max(0.0, time.time() - job.scheduled_at))
    try:
        outcome = await _attempt(job, handlers.get(job.worker), lane.config.timeout)
        if not isinstance(outcome, JobOutcome | Recorded):
            raise TypeError(f"the handler answered {outcome!r}, which is no outcome")
    except Exception as error:
        held.failure = f"{type(error).__name__}: {error}"
        raise
    seconds = lane.leave(held, journaled=isinstance(outcome, Recorded))
    metrics.duration(job.queue, job.worker).observe(seconds)
    if isinstance(outcome, Recorded):
        metrics.finished(job.queue, job.worker, "recorded").inc()
    else:
        finish(lane, held, outcome)


async def _attempt(job: Job, handler: JobHandler | None, timeout: float | None) -> JobOutcome | Recorded:
    if handler is None:
        return Discard(f"no handler is called {job.worker!r}")
    if timeout is None:
        return await handler(job)
    with trio.move_on_after(timeout) as scope:
        return await handler(job)
    assert scope.cancelled_caught
    if job.task_id is not None:
        raise Exit(Shutdown("timeout"))
    return Retry(f"timed out after {timeout:g} s")


def finish(lane: Lane, held: Running, outcome: JobOutcome) -> None:
    """Writes the outcome of a job without a task, by the rules: the last attempt's failure is final."""
    job = held.job
    metrics.finished(job.queue, job.worker, _word(job, outcome)).inc()
    lane.conclude(held, resolve(job, outcome, lane.config.backoff))


def resolve(job: Job, outcome: JobOutcome, backoff: Backoff) -> JobOutcome:
    """The outcome with its time filled in, and a Retry without attempts left made a Discard."""
    if not isinstance(outcome, Retry):
        return outcome
    settled = settle(outcome, job.attempt, job.max_attempts, time.time(), backoff)
    if settled.scheduled_at is None:
        return Discard(outcome.error)
    return Retry(outcome.error, settled.scheduled_at)


def _word(job: Job, outcome: JobOutcome) -> str:
    if isinstance(outcome, Complete):
        return "completed"
    return str(settle(outcome, job.attempt, job.max_attempts, time.time()).state)


def after_death(lane: Lane, held: Running, reason: Reason) -> None:
    """Settles what a worker held when it died. A task's outcome is its TaskServer's affair."""
    job = held.job
    stopped = isinstance(reason, Shutdown) and reason.detail in GIVEN_BACK
    lane.leave(held, journaled=job.task_id is not None and not stopped)
    if stopped:
        log.info("job %s of queue %s was stopped: %s", job.id, job.queue, reason)
    elif job.task_id is not None:
        return
    elif reason is SHUTDOWN:
        finish(lane, held, Snooze(time.time(), "the queue was restarted"))
    else:
        failure = held.failure or f"the worker ended: {reason!r}"
        finish(lane, held, Retry(failure[:_LONGEST_ERROR]))
