"""What the listener tells: connections now, and the faults of clients by kind. May import nothing but Prometheus.

Faults are what clients do wrong on the wire (malformed requests, frames too large, bodies that do not come); their
rise is the first sign of an attack or of a broken client release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import frozen
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric


def _none() -> int:
    return 0


@frozen
class Doors:
    """`connections` answers how many there are now; `faults` is counted up by the endpoint, and only read here."""

    connections: Callable[[], int] = _none
    faults: Mapping[str, int] = {}

    def view(self) -> dict[str, Any]:
        """For the overview."""
        return {"connections": self.connections(), "faults": dict(self.faults)}

    def metrics(self) -> Iterable[Metric]:
        """For Prometheus."""
        yield GaugeMetricFamily("elwift_connections", "Open connections", value=self.connections())
        faults = CounterMetricFamily("elwift_client_faults", "What clients did wrong on the wire", labels=["kind"])
        for kind, count in sorted(self.faults.items()):
            faults.add_metric([kind], count)
        yield faults
