"""Deleting a task of one's own. `RemovalRoutes` is made by the application, over what deletes rows and files."""

from __future__ import annotations

from uuid import UUID

import structlog
import trio
from attrs import define

from engine.errors import UserError
from engine.ports import StorageDown
from engine.tasks import lookup
from persistence.removal import LATE
from web.housekeeping import Sweeper
from web.http.exchange import Answer, Ask
from web.http.house import House
from web.http.route import Route
from web.http.tasks import actor, own_task

AGAIN = 0.05
PATIENCE = 5.0
"""Seconds that a request waits for the task to end, and for its files to go; the rest is the minutely job's."""
log = structlog.get_logger("elwift.housekeeping")


@define(eq=False)
class RemovalRoutes:
    """The call."""

    sweeper: Sweeper

    @property
    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                "DELETE",
                "/api/tasks/<task_id>",
                self.delete,
                "Delete a task; one that is not over is cancelled first",
                status=204,
                refusals=("unknown_task", "conflict", "timeout", "storage_down"),
            ),
        )

    async def delete(self, house: House, ask: Ask) -> Answer:
        """Removes the task with its log, text and files, for good. What it used stays counted. One that is not over is
        cancelled first, and its files are looked for once more when what was under way has ended."""
        task = await own_task(house, ask)
        if not task.status.terminal:
            await lookup.cancel(house.runtime, task.id, actor(ask, task), "deleted")
        removal = self.sweeper.removal
        names = await removal.delete(task.id)
        with trio.move_on_after(PATIENCE):
            while names is None and await self._ending(house, task.id):
                await trio.sleep(AGAIN)
                names = await removal.delete(task.id)
        if names is None:  # its end is not stored yet, or it has just been tried again, or deleted
            raise UserError("conflict", "The task is changing just now. Try again in a moment.")
        log.info("task deleted", task_id=str(task.id), of=task.user, by=ask.identity.user, files=len(names))
        await removal.note([f"{task.id}/"], after=LATE)
        await self._sweep(names)
        return Answer(status=204)

    async def _ending(self, house: House, task_id: UUID) -> bool:
        """Whether the task is over, and only its end not stored yet."""
        task = await lookup.find(house.runtime, task_id)
        return task is not None and task.status.terminal

    async def _sweep(self, names: tuple[str, ...]) -> None:
        """The task is gone already; files that stay behind are noted, and no reason to say otherwise."""
        with trio.move_on_after(PATIENCE):
            try:
                await self.sweeper.sweep(names)
            except* StorageDown as problem:
                log.warning("files left to the minutely job", count=len(names), reason=str(problem))
