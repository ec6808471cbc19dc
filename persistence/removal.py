"""Deleting tasks with all that is theirs, outputs that have expired, and files that nobody recorded.

One statement deletes the rows and notes the files that they named in `objects_to_delete`; whoever deletes a file then
crosses it off. A crash in between leaves a note, never a file that nobody knows of. A name that ends with a slash means
everything below it. What the attempts used is kept as bare figures, so that deleting a task lowers no bill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, LiteralString
from uuid import UUID

from attrs import define

from persistence.pool import Pool

BATCH = 1000
LATE = 600.0
"""Seconds after which a deleted task's folder is looked through once more: an upload that was under way when its task
was deleted has ended by then."""

ONE: LiteralString = """
    SELECT id, user_id, model, job_id FROM tasks
    WHERE id = %(task)s AND status NOT IN ('queued', 'processing') FOR UPDATE
"""
# One that was archived and then tried again is let alone.
ARCHIVED: LiteralString = """
    SELECT id, user_id, model, job_id FROM tasks
    WHERE archived_at IS NOT NULL AND archived_at < now() - %(seconds)s * interval '1 second'
      AND status NOT IN ('queued', 'processing')
    ORDER BY archived_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
"""

# Deliveries stay, emptied: their ids are how a repetition is known.
REMOVE: LiteralString = """
    attempts AS MATERIALIZED (
        SELECT d.user_id, d.model, p.*,
            (coalesce(provider_completed_at, provider_started_at, created_at) AT TIME ZONE 'UTC')::date AS day
        FROM doomed d JOIN predictions p ON p.task_id = d.id
    ), counted AS (
        INSERT INTO usage_of_deleted AS u
            (user_id, day, model, tasks, attempts, input_tokens, output_tokens, predict_seconds, cost)
        SELECT user_id, day, model, count(DISTINCT task_id), count(*), sum(input_tokens), sum(output_tokens),
            sum(predict_seconds), sum(cost_estimate)
        FROM attempts GROUP BY user_id, day, model ORDER BY user_id, day, model
        ON CONFLICT (user_id, day, model) DO UPDATE SET
            tasks = u.tasks + excluded.tasks, attempts = u.attempts + excluded.attempts,
            input_tokens = coalesce(u.input_tokens + excluded.input_tokens, u.input_tokens, excluded.input_tokens),
            output_tokens =
                coalesce(u.output_tokens + excluded.output_tokens, u.output_tokens, excluded.output_tokens),
            predict_seconds =
                coalesce(u.predict_seconds + excluded.predict_seconds, u.predict_seconds, excluded.predict_seconds),
            cost = coalesce(u.cost + excluded.cost, u.cost, excluded.cost), updated_at = now()
    ), noted AS (
        INSERT INTO objects_to_delete (name)
        SELECT name FROM (
            SELECT o.object_name AS name FROM doomed d JOIN outputs o ON o.task_id = d.id
            UNION
            SELECT e.payload->'output'->>'object_name' FROM doomed d
            JOIN task_events e ON e.task_id = d.id AND e.type = 'output_stored'
        ) known
        WHERE name <> '' ORDER BY name
        ON CONFLICT DO NOTHING RETURNING name
    ), emptied AS (
        UPDATE webhook_events w SET
            payload = '{}', processed = true, processed_at = coalesce(w.processed_at, now()), updated_at = now()
        FROM attempts a
        WHERE w.prediction_external_id = a.external_id AND (w.task_id = a.task_id OR w.task_id IS NULL)
    ), unlisted AS (
        DELETE FROM jobs j USING doomed d
        WHERE j.id = d.job_id AND j.state IN ('completed', 'cancelled', 'discarded')
    ), gone AS (
        DELETE FROM tasks t USING doomed d WHERE t.id = d.id RETURNING t.id
    )
    SELECT (SELECT count(*) FROM gone), (SELECT coalesce(array_agg(name), '{}') FROM noted)
"""
# The row stays, and says that there was an output.
EXPIRE: LiteralString = """
    WITH expired AS (
        UPDATE outputs SET removed_at = now(), updated_at = now() WHERE id IN (
            SELECT id FROM outputs WHERE expires_at < now() AND removed_at IS NULL
            ORDER BY expires_at LIMIT %s FOR UPDATE SKIP LOCKED)
        RETURNING object_name
    ), noted AS (
        INSERT INTO objects_to_delete (name)
        SELECT DISTINCT object_name FROM expired WHERE object_name <> '' ORDER BY 1 ON CONFLICT DO NOTHING
    )
    SELECT count(*) FROM expired
"""
NOTE: LiteralString = """
    INSERT INTO objects_to_delete (name, due_at)
    SELECT name, now() + %s * interval '1 second' FROM unnest(%s::text[]) AS name ORDER BY name ON CONFLICT DO NOTHING
