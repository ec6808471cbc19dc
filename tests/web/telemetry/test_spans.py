"""Spans of a task's whole way, as a collector gets them that speaks OTLP over HTTP like the real one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from engine.errors import UserError
from engine.otp import Node, Supervisor, stop
from engine.tracing import Spans
from scripts.client import connect
from scripts.http_client import http_client
from tests.real.conftest import data_dir as data_dir
from tests.web.endpoint.running import lifespan, running, until
from web.serve import running as serving
from web.settings import Settings
from web.telemetry.otlp import BATCH, Collector, Exporter

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, PARENT = CALLER.split("-")[1:3]


@define
class Gathered:
    """What a collector has taken. `statuses` are answered first, one a request, then 200."""

    url: str = ""
    spans: list[Span] = field(factory=list)
    resources: list[dict[str, str]] = field(factory=list)
    headers: list[dict[bytes, bytes]] = field(factory=list)
    statuses: list[int] = field(factory=list)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await lifespan(receive, send)
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        status = self._taken(dict(scope["headers"]), body) if scope["path"] == "/v1/traces" else 404
        await send({"type": "http.response.start", "status": status, "headers": []})
        return await send({"type": "http.response.body", "body": b""})

    def _taken(self, headers: dict[bytes, bytes], body: bytes) -> int:
        self.headers.append(headers)
        if self.statuses:
            return self.statuses.pop(0)
        if headers[b"content-type"] != b"application/x-protobuf":
            return 415
        for part in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append({pair.key: pair.value.string_value for pair in part.resource.attributes})
            self.spans += [span for scope in part.scope_spans for span in scope.spans]
        return 200

    def named(self, name: str) -> Span:
        (found,) = [span for span in self.spans if span.name == name]
        return found


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in span.attributes}


@asynccontextmanager
async def collecting() -> AsyncIterator[Gathered]:
    gathered = Gathered()
    async with running(gathered.app, max_body=10_000_000) as endpoint:
        gathered.url = endpoint.urls[0]
        yield gathered


@asynccontextmanager
async def exporting(url: str) -> AsyncIterator[Exporter]:
    exporter = Exporter(Collector.of(url, {}))
    top = await Supervisor.start_link([exporter.spec()])
    yield exporter
    await stop(top)


# --- through a whole server ------------------------------------------------------------------------------------------


async def run_to_its_end(url: str, headers: dict[str, str], **input: Any) -> str:
    async with http_client(url, 1) as http:
        (connection,) = [await http._next.receive()]
        connection.headers += list(headers.items())
        http._free.send_nowait(connection)
        status, answer = await http.post("/api/tasks", {"model": "simulate", "input": input})
        assert status == 202
    async with connect(url) as socket:
        channel = await socket.join(f"task:{answer['task_id']}", {"last_seq": 0})
        _ = [message async for message in channel]
    return str(answer["task_id"])


async def test_a_task_is_one_trace_from_its_client_to_its_provider(data_dir: Path) -> None:
    async with Node.open(), collecting() as collector:
        url = collector.url
        settings = Settings(port=0, data_dir=data_dir, local_model=False, preempt_budget=0, otlp_endpoint=url)
        await trio.to_thread.run_sync(lambda: trio.run(one_task, settings))
        assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
        request, accept = collector.named("POST /api/tasks"), collector.named("accept task")
        wait, attempt = collector.named("wait default"), collector.named("attempt default")
        call, back = collector.named("chat simulate"), collector.named("tell end")
        assert request.parent_span_id.hex() == PARENT
        assert accept.parent_span_id == request.span_id
        assert {span.parent_span_id for span in (wait, attempt, back)} == {accept.span_id}
        assert call.parent_span_id == attempt.span_id
        assert request.start_time_unix_nano <= accept.start_time_unix_nano <= wait.start_time_unix_nano
        assert wait.end_time_unix_nano <= attempt.start_time_unix_nano <= call.start_time_unix_nano
        assert call.end_time_unix_nano <= min(attempt.end_time_unix_nano, back.end_time_unix_nano)
        assert (request.kind, call.kind) == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT)
        told = attributes(request)
        assert (told["http.route"], told["http.response.status_code"]) == ("/api/tasks", 202)
        told = attributes(call)
        assert (told["gen_ai.operation.name"], told["gen_ai.provider.name"]) == ("chat", "simulate")
        assert (told["gen_ai.request.model"], told["gen_ai.usage.output_tokens"]) == ("simulate", 3)
        assert collector.resources[0]["service.name"] == "elwift"
        assert b"secret words" not in b"".join(span.SerializeToString() for span in collector.spans)


async def one_task(settings: Settings) -> None:
    async with serving(settings) as application:
        url = application.endpoint.urls[0]
        await run_to_its_end(url, {"traceparent": CALLER}, steps=3, interval=0, text=True, prompt="secret words")


async def test_a_failed_call_says_so_and_each_attempt_has_its_own(data_dir: Path) -> None:
    async with Node.open(), collecting() as collector:
        settings = Settings(port=0, data_dir=data_dir, local_model=False, preempt_budget=0, otlp_endpoint=collector.url)
        await trio.to_thread.run_sync(lambda: trio.run(a_failing_task, settings))
        calls = [span for span in collector.spans if span.name == "chat simulate"]
        assert [attributes(call).get("error.type") for call in calls] == ["simulated_failure", None]
        assert [call.status.code for call in calls] == [Status.STATUS_CODE_ERROR, Status.STATUS_CODE_UNSET]
        attempts = [span for span in collector.spans if span.name == "attempt default"]
        assert [attributes(attempt)["elwift.attempt"] for attempt in attempts] == [1, 2]
        assert len({span.trace_id for span in (*calls, *attempts)}) == 1


async def a_failing_task(settings: Settings) -> None:
    async with serving(settings) as application:
        failing = {"fail_at": 1, "fail_kind": "retryable", "fail_attempts": 1, "retry_after": 0.01}
        await run_to_its_end(application.endpoint.urls[0], {}, steps=2, interval=0, **failing)


# --- the exporter ----------------------------------------------------------------------------------------------------


async def test_without_a_collector_nothing_is_made(node: Node) -> None:
    exporter = Exporter(Collector.of("", {}))
    assert not exporter.spans.on
    with exporter.spans.span("nothing") as span:
        assert span is None


async def test_a_collector_that_is_busy_is_asked_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("web.telemetry.otlp.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("web.telemetry.otlp.PERIOD", 0.01)
    async with collecting() as collector, exporting(collector.url) as exporter:
        collector.statuses += [503, 429]
        with exporter.spans.span("once"):
            pass
        await until(lambda: collector.spans)
        assert [span.name for span in collector.spans] == ["once"]
        assert len(collector.headers) == 3


async def test_what_a_collector_refuses_is_not_sent_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("web.telemetry.otlp.PERIOD", 0.01)
    async with collecting() as collector, exporting(collector.url) as exporter:
        collector.statuses.append(400)
        with exporter.spans.span("refused"):
            pass
        await until(lambda: collector.headers)
        with exporter.spans.span("taken"):
            pass
        await until(lambda: collector.spans)
        assert [span.name for span in collector.spans] == ["taken"]


async def test_a_fault_of_the_exporter_costs_spans_and_nothing_else(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def broken(batch: object) -> object:
        asked.append(batch)
        raise ValueError("a span that cannot be encoded")

    monkeypatch.setattr("web.telemetry.otlp.PERIOD", 0.01)
    async with collecting() as collector, exporting(collector.url) as exporter:
        with monkeypatch.context() as fault:
            fault.setattr("web.telemetry.otlp.encode_spans", broken)
            with exporter.spans.span("lost"):
                pass
            await until(lambda: asked)
        with exporter.spans.span("taken"):
            pass
        await until(lambda: collector.spans)
        assert [span.name for span in collector.spans] == ["taken"]


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://collector", "/v1/traces"])
def test_a_collector_that_is_no_url_is_refused_in_words(endpoint: str) -> None:
    with pytest.raises(UserError):
        Collector.of(endpoint, {})


async def test_a_stop_sends_what_is_left(node: Node) -> None:
    async with collecting() as collector:
        async with exporting(collector.url) as exporter:
            for number in range(BATCH // 2):
                with exporter.spans.span(str(number)):
                    pass
        assert len(collector.spans) == BATCH // 2


async def test_a_collector_that_is_away_holds_nothing_up(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("web.telemetry.otlp.MOST_WAITING", 10)
    async with exporting("http://127.0.0.1:9") as exporter:
        for number in range(100):
            with exporter.spans.span(str(number)):
                pass
        assert len(exporter._waiting) == 10
        with trio.fail_after(4):
            await trio.testing.wait_all_tasks_blocked()


def test_an_open_span_is_the_parent_and_the_caller_only_where_there_is_none() -> None:
    spans: Spans = Exporter(Collector("http://nowhere")).spans
    with spans.span("outer", CALLER) as outer, spans.span("inner", "00-" + "1" * 32 + "-" + "2" * 16 + "-01") as inner:
        assert outer is not None
        assert inner is not None
        assert inner.get_span_context().trace_id == outer.get_span_context().trace_id == int(TRACE, 16)


def test_the_standard_variables_name_the_collector() -> None:
    named = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/",
        "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Basic%20abc,x-scope=1",
    }
    found = Collector.of("", named)
    assert (found.url, found.headers) == (
        "http://collector:4318/v1/traces",
        {"authorization": "Basic abc", "x-scope": "1"},
    )
    whole = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://traces/here"}
    assert Collector.of("", named | whole).url == "http://traces/here"
    assert Collector.of("http://ours", named | whole).url == "http://ours/v1/traces"
    assert Collector.of("http://ours", {"OTEL_SDK_DISABLED": "true"}).url == ""
