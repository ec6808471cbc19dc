"""What was bought for whom: the record of predictions, as the settlement and the bill need it.

Implements `engine.providers.settlement.Ledger`. The rows are written by the journal; here is only what becomes known
when an attempt is over.
"""

from __future__ import annotations

from typing import LiteralString
from uuid import UUID

from attrs import asdict, define, frozen
from psycopg.rows import class_row

from engine.providers.settlement import Doubt, Settled
from engine.tasks.events import Usage
from persistence.encoding import document
from persistence.pool import Pool

# Over for good: the task is, or it has gone on to another prediction.
IN_DOUBT: LiteralString = """
    SELECT p.id, p.task_id, t.model_id, p.external_id, p.status, p.input, p.duplicates, p.beside,
        extract(epoch FROM coalesce(p.provider_started_at, p.created_at))::float8 AS began_at,
        extract(epoch FROM coalesce(p.provider_completed_at, t.completed_at, p.updated_at))::float8 AS ended_at
    FROM predictions p JOIN tasks t ON t.id = p.task_id
    WHERE p.provider = %s AND (p.in_doubt OR p.provider_completed_at IS NULL)
      AND (t.status IN ('completed', 'failed', 'cancelled') OR EXISTS (
          SELECT FROM predictions n WHERE n.task_id = p.task_id AND n.attempt > p.attempt))
    ORDER BY p.id LIMIT %s
"""
# What is known already stands, and what was paid beside it is added, once: only what is in doubt is settled, and only
# when nothing was noted since it was read. A row that is open belongs to who runs it, or to the task's end.
SETTLE: LiteralString = """
    UPDATE predictions p SET
        in_doubt = false, external_id = coalesce(external_id, (
            SELECT told.id FROM (SELECT %(external_id)s::text AS id) told WHERE NOT EXISTS (
                SELECT FROM predictions o WHERE o.provider = p.provider AND o.external_id = told.id))),
        status = CASE WHEN status = 'succeeded' THEN status ELSE coalesce(%(status)s, status) END,
        metrics = coalesce(metrics, %(metrics)s),
        duplicates = CASE WHEN %(searched)s AND duplicates IS NOT NULL THEN cardinality(beside) ELSE duplicates END,
        input_tokens = coalesce(coalesce(input_tokens, %(input_tokens)s) + %(more_input_tokens)s,
            input_tokens, %(input_tokens)s, %(more_input_tokens)s),
        output_tokens = coalesce(coalesce(output_tokens, %(output_tokens)s) + %(more_output_tokens)s,
            output_tokens, %(output_tokens)s, %(more_output_tokens)s),
        predict_seconds = coalesce(coalesce(predict_seconds, %(predict_seconds)s) + %(more_predict_seconds)s,
            predict_seconds, %(predict_seconds)s, %(more_predict_seconds)s),
        cost_estimate = coalesce(coalesce(cost_estimate, %(cost)s) + %(more_cost)s,
            cost_estimate, %(cost)s, %(more_cost)s),
        provider_completed_at = coalesce(provider_completed_at, now()), updated_at = now()
    WHERE id = %(id)s AND beside = %(beside)s::text[] AND (%(searched)s OR duplicates IS NULL)
      AND (in_doubt OR provider_completed_at IS NULL AND EXISTS (
        SELECT FROM tasks t WHERE t.id = p.task_id AND t.status IN ('completed', 'failed', 'cancelled')))
"""
# Noted once, however often it is told. What it cost is added when the row is settled, for whoever runs it still writes
# its own figures; in a row that is settled already, at once.
ADD: LiteralString = """
    UPDATE predictions p SET
        beside = array_append(beside, %(external_id)s),
        duplicates = greatest(before.duplicates, cardinality(beside) + 1),
        in_doubt = before.open,
        input_tokens = CASE WHEN before.open THEN input_tokens
            ELSE coalesce(input_tokens + %(input_tokens)s, input_tokens, %(input_tokens)s) END,
        output_tokens = CASE WHEN before.open THEN output_tokens
            ELSE coalesce(output_tokens + %(output_tokens)s, output_tokens, %(output_tokens)s) END,
        predict_seconds = CASE WHEN before.open THEN predict_seconds
            ELSE coalesce(predict_seconds + %(predict_seconds)s, predict_seconds, %(predict_seconds)s) END,
        cost_estimate = CASE WHEN before.open THEN cost_estimate
            ELSE coalesce(cost_estimate + %(cost)s, cost_estimate, %(cost)s) END,
        updated_at = now()
    FROM (
        SELECT id, coalesce(duplicates, 0) AS duplicates, in_doubt OR provider_completed_at IS NULL AS open
        FROM predictions WHERE id = %(id)s FOR UPDATE
    ) before
    WHERE p.id = before.id AND NOT beside @> ARRAY[%(external_id)s]
    RETURNING p.duplicates > before.duplicates
"""
KNOWN: LiteralString = """
    SELECT 1 FROM predictions WHERE provider = %(provider)s AND external_id = %(external_id)s AND id <> %(attempt)s
    UNION ALL SELECT 1 FROM predictions WHERE beside <> '{}' AND beside @> ARRAY[%(external_id)s]
"""
WANTED: LiteralString = "SELECT status NOT IN ('completed', 'failed', 'cancelled') FROM tasks WHERE id = %s"
OF_TASK: LiteralString = """
    SELECT id, attempt, provider, external_id, status, error_message, input_tokens, output_tokens, predict_seconds,
        cost_estimate AS cost, coalesce(duplicates, 0) AS duplicates,
        in_doubt OR provider_completed_at IS NULL AS open,
        extract(epoch FROM provider_started_at)::float8 AS started_at,
        extract(epoch FROM provider_completed_at)::float8 AS completed_at
    FROM predictions WHERE task_id = %s ORDER BY attempt, created_at
"""


