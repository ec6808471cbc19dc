"""What users' tasks have used, by day and model: from the rows of their attempts, and what deleted ones left behind.

A day is one of UTC, and an attempt belongs to the day on which it ended (or began, while it runs).
Implements `engine.ports.Spending`. May import psycopg.
"""

from __future__ import annotations

from datetime import date
from typing import LiteralString

from attrs import define, frozen
from psycopg.rows import class_row

from persistence.encoding import storable
from persistence.pool import Pool

# A late delivery may date an attempt's end after its task's; a day more of tasks is looked through for that.
ATTEMPTS: LiteralString = """
    SELECT t.model, p.task_id, (p.at AT TIME ZONE 'UTC')::date AS day, p.input_tokens, p.output_tokens,
        p.predict_seconds, p.cost_estimate
    FROM tasks t JOIN LATERAL (
        SELECT *, coalesce(provider_completed_at, provider_started_at, created_at) AS at
        FROM predictions WHERE task_id = t.id
    ) p ON p.at >= %(since)s::date::timestamp AT TIME ZONE 'UTC'
    WHERE t.user_id = (SELECT id FROM users WHERE external_id = %(user)s)
      AND coalesce(t.completed_at, 'infinity')
          >= (%(since)s::date - 1)::timestamp AT TIME ZONE 'UTC'
"""
LIVING: LiteralString = f"""
    SELECT day, model, count(DISTINCT task_id) AS tasks, count(*) AS attempts, sum(input_tokens) AS input_tokens,
        sum(output_tokens) AS output_tokens, sum(predict_seconds) AS predict_seconds, sum(cost_estimate) AS cost
    FROM ({ATTEMPTS}) attempts GROUP BY day, model
"""
DELETED: LiteralString = """
    SELECT day, model, tasks, attempts, input_tokens, output_tokens, predict_seconds, cost FROM usage_of_deleted
    WHERE user_id = (SELECT id FROM users WHERE external_id = %(user)s) AND day >= %(since)s
"""
BY_DAY: LiteralString = f"""
    SELECT day, model, sum(tasks)::bigint AS tasks, sum(attempts)::bigint AS attempts,
        sum(input_tokens)::bigint AS input_tokens, sum(output_tokens)::bigint AS output_tokens,
        sum(predict_seconds) AS predict_seconds, sum(cost) AS cost
    FROM ({LIVING} UNION ALL {DELETED}) used GROUP BY day, model ORDER BY day DESC, model
"""


@frozen
class DayOfUse:
    """What the attempts of a day used of one model: tokens, seconds, US dollars. None: no attempt told."""

    day: date
    model: str
    tasks: int
    attempts: int
    input_tokens: int | None
    output_tokens: int | None
    predict_seconds: float | None
    cost: float | None


@define(eq=False)
class UsageStore:
    """Every method raises StorageDown when the database is away."""

    pool: Pool

    async def since(self, user: str, first: date) -> tuple[DayOfUse, ...]:
        """The user's days from `first` on, latest first; a day without attempts is absent."""
        if not storable(user):
            return ()
        async with self.pool.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(DayOfUse))
            await cursor.execute(BY_DAY, {"user": user, "since": first}, prepare=False)  # a user's tasks may be many
            return tuple(await cursor.fetchall())

    async def spent_on(self, user: str, day: date) -> float:
        """US dollars that the user's attempts which ended on this day cost."""
        return sum(used.cost or 0.0 for used in await self.since(user, day) if used.day == day)