"""
# Recorded is what the task's last attempt has stored; what earlier ones did is void once the task is over. As long as
# it is not over, or an attempt of its may be taken up again, all is left alone.
UNRECORDED: LiteralString = """
    SELECT wanted.name FROM unnest(%s::text[], %s::uuid[]) AS wanted(name, task_id)
    WHERE NOT EXISTS (
        SELECT FROM tasks t WHERE t.id = wanted.task_id AND (
            t.status IN ('queued', 'processing')
            OR EXISTS (SELECT FROM predictions p WHERE p.task_id = t.id AND p.provider_completed_at IS NULL)
            OR EXISTS (SELECT FROM outputs o WHERE o.task_id = t.id AND o.attempt = t.attempt
                AND o.object_name = wanted.name)))
"""
REACHED: LiteralString = "SELECT reached FROM artifact_sweeps WHERE store = %s"
REACH: LiteralString = """
    INSERT INTO artifact_sweeps (store, reached) VALUES (%s, %s)
    ON CONFLICT (store) DO UPDATE SET reached = excluded.reached, updated_at = now()
"""
OWNER: LiteralString = """
    INSERT INTO artifact_sweeps (store, reached) VALUES ('owner', gen_random_uuid()::text) ON CONFLICT DO NOTHING
"""
DUE: LiteralString = "SELECT name FROM objects_to_delete WHERE due_at <= now() ORDER BY due_at LIMIT %s"
CROSS_OFF: LiteralString = "DELETE FROM objects_to_delete WHERE name = ANY(%s)"
# A store that fails is asked again after 2, 4, 8, … minutes, at most a day.
PUT_OFF: LiteralString = """
    UPDATE objects_to_delete SET failures = failures + 1, updated_at = now(),
        due_at = now() + least(interval '1 day', interval '1 minute' * 2 ^ least(failures + 1, 20))
    WHERE name = ANY(%s)
"""


@define(eq=False)
class Removal:
    """Every method raises StorageDown when the database is away."""

    pool: Pool

    async def delete(self, task_id: UUID) -> tuple[str, ...] | None:
        """Deletes a task that is over; the names of its files, which are noted. None: not there, or not over."""
        count, names = await self._remove(ONE, {"task": task_id})
        return names if count else None

    async def delete_archived(self, archived_for: float, limit: int = BATCH) -> int:
        """Deletes tasks that were archived more than `archived_for` seconds ago; how many. Their files are noted."""
        count, _ = await self._remove(ARCHIVED, {"seconds": archived_for, "limit": limit})
        return count

    async def note(self, names: Sequence[str], after: float = 0.0) -> None:
        """These files are to be deleted, `after` so many seconds."""
        async with self.pool.connection() as connection:
            await connection.execute(NOTE, (after, list(names)))

    async def unrecorded(self, names: Mapping[str, UUID]) -> tuple[str, ...]:
        """Those of these files, each with its task, that no task has on record or may still come to have."""
        async with self.pool.connection() as connection:
            cursor = await connection.execute(UNRECORDED, (list(names), list(names.values())))
            return tuple([row[0] for row in await cursor.fetchall()])

    async def owner(self) -> str:
        """Who this database is among those that may share a bucket."""
        async with self.pool.connection() as connection:
            await connection.execute(OWNER)
            cursor = await connection.execute(REACHED, ("owner",))
            ((owner,),) = await cursor.fetchall()
        return str(owner)

    async def reached(self) -> str:
        """How far the search for files that nobody recorded has come: a name, or nothing at its beginning."""
        async with self.pool.connection() as connection:
            cursor = await connection.execute(REACHED, ("artifacts",))
            row = await cursor.fetchone()
        return row[0] if row else ""

    async def reach(self, name: str) -> None:
        """The search goes on from there."""
        async with self.pool.connection() as connection:
            await connection.execute(REACH, ("artifacts", name))

    async def expire(self, limit: int = BATCH) -> int:
        """Marks outputs whose time is over; how many. Their files are noted."""
        async with self.pool.connection() as connection:
            cursor = await connection.execute(EXPIRE, (limit,))
            ((count,),) = await cursor.fetchall()
        return int(count)

    async def due(self, limit: int = BATCH) -> tuple[str, ...]:
        """Names of files that are to be deleted now."""
        async with self.pool.connection() as connection:
            cursor = await connection.execute(DUE, (limit,))
            return tuple([row[0] for row in await cursor.fetchall()])

    async def cross_off(self, names: Sequence[str]) -> None:
        """These files are gone."""
        async with self.pool.connection() as connection:
            await connection.execute(CROSS_OFF, (list(names),))

    async def put_off(self, names: Sequence[str]) -> None:
        """These files could not be deleted now."""
        async with self.pool.connection() as connection:
            await connection.execute(PUT_OFF, (list(names),))

    async def _remove(self, which: LiteralString, wanted: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
        async with self.pool.connection() as connection:
            query: LiteralString = f"WITH doomed AS MATERIALIZED ({which}), {REMOVE}"
            cursor = await connection.execute(query, wanted, prepare=False)
            ((count, names),) = await cursor.fetchall()
        return count, tuple(names)
