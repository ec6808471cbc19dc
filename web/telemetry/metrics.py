"""The metrics of one server: what the doors count, what is read at scrape time, and what the engine counts.

The engine's counters live in Prometheus' process-wide registry (see `engine.telemetry`); what belongs to one server
lives in its own. Names carry the prefix `elwift_` and base units; no user or task id is ever a label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

Source = Callable[[], Iterable[Metric]]
"""Figures read when they are asked for: a room of the house as Prometheus sees it."""


class _Pulled(Collector):
    """Asks its source at each scrape."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        return self._source()

    def describe(self) -> Iterable[Metric]:
        return ()


class Telemetry:
    """The metrics of one server. Several servers may live in one process (tests do), so nothing here is global."""

    def __init__(self, sources: Sequence[Source] = ()) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "elwift_http_requests_total", "HTTP requests answered", ("route", "status"), registry=self.registry
        )
        self._durations = Histogram(
            "elwift_http_request_duration_seconds",
            "Time from a request read to its answer made",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._known: dict[tuple[str, int], Callable[[float], None]] = {}
        for source in sources:
            self.add(source)

    def add(self, source: Source) -> None:
        """Has `source` asked at each scrape."""
        self.registry.register(_Pulled(source))

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Counts one answer. On the hot path: the labelled children are looked up once."""
        known = self._known.get((route, status))
        if known is None:
            known = self._known[route, status] = self._observer(route, status)
        known(seconds)

    def _observer(self, route: str, status: int) -> Callable[[float], None]:
        count, duration = self._requests.labels(route, str(status)), self._durations.labels(route)

        def observe(seconds: float) -> None:
            count.inc()
            duration.observe(seconds)

        return observe

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(REGISTRY) + generate_latest(self.registry)
