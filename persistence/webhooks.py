"""Deliveries of webhooks: stored once each, many in one commit, before anybody acts on them.

Whoever brings a delivery waits for the commit that it shares with its neighbours. `WebhookStore` is a plain object,
made before the supervision tree; `run` is the body of the process that writes.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import trio
from attrs import define, field, frozen

from engine.ports import StorageDown
from persistence.connection import TrioConnection
from persistence.encoding import array, clean_text, to_json
from persistence.pool import Pool

log = logging.getLogger(__name__)

BATCH = 256
BATCH_BYTES = 4 * 1024 * 1024
BOUND = 5_000
"""Deliveries that may wait; beyond them the sender is told to come again."""
WRITE_TIMEOUT = 8.0
"""Seconds after which a write that gets no answer counts as an outage."""

# Both statements take rows in one order, so that servers which get the same deliveries never wait in a circle.
ADD: LiteralString = """
    INSERT INTO webhook_events (webhook_id, task_id, prediction_external_id, event_type, payload)
    SELECT DISTINCT ON (webhook_id) webhook_id, task_id, prediction_external_id, event_type, payload
    FROM jsonb_to_recordset(%s) AS d(
        n int, webhook_id text, task_id uuid, prediction_external_id text, event_type text, payload jsonb)
    ORDER BY webhook_id, n
    ON CONFLICT (webhook_id) DO NOTHING RETURNING webhook_id
"""
DONE: LiteralString = """
    WITH held AS MATERIALIZED (
        SELECT id FROM webhook_events WHERE webhook_id = ANY(%s) AND NOT processed ORDER BY id FOR NO KEY UPDATE
    )
    UPDATE webhook_events w SET processed = true, processed_at = now(), updated_at = now()
    FROM held WHERE w.id = held.id
"""
# A delivery may be the first word of an attempt whose request to the provider got no answer: it brings the id.
RECEIVED: LiteralString = """
    WITH held AS MATERIALIZED (
        SELECT p.id, told.external_id
        FROM unnest(%s::uuid[], %s::text[], %s::text[]) AS told(attempt, provider, external_id)
        JOIN predictions p ON p.id = told.attempt AND p.provider = told.provider
        WHERE p.external_id = told.external_id OR p.external_id IS NULL AND NOT EXISTS (
            SELECT FROM predictions o WHERE o.provider = told.provider AND o.external_id = told.external_id)
        ORDER BY p.id FOR NO KEY UPDATE OF p
    )
    UPDATE predictions p SET
        webhook_received_at = now(), external_id = coalesce(p.external_id, held.external_id), updated_at = now()
    FROM held WHERE p.id = held.id
"""
RECEIVED_UNNAMED: LiteralString = """
    WITH held AS MATERIALIZED (
        SELECT p.id FROM unnest(%s::text[], %s::text[]) AS told(provider, external_id)
        JOIN predictions p ON p.provider = told.provider AND p.external_id = told.external_id
        ORDER BY p.id FOR NO KEY UPDATE OF p
    )
    UPDATE predictions p SET webhook_received_at = now(), updated_at = now() FROM held WHERE p.id = held.id
"""
STORED: LiteralString = "SELECT payload FROM webhook_events WHERE webhook_id = %s"


@frozen
class Delivery:
    """One delivery. `webhook_id` is the sender's own id of it, by which it is known again."""

    webhook_id: str
    task_id: UUID | None
    prediction_external_id: str
    event_type: str
    payload: dict[str, Any] = field(repr=False)


@frozen
class Done:
    """What is noted of a delivery that has had its effect. `attempt` is what its URL named, if anything."""

    webhook_id: str
    provider: str
    external_id: str
    attempt: UUID | None


@define(eq=False)
class Waiting:
    """A delivery on its way, and how it ended: `new` or not, or the `problem`."""

    webhook_id: str
    row: bytes
    ended: trio.Event = field(factory=trio.Event)
    new: bool = False
    problem: Exception | None = None

    def end(self, new: bool = False, problem: Exception | None = None) -> None:
        self.new, self.problem = new, problem
        self.ended.set()


