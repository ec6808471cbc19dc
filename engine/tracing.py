"""Spans: where a request's time went, from the client to the provider and back, for whoever collects them.

Off unless a tracer is given (`web.telemetry.otlp` makes one): then every `span` is one shared context manager that does
nothing. A span that is entered is the parent of those made within, in the same trio task and its children; across
processes of `engine.otp`, the database and the network the parent travels as a W3C `traceparent`. Names and attributes
follow OpenTelemetry's semantic conventions. No prompt, no output and no user is ever in a span.

May import OpenTelemetry's API, which does nothing by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import trio
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Attributes = Mapping[str, str | int | float | bool]
ERROR_TYPE = "error.type"

_W3C = TraceContextTextMapPropagator()
_NOTHING: AbstractContextManager[None] = nullcontext()


class Spans:
    """Makes spans with `tracer`; without one, none."""

    __slots__ = ("_tracer",)

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = tracer

    @property
    def on(self) -> bool:
        return self._tracer is not None

    def span(
        self,
        name: str,
        parent: str | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes | None = None,
    ) -> AbstractContextManager[Span | None]:
        """A span as long as the block; an exception that leaves it marks it as failed. Its parent is the span that is
        open around it; where none is, `parent`, a traceparent."""
        if self._tracer is None:
            return _NOTHING
        return _within(self._tracer, name, parent, kind, attributes)

    def begin(
        self,
        name: str,
        parent: str | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes | None = None,
        at: float | None = None,
    ) -> Span | None:
        """A span that is ended by hand (`end`), and no other's parent by itself. `at`: Unix seconds; now when None."""
        if self._tracer is None:
            return None
        return self._tracer.start_span(name, _context(parent), kind, attributes, start_time=_nanoseconds(at))


def end(span: Span | None, error: str | None = None, at: float | None = None) -> None:
    """Ends a span; `error` is a code, and says that what it stands for failed."""
    if span is None:
        return
    if error is not None:
        failed(span, error)
    span.end(_nanoseconds(at))


def failed(span: Span | None, code: str) -> None:
    """Marks a span as failed."""
    if span is not None:
        span.set_attribute(ERROR_TYPE, code)
        span.set_status(StatusCode.ERROR)


def traceparent(span: Span | None) -> str | None:
    """How others name this span as their parent; None when there is none."""
    if span is None:
        return None
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, set_span_in_context(span))
    return carrier.get("traceparent")


@contextmanager
def _within(
    tracer: Tracer, name: str, parent: str | None, kind: SpanKind, attributes: Attributes | None
) -> Iterator[Span]:
    span = tracer.start_span(name, _context(parent), kind, attributes)
    token = attach(set_span_in_context(span))
    try:
        yield span
    except BaseException as error:
        failed(span, "cancelled" if isinstance(error, trio.Cancelled) else type(error).__name__)
        raise
    finally:
        detach(token)
        span.end()


def _context(parent: str | None) -> Context | None:
    if parent is None or get_current_span().get_span_context().is_valid:
        return None
    return _W3C.extract({"traceparent": parent})


def _nanoseconds(at: float | None) -> int | None:
    return None if at is None else int(at * 1e9)