@frozen
class Bought:
    """One prediction of a task, as a bill would list it: US dollars, seconds of run time, Unix times.

    `open`: its end is not known yet. `duplicates`: calls that were or may have been paid beside it.
    """

    id: UUID
    attempt: int
    provider: str
    external_id: str | None
    status: str
    error_message: str | None
    input_tokens: int | None
    output_tokens: int | None
    predict_seconds: float | None
    cost: float | None
    duplicates: int
    open: bool
    started_at: float | None
    completed_at: float | None


@define(eq=False)
class Bills:
    """Every method raises StorageDown when the database is away."""

    pool: Pool

    async def in_doubt(self, provider: str, limit: int) -> tuple[Doubt, ...]:
        """Attempts that are over for good and not settled, oldest first."""
        async with self.pool.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Doubt))
            await cursor.execute(IN_DOUBT, (provider, limit))
            return tuple(await cursor.fetchall())

    async def settle(self, attempt_id: UUID, settled: Settled) -> bool:
        """Writes down how an attempt ended at its provider; False when it is settled, or not over."""
        values = {
            "id": attempt_id,
            "external_id": settled.external_id,
            "status": settled.status,
            "metrics": document(settled.metrics) if settled.metrics else None,
            "searched": settled.searched,
            "beside": settled.beside,
            **asdict(settled.usage),
            **{f"more_{name}": figure for name, figure in asdict(settled.more).items()},
        }
        async with self.pool.connection() as connection:
            return (await connection.execute(SETTLE, values)).rowcount > 0

    async def add(self, attempt_id: UUID, external_id: str, usage: Usage) -> bool:
        """One more prediction was paid for this attempt; whether that had not been reckoned with."""
        async with self.pool.connection() as connection:
            cursor = await connection.execute(ADD, {"id": attempt_id, "external_id": external_id, **asdict(usage)})
            row = await cursor.fetchone()
        return bool(row and row[0])

    async def known(self, provider: str, external_id: str, attempt_id: UUID) -> bool:
        """Whether another attempt than this has the provider's prediction on record, or any has it beside its own."""
        values = {"provider": provider, "external_id": external_id, "attempt": attempt_id}
        async with self.pool.connection() as connection:
            cursor = await connection.execute(KNOWN, values)
            return await cursor.fetchone() is not None

    async def wanted(self, task_id: UUID) -> bool:
        """Whether a task is there and not over."""
        async with self.pool.connection() as connection:
            row = await (await connection.execute(WANTED, (task_id,))).fetchone()
        return bool(row and row[0])

    async def of_task(self, task_id: UUID) -> tuple[Bought, ...]:
        """What was bought for a task, in the order of its attempts."""
        async with self.pool.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Bought))
            await cursor.execute(OF_TASK, (task_id,))
            return tuple(await cursor.fetchall())
