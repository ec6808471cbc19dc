"""The house's own jobs: what is old is archived, later deleted, and its files with it. Scheduled once for all nodes.

May import the engine and persistence.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog
from attrs import define

from engine.jobs.config import Cron
from engine.jobs.cron import Every
from engine.jobs.job import Complete, Job
from engine.jobs.worker import JobHandler
from engine.ports import ArtifactStore, StoreFailed
from persistence import removal
from persistence.removal import Removal
from persistence.retention import BATCH, Retention
from web.settings import Settings

HOUSEKEEPING = "retention"
DAY = 24 * 3600.0
DELIVERIES_KEPT = 7 * DAY
"""Longer than any sender repeats a delivery."""
log = structlog.get_logger("elwift.housekeeping")


@define(eq=False)
class Sweeper:
    """Deletes the files that `removal` noted, and crosses them off."""

    removal: Removal
    artifacts: ArtifactStore

    async def sweep(self, names: Iterable[str]) -> None:
        """Deletes noted files. One that cannot be deleted now is put off, and keeps no other from it."""
        for name in names:
            try:
                await self.artifacts.delete(name)
            except (StoreFailed, ValueError) as problem:  # a ValueError: no name of this store
                log.warning("file not deleted", name=name, reason=str(problem))
                await self.removal.put_off([name])
            else:
                await self.removal.cross_off([name])

    async def sweep_all(self) -> None:
        """Deletes every file that is due."""
        while names := await self.removal.due():
            await self.sweep(names)


def crons(settings: Settings) -> tuple[Cron, ...]:
    """What runs by the clock."""
    return (Cron("retention", Every(3600.0), HOUSEKEEPING),)


def retention_handler(retention: Retention, sweeper: Sweeper, settings: Settings) -> JobHandler:
    """The handler that archives and deletes by the settings' ages, a batch at a time."""

    async def run(job: Job) -> Complete:
        while await retention.forget_deliveries(DELIVERIES_KEPT) == BATCH:
            pass
        if settings.retention_days > 0:
            while await retention.archive(settings.retention_days * DAY) == BATCH:
                pass
        if settings.delete_after_days > 0:
            while await sweeper.removal.delete_archived(settings.delete_after_days * DAY) == removal.BATCH:
                pass
        while await sweeper.removal.expire() == removal.BATCH:
            pass
        await sweeper.sweep_all()
        return Complete()

    return run
