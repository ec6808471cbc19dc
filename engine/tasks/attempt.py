"""The rules of an attempt's steps: who may make them, what of a text is new, how an attempt's end is counted. Pure,
but for the counting."""

from __future__ import annotations

from attrs import evolve

from engine import telemetry
from engine.ports import Entry
from engine.providers import protocol as provider
from engine.providers.protocol import FailureKind
from engine.tasks import events as ev
from engine.tasks.decide import Running
from engine.tasks.messages import BeginAttempt, Refusal, TaskProgress, TaskText
from engine.tasks.stash import Live
from engine.tasks.state import TaskState, with_progress, with_text

WORKER_CRASHED = provider.Failed(
    FailureKind.RETRYABLE, "worker_crashed", "The worker that ran the task crashed.", "It is tried again by itself.",
    in_doubt=True,
)  # fmt: skip
WORKER_TIMEOUT = provider.Failed(
    FailureKind.RETRYABLE, "attempt_timeout", "The attempt took longer than it may.", "It is tried again by itself.",
    in_doubt=True,
)  # fmt: skip


def may_begin(live: Live, request: BeginAttempt) -> Refusal | None:
    """Why a worker may not start an attempt, if so. A newer claim takes over from an older one, never the reverse."""
    if live.task.status.terminal:
        return Refusal("terminal", f"The task is {live.task.status} already.")
    if request.fence.job_id != live.task.job_id:
        return Refusal("stale_job", "The task has another job by now.")
    if live.worker is not None and live.worker.run.fence.attempt > request.fence.attempt:
        return Refusal("stale_fence", "A newer attempt is running.")
    return None


def may_step(live: Live, attempt: int) -> Refusal | None:
    """Why a step is refused, if so: its attempt is over."""
    if live.task.status.terminal:
        return Refusal("terminal", f"The task is {live.task.status} already.")
    if live.worker is None or attempt != live.task.attempt:
        return Refusal("stale_attempt", f"Attempt {attempt} is over.")
    return None


def text_step(task: TaskState, offset: int, text: str, now: float) -> tuple[TaskState, TaskText] | None:
    """What is new of `text`, which starts at code point `offset`, at or before the end of what there is."""
    have = len(task.text)
    new = text[have - offset :]
    return (with_text(task, new), TaskText(task.id, task.attempt, have, new, now)) if new else None


def progress_step(task: TaskState, event: provider.Progress, now: float) -> tuple[TaskState, TaskProgress]:
    task = with_progress(task, event.fraction, event.step, event.message, event.eta_seconds)
    news = TaskProgress(
        task.id, task.attempt, task.progress, task.status, task.step, task.message, task.eta_seconds, now
    )
    return task, news


def with_usage(live: Live, usage: ev.Usage) -> Live:
    """Keeps what the attempt used until its end is written."""
    assert live.worker is not None
    return evolve(live, worker=evolve(live.worker, run=evolve(live.worker.run, usage=usage)))


def count_end(entry: Entry, run: Running | None) -> None:
    """Counts what ended with `entry`: the attempt, if one ran, and the task, if this was its last."""
    if run is not None:
        _count_attempt(entry, run)
    task, last = entry.task, entry.events[-1]
    if task.status.terminal:
        telemetry.TASKS_FINISHED.labels(task.model, task.status).inc()
        telemetry.TASK_DURATION.labels(task.model, task.status).observe(max(0.0, last.at - task.created_at))


def _count_attempt(entry: Entry, run: Running) -> None:
    telemetry.PROVIDER_REQUESTS.labels(run.provider, _outcome(entry)).inc()
    telemetry.PROVIDER_DURATION.labels(run.provider).observe(max(0.0, entry.events[-1].at - run.started_at))
    for direction, tokens in (
        ("input", run.usage and run.usage.input_tokens),
        ("output", run.usage and run.usage.output_tokens),
    ):
        if tokens:
            telemetry.TOKENS.labels(run.provider, direction).inc(tokens)


def _outcome(entry: Entry) -> str:
    for event in entry.events:
        match event.body:
            case ev.Completed():
                return "completed"
            case ev.Cancelled():
                return "cancelled"
            case ev.Failed(code=code) | ev.AttemptFailed(code=code):
                return code
    return "unknown"
