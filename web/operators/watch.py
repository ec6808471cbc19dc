"""The process that looks at the house regularly: is the loop late, does anything deserve alarm.

An alarm is said once in the log when it begins, and once when it is over. The process is a plain one; what it found
last is read by the overview and by Prometheus.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import structlog
import trio
from attrs import define, field
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from engine.jobs.queues import QueueStats
from engine.otp import ChildSpec, Start, init_ack
from engine.ports import JournalHealth
from web.operators.alarms import NAMES, Alarm, Figures, Thresholds, alarms

log = structlog.get_logger("elwift.alarms")

LOOK_EVERY = 0.5
"""Seconds between two looks: how exactly the loop's lag is known."""
JUDGE_EVERY = 5.0
MINUTE = 60.0
_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@define(eq=False)
class Watch:
    """`health`, `queues`, `restarts` and `routes` answer the figures of now; `restarts` counts from the start."""

    health: Callable[[], JournalHealth]
    queues: Callable[[], tuple[QueueStats, ...]]
    restarts: Callable[[], int]
    limits: Thresholds = field(factory=Thresholds)
    clock: Callable[[], float] = time.time
    routes: Callable[[], Sequence[Mapping[str, Any]]] = tuple
    standing: tuple[Alarm, ...] = field(default=(), init=False)
    _lags: list[int] = field(factory=lambda: [0] * (len(_BUCKETS) + 1), init=False)
    _lag_sum: float = field(default=0.0, init=False)
    _worst: float = field(default=0.0, init=False)
    _restarted: deque[tuple[float, int]] = field(factory=deque, init=False)

    def spec(self) -> ChildSpec:
        """The child of the tree."""
        return ChildSpec("telemetry", Start.process(self.run, name="telemetry"), shutdown=1.0)

    async def run(self) -> None:
        """Looks until it is ended."""
        init_ack()
        judged = trio.current_time()
        while True:
            before = trio.current_time()
            await trio.sleep(LOOK_EVERY)
            now = trio.current_time()
            self.lagged(now - before - LOOK_EVERY)
            if now - judged >= JUDGE_EVERY:
                judged = now
                self.judge()

    def lagged(self, late: float) -> None:
        """Notes by how much the loop was late."""
        late = max(0.0, late)
        self._worst = max(self._worst, late)
        self._lag_sum += late
        self._lags[next((at for at, bound in enumerate(_BUCKETS) if late <= bound), len(_BUCKETS))] += 1

    def judge(self) -> None:
        """Sees which alarms stand now, and says which are new and which are over."""
        now, count = self.clock(), self.restarts()
        self._restarted.append((now, count))
        while now - self._restarted[0][0] > MINUTE:
            self._restarted.popleft()
        restarts = count - self._restarted[0][1]
        seen = Figures(now, self.health(), self.queues(), self._worst, restarts, self.routes())
        self._worst = 0.0
        self._tell(alarms(seen, self.limits))

    def _tell(self, found: tuple[Alarm, ...]) -> None:
        before, after = {alarm.name for alarm in self.standing}, {alarm.name for alarm in found}
        for alarm in found:
            if alarm.name not in before:
                log.warning("alarm", name=alarm.name, severity=alarm.severity, message=alarm.message)
        for name in sorted(before - after):
            log.info("alarm over", name=name)
        self.standing = found

    def metrics(self) -> Iterable[Metric]:
        """Each alarm as 0 or 1, and how late the loop was."""
        standing = {alarm.name for alarm in self.standing}
        gauge = GaugeMetricFamily("elwift_alarm", "Whether an alarm stands", labels=["name"])
        for name in NAMES:
            gauge.add_metric([name], int(name in standing))
        yield gauge
        yield HistogramMetricFamily(
            "elwift_loop_lag_seconds",
            "By how much the event loop was late",
            buckets=self._buckets(),
            sum_value=self._lag_sum,
        )

    def _buckets(self) -> list[tuple[str, float]]:
        total, found = 0, []
        for bound, counted in zip((*map(str, _BUCKETS), "+Inf"), self._lags, strict=True):
            total += counted
            found.append((bound, float(total)))
        return found
