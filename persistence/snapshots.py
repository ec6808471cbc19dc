"""Snapshots: the latest state of each task that changed, written behind the TaskServers' backs in batches.

A TaskServer says `dirty(state)` as often as it likes; only the newest state counts. Nobody waits for a snapshot, and
losing one loses nothing: the log is the truth, a snapshot shortens its replay and keeps progress and text.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from typing import LiteralString
from uuid import UUID

import trio
from attrs import define, field

from engine.ports import StorageDown
from engine.tasks import codec
from engine.tasks.state import TaskState
from persistence.encoding import NUL, array, to_json
from persistence.pool import Pool

log = logging.getLogger(__name__)

BATCH = 500
"""States in one statement."""
AT_ONCE = 50
"""States that are encoded between two looks at the loop: well below a millisecond."""

# Nobody was promised this snapshot, so its commit does not wait for the disk; the log's commits all do. A crash of
# PostgreSQL may lose the last moments of progress and text, and nothing else: older snapshots and the log remain.
RELAXED: LiteralString = "SET LOCAL synchronous_commit = off"

# A snapshot must never be ahead of the log (its last event may still be on its way to it), nor go back in time.
SAVE: LiteralString = """
    INSERT INTO task_snapshots AS s (task_id, seq, schema_version, state)
    SELECT (b.state->>'id')::uuid, (b.state->>'seq')::bigint, %s, b.state
    FROM jsonb_array_elements(%s) AS b(state)
    WHERE (SELECT true FROM task_events e
           WHERE e.task_id = (b.state->>'id')::uuid AND e.seq = (b.state->>'seq')::bigint LIMIT 1)
    ORDER BY 1
    ON CONFLICT (task_id) DO UPDATE SET seq = excluded.seq, schema_version = excluded.schema_version,
        state = excluded.state, taken_at = now()
    WHERE s.seq <= excluded.seq
"""
FORGET: LiteralString = """
    WITH held AS MATERIALIZED (
        SELECT task_id FROM task_snapshots WHERE task_id = ANY(%s) ORDER BY task_id FOR UPDATE
    )
    DELETE FROM task_snapshots s USING held WHERE s.task_id = held.task_id
"""


@define(eq=False)
class Snapshotter:
    """Implements `engine.ports.Snapshots` and `SnapshotStore`. `interval` is in seconds."""

    pool: Pool
    interval: float = 5.0
    saved: int = field(init=False, default=0)
    _dirty: dict[UUID, TaskState] = field(init=False, factory=dict)
    _gone: set[UUID] = field(init=False, factory=set)

    def dirty(self, state: TaskState) -> None:
        """The task has changed. Costs a dictionary's assignment."""
        self._dirty[state.id] = state

    def forget(self, task_id: UUID) -> None:
        """The task is finished: it needs no snapshot any more."""
        self._dirty.pop(task_id, None)
        self._gone.add(task_id)

    @property
    def waiting(self) -> int:
        return len(self._dirty)

    async def run(self) -> None:
        """The body of the snapshotter's process: a round every `interval`, until cancelled."""
        while True:
            await trio.sleep(self.interval)
            try:
                await self.round()
            except StorageDown as problem:
                log.warning("no snapshots now: %s", problem)
                await self.pool.wait_up()

    async def finish(self) -> None:
        """A last round, unless the database is away: it loses nothing but the last moments of progress."""
        if self.pool.up:
            await self.round()

    async def round(self) -> None:
        """Writes what has changed since the last round. Raises StorageDown; what was not written stays dirty."""
        changed, self._dirty = self._dirty, {}
        try:
            while changed:
                batch = list(islice(changed.values(), BATCH))
                await self.save(batch)
                for state in batch:
                    del changed[state.id]
        finally:
            # newer states may have come meanwhile: they win
            self._dirty = {**changed, **self._dirty}
        await self._delete()

    async def save(self, states: Sequence[TaskState]) -> None:
        """Writes one snapshot for each state, in one batch."""
        rows = []
        for number, state in enumerate(states, 1):
            rows.append(_encode(state))
            if not number % AT_ONCE:
                await trio.lowlevel.checkpoint()
        async with self.pool.connection() as connection, connection.pipeline(), connection.transaction():
            await connection.execute(RELAXED)
            await connection.execute(SAVE, (codec.SNAPSHOT_VERSION, array(rows)))
        self.saved += len(rows)

    async def _delete(self) -> None:
        gone, self._gone = self._gone, set()
        try:
            if gone:
                async with self.pool.connection() as connection:
                    await connection.execute(FORGET, (list(gone),))
        except BaseException:
            self._gone |= gone
            raise


def _encode(state: TaskState) -> bytes:
    try:
        encoded = codec.encode_state(state)
    except UnicodeEncodeError:
        return to_json(state)
    return to_json(state) if NUL in encoded else encoded
