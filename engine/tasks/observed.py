"""A task's way as it is measured: its job's wait, the attempt, the call of the provider, and the news of its end.

The call has a span and the two metrics that OpenTelemetry's conventions ask of a client of generative AI. It covers
all that one attempt asks of its provider, fail-over and polling included. May import telemetry, tracing, the protocol,
and the rows of models and jobs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from attrs import define, evolve, frozen
from opentelemetry.trace import Span, SpanKind

from engine import telemetry, tracing
from engine.jobs.job import Job
from engine.ports import Model
from engine.providers.protocol import Failed, Finished, ProviderRequest, UsageReported
from engine.tasks.messages import TaskHappened
from engine.tracing import Spans

WELL_KNOWN = {"gemini": "gcp.gemini"}
"""Our names of providers that the conventions name otherwise."""
OPERATIONS = {"text": "chat", "embedding": "embeddings"}
OTHERWISE = "generate_content"
ABANDONED = "cancelled"
"""The `error.type` of a call that was stopped from our side."""


@contextmanager
def attempt(spans: Spans, job: Job, now: float) -> Iterator[None]:
    """The span of a job's attempt, behind that of its wait; `now` is Unix time. All that is done within is below it."""
    if not spans.on:
        yield
        return
    about: dict[str, str | int | float | bool] = {
        "elwift.task.id": str(job.task_id),
        "elwift.job.id": str(job.id),
        "elwift.queue": job.queue,
        "elwift.attempt": job.attempt,
    }
    began = spans.begin(f"wait {job.queue}", job.trace_parent, attributes=about, at=min(job.scheduled_at, now))
    tracing.end(began, at=now)
    with spans.span(f"attempt {job.queue}", job.trace_parent, SpanKind.CONSUMER, about):
        yield


def told(spans: Spans, news: TaskHappened, subscribers: int, now: float) -> None:
    """The span of a task's end on its way back: from its decision, over the journal, to those who wait for it."""
    task = news.task
    about = {"elwift.task.id": str(task.id), "elwift.status": task.status.value, "elwift.subscribers": subscribers}
    tracing.end(spans.begin("tell end", task.trace_parent, attributes=about, at=min(news.event.at, now)), at=now)


@frozen
class Subject:
    """What is asked of whom, in the conventions' words."""

    operation: str
    provider: str
    model: str

    @classmethod
    def of(cls, provider: str, request: ProviderRequest, model: Model | None) -> Subject:
        operation = OPERATIONS.get(model.category if model else "text", OTHERWISE)
        return cls(operation, WELL_KNOWN.get(provider, provider), request.model)


@define
class ProviderCall:
    """`request` is the request as the provider is to get it: with the call's own trace context, where there is one."""

    subject: Subject
    request: ProviderRequest
    _span: Span | None
    _began: float

    @classmethod
    def begin(cls, spans: Spans, provider: str, request: ProviderRequest, model: Model | None) -> ProviderCall:
        subject = Subject.of(provider, request, model)
        span = spans.begin(
            f"{subject.operation} {subject.model}",
            kind=SpanKind.CLIENT,
            attributes={
                "gen_ai.operation.name": subject.operation,
                "gen_ai.provider.name": subject.provider,
                "gen_ai.request.model": subject.model,
                "elwift.task.id": str(request.task_id),
                "elwift.attempt": request.attempt,
            },
        )
        if span is not None:
            request = evolve(request, trace_parent=tracing.traceparent(span))
        return cls(subject, request, span, time.perf_counter())

    def end(self, last: Finished | Failed | None, usage: UsageReported | None, ago: float) -> None:
        """The provider has said its last word, so many seconds ago; or (None) it was stopped before."""
        seconds = time.perf_counter() - self._began - ago
        error = ABANDONED if last is None else last.code if isinstance(last, Failed) else None
        names = (self.subject.operation, self.subject.provider, self.subject.model)
        telemetry.GEN_AI_DURATION.labels(*names, error or "").observe(seconds)
        for kind, tokens in _tokens(usage):
            telemetry.GEN_AI_TOKENS.labels(*names, kind).observe(tokens)
            if self._span is not None:
                self._span.set_attribute(f"gen_ai.usage.{kind}_tokens", tokens)
        tracing.end(self._span, error, time.time() - ago)


def _tokens(usage: UsageReported | None) -> list[tuple[str, int]]:
    if usage is None:
        return []
    counted = (("input", usage.usage.input_tokens), ("output", usage.usage.output_tokens))
    return [(kind, tokens) for kind, tokens in counted if tokens is not None]