@define(eq=False)
class WebhookStore:
    """`add` raises StorageDown when the database is away: the sender is answered 503 and delivers again."""

    pool: Pool
    bound: int = BOUND
    commits: int = field(init=False, default=0)
    _waiting: deque[Waiting] = field(init=False, factory=deque)
    _done: list[Done] = field(init=False, factory=list)
    _work: trio.Event = field(init=False, factory=trio.Event)

    async def add(self, delivery: Delivery) -> bool:
        """Stores a delivery; False when it was there already. Committed when this returns.

        Raises:
            StorageDown: it is not known to be stored. Adding it again is harmless.
        """
        if not self.pool.up or len(self._waiting) >= self.bound:
            raise StorageDown("the database is away" if not self.pool.up else "too many deliveries wait to be stored")
        waiting = Waiting(clean_text(delivery.webhook_id), _row(len(self._waiting), delivery))
        self._waiting.append(waiting)
        self._work.set()
        with trio.move_on_after(2 * WRITE_TIMEOUT):
            await waiting.ended.wait()
        if waiting.problem or not waiting.ended.is_set():
            raise waiting.problem or StorageDown("the delivery was not stored in time")
        return waiting.new

    def done(self, delivery: Delivery, provider: str, attempt: UUID | None = None) -> None:
        """The delivery has had its effect: noted with the next commit, in its row and in that of its attempt.

        A crash before it loses the note alone.
        """
        if len(self._done) < self.bound:
            identifier, external_id = clean_text(delivery.webhook_id), clean_text(delivery.prediction_external_id)
            self._done.append(Done(identifier, provider, external_id, attempt))
            self._work.set()

    async def stored(self, webhook_id: str) -> dict[str, Any] | None:
        """The payload of a delivery. Raises StorageDown."""
        async with self.pool.connection() as connection:
            row = await (await connection.execute(STORED, (clean_text(webhook_id),))).fetchone()
        return row[0] if row else None

    async def run(self) -> None:
        """The body of the process: writes what waits, all of it that fits in one commit, until cancelled."""
        while True:
            await self._work.wait()
            await self._round()
            if not self._waiting and not self._done:
                self._work = trio.Event()

    async def _round(self) -> None:
        batch, done = self._take(), self._done
        self._done = []
        try:
            await self._write(batch, done)
        except StorageDown as problem:
            self._done = [*done, *self._done]
            _fail(batch, problem)
            await self.pool.wait_up()
        finally:
            _fail(batch, StorageDown("the server ends"))

    def _take(self) -> list[Waiting]:
        batch: list[Waiting] = []
        size = 0
        while self._waiting and len(batch) < BATCH and size < BATCH_BYTES:
            batch.append(self._waiting.popleft())
            size += len(batch[-1].row)
        return batch

    async def _write(self, batch: Sequence[Waiting], done: Sequence[Done]) -> None:
        """Stores a batch; a delivery that PostgreSQL does not take fails alone. Raises StorageDown."""
        try:
            new = await self._commit(batch, done)
        except psycopg.Error as problem:
            if done:
                log.warning("%d deliveries are not marked as processed: %s", len(done), problem)
                await self._write(batch, ())
            elif len(batch) > 1:
                middle = len(batch) // 2
                await self._write(batch[:middle], ())
                await self._write(batch[middle:], ())
            else:
                _fail(batch, problem)
            return
        for waiting in batch:
            waiting.end(new=waiting.webhook_id in new)
            new.discard(waiting.webhook_id)  # the same delivery twice in one batch is new once

    async def _commit(self, batch: Sequence[Waiting], done: Sequence[Done]) -> set[str]:
        """One transaction; the ids that were new."""
        with trio.move_on_after(WRITE_TIMEOUT):
            async with self.pool.connection(WRITE_TIMEOUT) as connection:
                added = None
                async with connection.pipeline(), connection.transaction():
                    if batch:
                        added = await connection.execute(ADD, (array([waiting.row for waiting in batch]),))
                    if done:
                        await _mark(connection, done)
                self.commits += 1
                return {row[0] for row in await added.fetchall()} if added else set()
        raise StorageDown(f"deliveries could not be stored within {WRITE_TIMEOUT:.0f} s")


async def _mark(connection: TrioConnection, done: Sequence[Done]) -> None:
    await connection.execute(DONE, (list({each.webhook_id for each in done}),))
    named = {each.attempt: (each.provider, each.external_id) for each in done if each.attempt}
    if named:
        providers, predictions = zip(*named.values(), strict=True)
        await connection.execute(RECEIVED, (list(named), list(providers), list(predictions)))
    if unnamed := {(each.provider, each.external_id) for each in done if not each.attempt}:
        providers, predictions = zip(*unnamed, strict=True)
        await connection.execute(RECEIVED_UNNAMED, (list(providers), list(predictions)))


def _fail(batch: Sequence[Waiting], problem: Exception) -> None:
    for waiting in batch:
        if not waiting.ended.is_set():
            waiting.end(problem=problem)


def _row(number: int, delivery: Delivery) -> bytes:
    """Encoded by whoever brings it, so that what cannot be encoded is their trouble."""
    return to_json(
        {
            "n": number,
            "webhook_id": delivery.webhook_id,
            "task_id": delivery.task_id,
            "prediction_external_id": delivery.prediction_external_id,
            "event_type": delivery.event_type,
            "payload": delivery.payload,
        }
    )
