"""The house's own jobs: what is old is archived, later deleted, and its files with it. Scheduled once for all nodes.

May import the engine and persistence.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog
import trio
from attrs import define

from engine.jobs.config import Cron
from engine.jobs.cron import Every
from engine.jobs.job import Complete, Job, Retry
from engine.jobs.worker import JobHandler
from engine.outputs.outputs import task_of
from engine.ports import ArtifactStore, StoreFailed
from persistence import removal
from persistence.removal import Removal
from persistence.retention import BATCH, Retention
from web.settings import Settings

HOUSEKEEPING = "retention"
FILES = "files"
ORPHANS = "orphans"
DAY = 24 * 3600.0
DELIVERIES_KEPT = 7 * DAY
"""Longer than any sender repeats a delivery."""
GRACE = DAY
"""Seconds for which a file that nobody recorded is left alone: whoever stored it may be about to say so."""
PAGE = 500
PAGES = 20
"""Files that are looked at together, and how many times in one run; the next run goes on from there."""
AT_ONCE = 8
OWNERS = "owner/"
"""Below it every database that stores here has left its name. Where there are two, neither sweeps."""
log = structlog.get_logger("elwift.housekeeping")


@define(eq=False)
class Sweeper:
    """Deletes the files that `removal` noted, and crosses them off; finds those that nobody recorded."""

    removal: Removal
    artifacts: ArtifactStore

    async def sweep(self, names: Iterable[str]) -> None:
        """Deletes noted files, some at a time. One that cannot be deleted now is put off, and holds up no other."""
        limiter = trio.CapacityLimiter(AT_ONCE)
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(self._delete, name, limiter)

    async def _delete(self, name: str, limiter: trio.CapacityLimiter) -> None:
        async with limiter:
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

    async def sweep_orphans(self, now: float, grace: float = GRACE, pages: int = PAGES) -> int:
        """Looks through the next files of the store and deletes those that are older than `grace` and that no task has
        on record; how many. Only what is named as outputs are is touched. Raises StoreFailed, StorageDown."""
        await self.artifacts.tidy(now - grace)
        if not await self._owned():
            return 0
        count, reached = 0, await self.removal.reached()
        for _ in range(pages):
            page = await self.artifacts.list(reached, PAGE)
            old = {each.name: task for each in page if each.changed_at < now - grace and (task := task_of(each.name))}
            orphans = await self.removal.unrecorded(old) if old else ()
            if orphans:
                await self.removal.note(orphans)
                await self.sweep(orphans)
                log.info("files deleted that nobody recorded", count=len(orphans))
            count += len(orphans)
            reached = page[-1].name if len(page) == PAGE else ""
            await self.removal.reach(reached)
            if not reached:
                break
        return count

    async def _owned(self) -> bool:
        """Whether this database alone stores here: another one's files would look like nobody's."""
        mine = OWNERS + await self.removal.owner()
        owners = [each.name for each in await self.artifacts.list(OWNERS, 2) if each.name.startswith(OWNERS)]
        if not owners:
            with tempfile.NamedTemporaryFile() as file:
                await self.artifacts.put(mine, Path(file.name), "text/plain")
        if owners not in ([], [mine]):
            log.warning("files of another database are in the store: nothing is swept", owners=owners)
        return owners in ([], [mine])


def crons(settings: Settings) -> tuple[Cron, ...]:
    """What runs by the clock."""
    return (
        Cron("retention", Every(3600.0), HOUSEKEEPING),
        Cron("files", Every(60.0), FILES, max_attempts=1),
        Cron("orphans", Every(3600.0), ORPHANS, max_attempts=1),
    )


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
        await _expire(sweeper)
        return Complete()

    return run


def files_handler(sweeper: Sweeper) -> JobHandler:
    """The handler that deletes the files of expired outputs and of deleted tasks, as far as they are due."""

    async def run(job: Job) -> Complete:
        await _expire(sweeper)
        return Complete()

    return run


def orphans_handler(sweeper: Sweeper, clock: Callable[[], float]) -> JobHandler:
    """The handler that finds files which nobody recorded. `clock` gives Unix time."""

    async def run(job: Job) -> Complete | Retry:
        try:
            await sweeper.sweep_orphans(clock())
        except StoreFailed as problem:
            return Retry(str(problem))
        return Complete()

    return run


async def _expire(sweeper: Sweeper) -> None:
    while await sweeper.removal.expire() == removal.BATCH:
        pass
    await sweeper.sweep_all()
