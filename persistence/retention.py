"""Archiving and forgetting what is old, a bounded number of rows at a time: statements for housekeeping jobs.

A task is archived (hidden from its user's history) after one time, and deleted after another (`removal`). Each call is
one short transaction; the caller goes on while there is something left.
"""

from __future__ import annotations

from typing import LiteralString

from attrs import define

from persistence.pool import Pool

BATCH = 1000

ARCHIVE: LiteralString = """
    UPDATE tasks SET archived_at = now(), updated_at = now() WHERE id IN (
        SELECT id FROM tasks
        WHERE archived_at IS NULL AND completed_at IS NOT NULL AND completed_at < now() - %s * interval '1 second'
          AND status NOT IN ('queued', 'processing')
        ORDER BY completed_at LIMIT %s FOR UPDATE SKIP LOCKED)
"""
FORGET_DELIVERIES: LiteralString = """
    DELETE FROM webhook_events WHERE id IN (
        SELECT id FROM webhook_events WHERE created_at < now() - %s * interval '1 second'
        ORDER BY created_at LIMIT %s FOR UPDATE SKIP LOCKED)
"""


@define(eq=False)
class Retention:
    """Every method raises StorageDown when the database is away, and answers how many rows it touched."""

    pool: Pool

    async def archive(self, older_than: float, limit: int = BATCH) -> int:
        """Hides tasks that ended more than `older_than` seconds ago."""
        return await self._run(ARCHIVE, older_than, limit)

    async def forget_deliveries(self, older_than: float, limit: int = BATCH) -> int:
        """Deletes deliveries older than any that a sender repeats: a younger one would count as new."""
        return await self._run(FORGET_DELIVERIES, older_than, limit)

    async def _run(self, statement: LiteralString, seconds: float, limit: int) -> int:
        async with self.pool.connection() as connection:
            cursor = await connection.execute(statement, (seconds, limit), prepare=False)
        return cursor.rowcount
