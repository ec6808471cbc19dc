"""The house's own jobs: what is old is archived, and later deleted. Scheduled once for all nodes, in the job queue.

May import the engine and persistence.
"""

from __future__ import annotations

from engine.jobs.config import Cron
from engine.jobs.job import Complete, Job
from engine.jobs.worker import JobHandler
from persistence.retention import BATCH, Retention
from web.settings import Settings

HOUSEKEEPING = "retention"
DAY = 24 * 3600.0
DELIVERIES_KEPT = 7 * DAY
"""Longer than any sender repeats a delivery."""


def crons(settings: Settings) -> tuple[Cron, ...]:
    """What runs by the clock."""
    return (Cron("retention", 3600.0, HOUSEKEEPING),)


def retention_handler(retention: Retention, settings: Settings) -> JobHandler:
    """The handler that archives and deletes by the settings' ages, a batch at a time."""

    async def run(job: Job) -> Complete:
        while await retention.forget_deliveries(DELIVERIES_KEPT) == BATCH:
            pass
        if settings.retention_days > 0:
            while await retention.archive(settings.retention_days * DAY) == BATCH:
                pass
        return Complete()

    return run
