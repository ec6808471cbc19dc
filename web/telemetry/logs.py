"""Structured logs: one line an event, JSON or for a console, with the request's id, user and task where known.

`configure` is called once by the command line. What other libraries say through `logging` goes the same way. Secrets,
prompts and outputs are not logged: `redact` drops the keys that would carry them, whoever passes them.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import msgspec
import structlog
from opentelemetry.trace import format_span_id, format_trace_id, get_current_span
from structlog.typing import EventDict, Processor, WrappedLogger

PRIVATE = frozenset({"prompt", "input", "text", "response", "token", "authorization", "password", "secret", "api_key"})
_encoder = msgspec.json.Encoder(enc_hook=repr)


def redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Takes out what must never be in a log, whatever the caller meant."""
    for name in PRIVATE & event.keys():
        event[name] = "[redacted]"
    return event


def with_trace(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Names the trace that a line belongs to, as collectors join the two."""
    span = get_current_span().get_span_context()
    if span.is_valid:
        event["trace_id"], event["span_id"] = format_trace_id(span.trace_id), format_span_id(span.span_id)
    return event


def to_json(_: WrappedLogger, __: str, event: EventDict) -> str:
    """One line of JSON; what JSON has no word for is written as its repr."""
    return _encoder.encode(event).decode()


def configure(form: str = "auto", level: str = "info", stream: TextIO | None = None) -> None:
    """Sets up structlog and the standard library's logging.

    Args:
        form: `json`, `console`, or `auto`: console when `stream` is a terminal.
        level: the least severe level that is written.
        stream: where to; standard error by default.
    """
    out = stream or sys.stderr
    console = form == "console" or (form == "auto" and out.isatty())
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        with_trace,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
    ]
    # Tracebacks are plain: the pretty ones show local variables, prompts and keys among them, and take seconds.
    last: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [structlog.processors.StackInfoRenderer(), structlog.processors.format_exc_info, to_json]
    )
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=True,
    )
    _adopt_stdlib(shared, last, threshold, out)


def _adopt_stdlib(shared: list[Processor], last: list[Processor], threshold: int, out: TextIO) -> None:
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)
    # These tell each request and each byte at levels that say little; their warnings are kept.
    for chatty in ("httpx", "httpcore", "hypercorn.access", "google", "urllib3"):
        logging.getLogger(chatty).setLevel(max(threshold, logging.WARNING))


def about(**known: Any) -> Any:
    """A context manager: log lines within carry these (task_id=…, request_id=…)."""
    return structlog.contextvars.bound_contextvars(**known)
