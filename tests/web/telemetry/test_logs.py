"""Log lines: one JSON object each, with the context they were said in, and never what is private."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from opentelemetry.trace import format_span_id

from web.telemetry.logs import PRIVATE, about, configure
from web.telemetry.otlp import Collector, Exporter


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    out = io.StringIO()
    yield out
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_json_with_its_context(stream: io.StringIO) -> None:
    configure("json", "info", stream)
    with about(request_id="r1", task_id="t1"):
        structlog.get_logger("x").info("said", user="alice", odd={1, 2})
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["request_id"], line["task_id"], line["user"]) == (
        "said",
        "info",
        "r1",
        "t1",
        "alice",
    )
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize("name", sorted(PRIVATE))
def test_what_is_private_is_not_written(stream: io.StringIO, name: str) -> None:
    configure("json", "info", stream)
    structlog.get_logger("x").info("said", **{name: "hidden words"})
    assert "hidden words" not in stream.getvalue()


def test_what_libraries_say_goes_the_same_way(stream: io.StringIO) -> None:
    configure("json", "info", stream)
    logging.getLogger("some.library").warning("careful: %s", 7)
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["logger"]) == ("careful: 7", "warning", "some.library")


def test_below_the_level_nothing_is_written(stream: io.StringIO) -> None:
    configure("json", "warning", stream)
    structlog.get_logger("x").info("quiet")
    logging.getLogger("x").info("quiet")
    logging.getLogger("httpx").info("quiet")
    assert stream.getvalue() == ""


def test_a_traceback_is_in_the_line(stream: io.StringIO) -> None:
    configure("json", "info", stream)
    try:
        raise ValueError("broken")
    except ValueError:
        structlog.get_logger("x").exception("it broke")
    (line,) = lines(stream)
    assert "ValueError: broken" in line["exception"]


def test_a_console_line_is_for_people(stream: io.StringIO) -> None:
    configure("console", "info", stream)
    structlog.get_logger("x").info("said", user="alice")
    assert "said" in stream.getvalue()
    assert "user" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_auto_is_json_when_nobody_watches(stream: io.StringIO) -> None:
    configure("auto", "info", stream)
    structlog.get_logger("x").info("said")
    assert lines(stream)[0]["event"] == "said"


def test_a_line_within_a_span_names_its_trace(stream: io.StringIO) -> None:
    configure("json", "info", stream)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with Exporter(Collector("http://nowhere")).spans.span("outer", parent) as span:
        structlog.get_logger("x").info("within")
        logging.getLogger("library").warning("within, too")
    structlog.get_logger("x").info("outside")
    *within, outside = lines(stream)
    assert span is not None
    assert {(line["trace_id"], line["span_id"]) for line in within} == {
        (parent.split("-")[1], format_span_id(span.get_span_context().span_id))
    }
    assert "trace_id" not in outside
