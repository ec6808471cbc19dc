"""Is it alive, is it ready: for load balancers, process managers and Prometheus.

`/healthz` says that the loop turns. `/readyz` says whether new work should be sent here: no while draining, or when
the database is away *and* the journal takes no new tasks (its memory is full, or it is strict); a database that is away
alone is told but does not count as unready, since tasks are accepted and run in memory meanwhile.
"""

from __future__ import annotations

from typing import Any

from engine.ports import JournalHealth
from web.http.exchange import UNCACHED, Answer, Ask, json
from web.http.house import House
from web.telemetry.metrics import CONTENT_TYPE


async def live(house: House, ask: Ask) -> Answer:
    """200 as long as the loop turns."""
    return json({"status": "ok"})


async def ready(house: House, ask: Ask) -> Answer:
    """200 when new work may be sent here, else 503; both with the reasons."""
    report = readiness(house.runtime.journal.health(), house.draining())
    return json(report, 200 if report["status"] != "unready" else 503)


def readiness(journal: JournalHealth, draining: bool) -> dict[str, Any]:
    """`ready`, `degraded` (takes work, with something wrong) or `unready`, and why. Pure."""
    refusing = not journal.up and not journal.accepting
    status = "unready" if draining or refusing else "ready" if journal.up else "degraded"
    return {"status": status, "draining": draining, "journal": journal_view(journal)}


def journal_view(journal: JournalHealth) -> dict[str, Any]:
    """The journal's health; `since` is the Unix time of the last change of `up`."""
    return {
        "up": journal.up,
        "since": journal.since,
        "buffered": journal.buffered,
        "bound": journal.bound,
        "last_error": journal.last_error,
    }


async def metrics(house: House, ask: Ask) -> Answer:
    """Everything Prometheus may want to know."""
    return Answer(house.telemetry.exposition(), 200, CONTENT_TYPE, (UNCACHED,))
