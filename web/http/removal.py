"""Deleting a task of one's own. `RemovalRoutes` is made by the application, over what deletes rows and files."""

from __future__ import annotations

import structlog
import trio
from attrs import define

from engine.errors import UserError
from engine.ports import StorageDown
from web.housekeeping import Sweeper
from web.http.exchange import Answer, Ask
from web.http.house import House
from web.http.route import Route
from web.http.tasks import own_task

PATIENCE = 5.0
"""Seconds that a request waits for the files to go; after that the hourly job sees to them."""
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
                "Delete a task that is over",
                status=204,
                refusals=("unknown_task", "not_over", "conflict", "storage_down"),
            ),
        )

    async def delete(self, house: House, ask: Ask) -> Answer:
        """Removes the task with its log, text and files, for good. What it used stays counted."""
        task = await own_task(house, ask)
        if not task.status.terminal:
            raise UserError("not_over", f"The task is {task.status}. Cancel it first.")
        names = await self.sweeper.removal.delete(task.id)
        if names is None:  # its end is not stored yet, or it has just been tried again, or deleted
            raise UserError("conflict", "The task is changing just now. Try again in a moment.")
        await self._sweep(names)
        return Answer(status=204)

    async def _sweep(self, names: tuple[str, ...]) -> None:
        """The task is gone already; files that stay behind are noted, and no reason to say otherwise."""
        with trio.move_on_after(PATIENCE):
            try:
                await self.sweeper.sweep(names)
            except StorageDown as problem:
                log.warning("files left to the hourly job", count=len(names), reason=str(problem))
