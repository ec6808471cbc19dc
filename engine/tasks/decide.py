"""What happens to a task when something happens to it: pure functions from a state to a journal entry.

Nothing here waits, sends or reads a clock. The TaskServer carries the entries out; `state.fold` says what their
events mean. May import the data of tasks, jobs and providers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from attrs import evolve, frozen

from engine.jobs.job import Cancel, Complete, Discard, Fence, Hold, JobChange, JobOutcome, NewJob, Retry, Snooze
from engine.ports import Entry, PredictionChange
from engine.providers import protocol as provider
from engine.providers.protocol import FailureKind
from engine.tasks import events as ev
from engine.tasks.events import Actor, EventBody, TaskEvent, Usage
from engine.tasks.messages import SetAside
from engine.tasks.state import Status, TaskState, fold

JOB_WORKER = "task"
"""The name under which the queue finds the handler that runs a task."""

UNAVAILABLE_PAUSE = 2.0
"""Seconds until a provider without capacity is asked again, when it does not say itself."""


@frozen
class Running:
    """An attempt at work: who pays for it and since when. `id` is its prediction's."""

    id: UUID
    fence: Fence
    provider: str
    started_at: float
    usage: Usage | None = None
    counted: Usage | None = None
    """What of it is on record already, from an earlier life of this attempt."""


@frozen
class Again:
    """Another attempt at `at` (Unix seconds); `counted` says whether the failed one counts against the limit."""

    at: float
    counted: bool = True


@frozen
class GiveUp:
    """No further attempt by itself."""


def verdict(
    failure: provider.Failed, attempt: int, max_attempts: int, now: float, retry_at: Callable[[int], float]
) -> Again | GiveUp:
    """Whether a failed attempt is made again, and when. `attempt` is the job's, from 1; `retry_at` is the back-off."""
    match failure.kind:
        case FailureKind.UNAVAILABLE:
            pause = UNAVAILABLE_PAUSE if failure.retry_after is None else failure.retry_after
            return Again(now + pause, counted=False)
        case FailureKind.RETRYABLE | FailureKind.QUOTA if attempt < max_attempts:
            after = failure.retry_after
            return Again(now + after if after is not None else retry_at(attempt))
        case _:
            return GiveUp()


# --- the entries ------------------------------------------------------------------------------------------


def create(
    task_id: UUID,
    birth: ev.Created,
    at: float,
    actor: Actor = Actor.USER,
    scheduled_at: float | None = None,
    home: str | None = None,
) -> Entry:
    """A task is accepted: its first event, its row and its job. `birth.job_id` is set; `home`: where it will live."""
    event = TaskEvent(task_id, 1, at, 0, actor, birth)
    task = fold(None, event)
    return Entry(task, (event,), new_job=_job(task, scheduled_at, home))


def begin(task: TaskState, at: float, run: Running, model: str, earlier: PredictionChange | None = None) -> Entry:
    """A worker starts the next attempt. An attempt that never ended is void first: clients may have seen some of it.

    One that takes up an `earlier` one goes on under its record."""
    bodies: list[EventBody] = [ev.Started(run.provider, model)]
    if task.status is Status.PROCESSING:
        bodies.insert(0, ev.Reset("interrupted"))
    status = earlier.status if earlier else "intent"
    prediction = _prediction(task, run, status, attempt=task.attempt + 1, input=task.input, started_at=at)
    return _entry(task, at, Actor.WORKER, bodies, _change(run, Hold()), (prediction,))


def accepted(task: TaskState, run: Running, event: provider.Accepted) -> Entry:
    """The provider took the work under an id of its own."""
    doubt = {"in_doubt": True, "duplicates": event.repeats} if event.repeats is not None else {}
    change = _prediction(task, run, event.status, external_id=event.external_id, **doubt)
    return Entry(task, predictions=(change,))


def output_stored(task: TaskState, at: float, run: Running, output: ev.Output) -> Entry:
    """An output is kept under its final name."""
    entry = _entry(task, at, Actor.WORKER, [ev.OutputStored(output)], _change(run, Hold()))
    return evolve(entry, outputs=(output,))


def finish(task: TaskState, at: float, run: Running, event: provider.Finished) -> Entry:
    """The attempt succeeded: the whole text, when there is one, and the end."""
    bodies: list[EventBody] = [ev.Responded(task.text, run.usage)] if task.text else []
    cached = event.raw_status == provider.CACHED
    bodies.append(ev.Completed(max(0.0, at - run.started_at), run.usage, cached))
    doubt = {"in_doubt": True} if event.in_doubt else {}
    prediction = _prediction(
        task, run, event.raw_status, completed_at=at, usage=run.usage, metrics=event.metrics, **doubt
    )
    return _entry(task, at, Actor.WORKER, bodies, _change(run, Complete()), (prediction,))


