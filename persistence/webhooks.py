"""Deliveries of webhooks, stored once each, before anybody acts on them."""

from __future__ import annotations

from typing import Any, LiteralString
from uuid import UUID

from attrs import define, frozen
from psycopg.rows import class_row

from persistence.encoding import clean_text, document
from persistence.pool import Pool

ADD: LiteralString = """
    INSERT INTO webhook_events (webhook_id, task_id, prediction_external_id, event_type, payload)
    VALUES (%s, %s, %s, %s, %s) ON CONFLICT (webhook_id) DO NOTHING
"""
DONE: LiteralString = """
    UPDATE webhook_events SET processed = true, processed_at = now(), updated_at = now()
    WHERE webhook_id = %s AND NOT processed
"""
RECEIVED: LiteralString = """
    UPDATE predictions SET webhook_received_at = now(), updated_at = now() WHERE provider = %s AND external_id = %s
"""
OPEN: LiteralString = """
    SELECT webhook_id, task_id, prediction_external_id, event_type, payload
    FROM webhook_events WHERE NOT processed ORDER BY created_at LIMIT %s
"""


@frozen
class Delivery:
    """One delivery. `webhook_id` is the sender's own id of it, by which it is known again."""

    webhook_id: str
    task_id: UUID | None
    prediction_external_id: str
    event_type: str
    payload: dict[str, Any]


@define(eq=False)
class WebhookStore:
    """Every method raises StorageDown when the database is away: the sender is answered 503 and delivers again."""

    pool: Pool

    async def add(self, delivery: Delivery) -> bool:
        """Stores a delivery; False when it was there already. Committed when this returns."""
        values = (
            clean_text(delivery.webhook_id),
            delivery.task_id,
            clean_text(delivery.prediction_external_id),
            delivery.event_type,
            document(delivery.payload),
        )
        async with self.pool.connection() as connection:
            cursor = await connection.execute(ADD, values)
        return cursor.rowcount > 0

    async def processed(self, delivery: Delivery, provider: str) -> None:
        """The delivery has had its effect."""
        async with self.pool.connection() as connection, connection.transaction():
            await connection.execute(DONE, (delivery.webhook_id,))
            await connection.execute(RECEIVED, (provider, delivery.prediction_external_id))

    async def unprocessed(self, limit: int = 100) -> tuple[Delivery, ...]:
        """Deliveries whose effect was cut short, oldest first."""
        async with self.pool.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Delivery))
            await cursor.execute(OPEN, (limit,))
            return tuple(await cursor.fetchall())
