"""What deserves a person's attention, by thresholds. Pure: figures in, alarms out; `watch` asks regularly.

An alarm says what is wrong and what to look at. `critical` means that users feel it now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import frozen

from engine.jobs.queues import QueueStats
from engine.ports import JournalHealth

NAMES = (
    "database_away",
    "journal_filling",
    "queue_waiting",
    "queue_paused",
    "loop_lagging",
    "restarting_often",
    "provider_refuses_us",
    "provider_resting",
)


@frozen
class Alarm:
    name: str
    severity: str
    message: str


@frozen
class Thresholds:
    """Times in seconds; `journal` is a share of its bound, `restarts` are counted over a minute."""

    away: float = 10.0
    journal: float = 0.5
    waiting: float = 60.0
    lag: float = 0.25
    restarts: int = 30
    rest: float = 60.0


@frozen
class Figures:
    """What alarms are judged by. `lag` is the longest that the loop was late lately, `restarts` those of a minute,
    `routes` what routing knows of each way to a provider."""

    now: float
    journal: JournalHealth
    queues: Sequence[QueueStats]
    lag: float
    restarts: int
    routes: Sequence[Mapping[str, Any]] = ()


def alarms(seen: Figures, limits: Thresholds) -> tuple[Alarm, ...]:
    """The alarms that stand, in the order of `NAMES`."""
    return (*_database(seen, limits), *_queues(seen, limits), *_processes(seen, limits), *_providers(seen, limits))


def _database(seen: Figures, limits: Thresholds) -> Iterable[Alarm]:
    journal, away = seen.journal, seen.now - seen.journal.since
    if not journal.up and away > limits.away:
        words = f"The database has been away for {away:.0f} s; {journal.buffered} entries wait in memory."
        yield Alarm("database_away", "critical", f"{words} See /readyz for its last error.")
    if journal.buffered > limits.journal * journal.bound:
        words = f"The journal holds {journal.buffered} of {journal.bound} entries; above that tasks are refused."
        yield Alarm("journal_filling", "critical", words)


def _queues(seen: Figures, limits: Thresholds) -> Iterable[Alarm]:
    for queue in seen.queues:
        if queue.paused:
            yield Alarm("queue_paused", "warning", f"The queue {queue.queue} is paused; {queue.available} jobs wait.")
        elif (queue.oldest_age or 0.0) > limits.waiting:
            words = f"A job of the queue {queue.queue} has waited for {queue.oldest_age:.0f} s."
            yield Alarm("queue_waiting", "warning", f"{words} Add servers, or slots to the queue.")


def _processes(seen: Figures, limits: Thresholds) -> Iterable[Alarm]:
    if seen.lag > limits.lag:
        words = f"The event loop was late by {seen.lag:.2f} s; everything waited as long."
        yield Alarm("loop_lagging", "warning", f"{words} See what stalled on /operators.")
    if seen.restarts > limits.restarts:
        words = f"{seen.restarts} processes were started again in the last minute."
        yield Alarm("restarting_often", "warning", f"{words} See which, and why, on /operators.")


def _providers(seen: Figures, limits: Thresholds) -> Iterable[Alarm]:
    """One alarm for all that need the same: names stand once."""
    refused = [route for route in seen.routes if route["hopeless"]]
    if refused:
        words = (
            f"{_listed(refused)} answered that waiting will not mend. Look at the keys, addresses and models' names."
        )
        yield Alarm("provider_refuses_us", "critical", words)
    resting = [route for route in seen.routes if not route["hopeless"] and route["rests_for_seconds"] > limits.rest]
    if resting:
        longest = max(route["rests_for_seconds"] for route in resting)
        words = f"{_listed(resting)} failed or throttled us, and will be asked again in {longest:.0f} s at the latest."
        yield Alarm("provider_resting", "warning", words)


def _listed(routes: Sequence[Mapping[str, Any]]) -> str:
    """`openai (key 2, gpt-6, provider_auth), …`: keys are counted from 1, in the order of the settings."""
    named = [
        f"{each['provider']} (key {each['credential'] + 1}, {each['model']}, {each['why']})" for each in routes[:5]
    ]
    return ", ".join(named) + (", …" if len(routes) > 5 else "")