def fail(task: TaskState, at: float, run: Running, failure: provider.Failed, then: Again | GiveUp) -> Entry:
    """The attempt failed. What it had shown is void when another follows, and stays, in part, when none does.

    In doubt, the prediction stays open: the next attempt goes on with it, or somebody looks after it.
    """
    bodies: list[EventBody]
    outcome: JobOutcome
    if isinstance(then, GiveUp):
        retryable = failure.kind not in (FailureKind.PERMANENT, FailureKind.INVALID_INPUT)
        bodies = [ev.Failed(failure.code, failure.message, failure.action, retryable)]
        outcome = Discard(failure.code)  # not the message, which may repeat the input: operators see this
    else:
        bodies = [ev.AttemptFailed(failure.code, failure.message, failure.action, then.at, failure.in_doubt)]
        if task.text or task.outputs:
            bodies.append(ev.Reset(failure.code))
        outcome = Retry(failure.code, then.at) if then.counted else Snooze(then.at, failure.code)
    raw = failure.raw_status or ("unknown" if failure.in_doubt else "failed")
    words = f"{failure.code}: {failure.message}"
    end = {"in_doubt": True} if failure.in_doubt else {"completed_at": at}
    prediction = _prediction(task, run, raw, usage=run.usage, error_message=words, **end)
    return _entry(task, at, Actor.WORKER, bodies, _change(run, outcome), (prediction,))


def set_aside(task: TaskState, at: float, run: Running, then: SetAside, node: str) -> Entry:
    """The provider is done, and the result waits on `node` until it can be stored. The prediction stays open."""
    failure = then.failure
    bodies: list[EventBody] = [ev.AttemptFailed(failure.code, failure.message, failure.action, then.until, True)]
    if task.text or task.outputs:
        bodies.append(ev.Reset(failure.code))
    raw, metrics = then.finished.raw_status, then.finished.metrics
    prediction = _prediction(task, run, raw, usage=run.usage, metrics=metrics, held_by=node, held_since=at)
    return _entry(task, at, Actor.WORKER, bodies, _change(run, Snooze(then.until, failure.code)), (prediction,))


def cancel(task: TaskState, at: float, actor: Actor, reason: str, run: Running | None) -> Entry:
    """Somebody wants no more of it, at whatever stage."""
    job = JobChange(task.job_id, Cancel(reason)) if task.job_id else None
    predictions = (_prediction(task, run, "canceled", completed_at=at, usage=run.usage, in_doubt=True),) if run else ()
    return _entry(task, at, actor, [ev.Cancelled(reason)], job, predictions)


def abandon(task: TaskState, at: float, code: str, message: str, action: str) -> Entry:
    """Ends a task that cannot be run here, whatever its job holds."""
    job = JobChange(task.job_id, Discard(code)) if task.job_id else None
    return _entry(task, at, Actor.SYSTEM, [ev.Failed(code, message, action, retryable=True)], job)


def requeue(task: TaskState, at: float, actor: Actor, job_id: UUID, home: str | None = None) -> Entry:
    """A failed task gets a new job, and with it as many attempts as it had."""
    entry = _entry(task, at, actor, [ev.Requeued(job_id)])
    return Entry(entry.task, entry.events, new_job=_job(entry.task, None, home))


def _entry(
    task: TaskState,
    at: float,
    actor: Actor,
    bodies: list[EventBody],
    job: JobChange | None = None,
    predictions: tuple[PredictionChange, ...] = (),
) -> Entry:
    events = []
    for body in bodies:
        attempt = task.attempt + 1 if isinstance(body, ev.Started) else task.attempt
        event = TaskEvent(task.id, task.seq + 1, at, attempt, actor, body)
        task = fold(task, event)
        events.append(event)
    return Entry(task, tuple(events), job=job, predictions=predictions)


def _job(task: TaskState, scheduled_at: float | None, home: str | None) -> NewJob:
    assert task.job_id is not None
    return NewJob(
        id=task.job_id,
        worker=JOB_WORKER,
        queue=task.queue,
        task_id=task.id,
        user=task.user,
        priority=task.priority,
        max_attempts=task.max_attempts,
        scheduled_at=scheduled_at,
        trace_parent=task.trace_parent,
        home=home,
    )


def _change(run: Running, outcome: JobOutcome | Hold) -> JobChange:
    return JobChange(run.fence.job_id, outcome, run.fence)


def _prediction(
    task: TaskState, run: Running, status: str, attempt: int | None = None, **more: Any
) -> PredictionChange:
    number = task.attempt if attempt is None else attempt
    return PredictionChange(run.id, task.id, number, run.provider, status, **more)
