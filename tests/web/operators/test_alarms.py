"""Alarms stand when something deserves attention, are said once, and are over when it is."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
import trio
from attrs import evolve

from engine.jobs.queues import QueueStats
from engine.otp import Node, Supervisor, whereis
from engine.ports import JournalHealth
from web.operators.alarms import NAMES, Figures, Thresholds, alarms
from web.operators.watch import Watch

QUEUE = QueueStats("default", 8, 0, False, False, 0, 0, 0, 0, 0, 0, None, 0.0, 1.0, "push")
ROUTE = {"provider": "p", "credential": 0, "model": "m", "rests_for_seconds": 30.0, "hopeless": False, "why": "x"}
WELL = Figures(1000.0, JournalHealth(True, 0.0, 0, 100), (QUEUE,), 0.0, 0)


def names(seen: Figures) -> list[str]:
    return [alarm.name for alarm in alarms(seen, Thresholds())]


def test_a_house_that_is_well_has_no_alarm() -> None:
    assert names(WELL) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"journal": JournalHealth(False, 995.0, 0, 100)}, []),
        ({"journal": JournalHealth(False, 980.0, 7, 100)}, ["database_away"]),
        ({"journal": JournalHealth(False, 980.0, 51, 100)}, ["database_away", "journal_filling"]),
        ({"queues": (evolve(QUEUE, oldest_age=61.0),)}, ["queue_waiting"]),
        ({"queues": (evolve(QUEUE, oldest_age=59.0),)}, []),
        ({"queues": (evolve(QUEUE, paused=True, oldest_age=99.0),)}, ["queue_paused"]),
        ({"lag": 0.3}, ["loop_lagging"]),
        ({"restarts": 31}, ["restarting_often"]),
        ({"routes": (ROUTE,)}, []),
        ({"routes": (ROUTE, {**ROUTE, "hopeless": True, "why": "provider_auth"})}, ["provider_refuses_us"]),
        ({"routes": (ROUTE, {**ROUTE, "rests_for_seconds": 61.0, "why": "quota"})}, ["provider_resting"]),
    ],
)
def test_each_threshold_raises_its_alarm(change: dict[str, Any], expected: list[str]) -> None:
    assert names(evolve(WELL, **change)) == expected


def test_every_alarm_is_known_to_prometheus_and_says_what_is_wrong() -> None:
    journal = JournalHealth(False, 0.0, 100, 100)
    queues = (evolve(QUEUE, paused=True), evolve(QUEUE, oldest_age=99.0))
    routes = ({**ROUTE, "hopeless": True}, {**ROUTE, "rests_for_seconds": 99.0})
    found = alarms(Figures(1000.0, journal, queues, 9.0, 99, routes), Thresholds())
    assert {alarm.name for alarm in found} == set(NAMES)
    assert all(len(alarm.message) > 30 and alarm.severity in ("warning", "critical") for alarm in found)


async def test_the_watch_says_an_alarm_once_and_when_it_is_over(autojump_clock: trio.testing.MockClock) -> None:
    paused = False

    def queues() -> tuple[QueueStats, ...]:
        return (evolve(QUEUE, paused=paused),)

    watch = Watch(lambda: WELL.journal, queues, lambda: 0, clock=trio.current_time)
    with structlog.testing.capture_logs() as logs:
        async with Node.open():
            await Supervisor.start_link([watch.spec()], name="top")
            assert whereis("telemetry") is not None
            await trio.sleep(11)
            assert watch.standing == ()
            paused = True
            await trio.sleep(30)
            assert [alarm.name for alarm in watch.standing] == ["queue_paused"]
            paused = False
            await trio.sleep(11)
    assert [(line["event"], line["name"]) for line in logs] == [
        ("alarm", "queue_paused"),
        ("alarm over", "queue_paused"),
    ]


def test_restarts_are_counted_over_a_minute() -> None:
    times, counts = iter([0.0, 5.0, 30.0, 60.0, 70.0]), iter([0, 40, 40, 40, 40])
    watch = Watch(lambda: WELL.journal, lambda: (), lambda: next(counts), clock=lambda: next(times))
    stood = []
    for _ in range(5):
        watch.judge()
        stood.append([alarm.name for alarm in watch.standing])
    assert stood == [[], ["restarting_often"], ["restarting_often"], ["restarting_often"], []]


def test_the_lag_of_the_loop_is_a_histogram() -> None:
    watch = Watch(lambda: WELL.journal, lambda: (), lambda: 0)
    for late in (0.0005, 0.02, 0.3, 9.0):
        watch.lagged(late)
    found = {metric.name: metric for metric in watch.metrics()}
    counted = {sample.labels.get("le"): sample.value for sample in found["elwift_loop_lag_seconds"].samples}
    assert (counted["0.001"], counted["0.025"], counted["0.5"], counted["+Inf"]) == (1, 2, 3, 4)
    assert len(found["elwift_alarm"].samples) == len(NAMES)
