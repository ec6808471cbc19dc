"""Tasks read back: snapshot and tail, the log, history by pages, what is unfinished.

Implements `engine.ports.TaskStore`. Reads only; everything is written through the journal. A live task is never
read here: its TaskServer has it.
"""

from __future__ import annotations

import base64
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, LiteralString
from uuid import UUID

import trio
from attrs import define, frozen
from psycopg.rows import dict_row

from engine.errors import UserError
from engine.ports import Page, PredictionChange
from engine.tasks import codec
from engine.tasks.events import Output, TaskEvent, Usage
from engine.tasks.state import Status, TaskError, TaskState, fold
from persistence.connection import TrioConnection
from persistence.encoding import storable
from persistence.pool import Pool

log = logging.getLogger(__name__)

MAX_LIMIT = 500
AT_ONCE = 25
"""Tasks that are replayed between two looks at the loop: about a millisecond."""

EVENT: LiteralString = "e.task_id, e.seq, extract(epoch FROM e.at)::float8, e.attempt, e.actor, e.type, e.payload"

TASK: LiteralString = """
    t.id, u.external_id AS user, t.model_id, t.model, t.provider, t.input, t.priority, t.max_attempts, t.queue,
    t.job_id, t.status, t.attempt, t.version AS seq, t.progress, t.estimated_duration_seconds AS eta_seconds,
    coalesce(t.response, '') AS text, t.usage, t.error_code, t.error_message, t.error_action, t.error_retryable,
    extract(epoch FROM t.will_retry_at)::float8 AS will_retry_at, t.idempotency_key, t.trace_parent,
    extract(epoch FROM t.created_at)::float8 AS created_at, extract(epoch FROM t.started_at)::float8 AS started_at,
    extract(epoch FROM t.completed_at)::float8 AS completed_at
"""

OUTPUT: LiteralString = """
    o.index, o.type, o.format, o.cloud_url AS content_url, o.content_type, o.file_size_bytes, o.sha256, o.object_name,
    o.temporary_url, o.dimensions, o.duration_seconds, o.metadata,
    extract(epoch FROM o.expires_at)::float8 AS expires_at
"""

# The user's id is fetched first and the rest follows tasks_history: newest first, no sort, whatever the table's size.
HISTORY: LiteralString = f"""
    SELECT {TASK}, (extract(epoch FROM t.created_at) * 1000000)::bigint AS microseconds
    FROM tasks t JOIN users u ON u.id = t.user_id
    WHERE t.user_id = (SELECT id FROM users WHERE external_id = %(user)s) AND t.archived_at IS NULL
"""
BEFORE: LiteralString = """
    AND (t.created_at, t.id) < ('epoch'::timestamptz + %(at)s * interval '1 microsecond', %(id)s::uuid)
"""
UNFINISHED: LiteralString = """
    SELECT t.id, s.schema_version, s.seq, s.state
    FROM tasks t LEFT JOIN task_snapshots s ON s.task_id = t.id
    WHERE t.status IN ('queued', 'processing')
"""
AFTER: LiteralString = """
    AND (t.priority, t.created_at, t.id) > (%(priority)s::smallint, to_timestamp(%(at)s), %(id)s::uuid)
"""
LOG: LiteralString = f"SELECT {EVENT} FROM task_events e WHERE task_id = %s AND seq > %s ORDER BY seq LIMIT %s"
TAILS: LiteralString = f"""
    SELECT {EVENT} FROM unnest(%s::uuid[], %s::bigint[]) AS wanted(task_id, seq)
    JOIN task_events e ON e.task_id = wanted.task_id AND e.seq > wanted.seq
    ORDER BY e.task_id, e.seq
"""
AHEAD: LiteralString = """
    SELECT known.id FROM unnest(%s::uuid[], %s::bigint[]) AS known (id, seq)
    WHERE EXISTS (SELECT FROM task_events e WHERE e.task_id = known.id AND e.seq > known.seq)
"""

OPEN_PREDICTION: LiteralString = """
    SELECT id, task_id, attempt, provider, status, input, external_id, output, logs, metrics, error_message,
        extract(epoch FROM provider_started_at)::float8 AS started_at, held_by,
        extract(epoch FROM held_since)::float8 AS held_since,
        nullif(jsonb_strip_nulls(jsonb_build_object('input_tokens', input_tokens, 'output_tokens', output_tokens,
            'predict_seconds', predict_seconds, 'cost', cost_estimate)), '{}') AS usage
    FROM predictions WHERE task_id = %s AND provider_completed_at IS NULL
    ORDER BY attempt DESC, created_at DESC LIMIT 1
"""

OPEN_ATTEMPTS: LiteralString = """
    SELECT p.id FROM predictions p JOIN tasks t ON t.id = p.task_id
    WHERE p.id = ANY(%s) AND p.provider_completed_at IS NULL AND t.status IN ('queued', 'processing')
"""


@frozen
class Start:
    """Where the replay of a task begins: its snapshot, or nothing."""

    task_id: UUID
    state: TaskState | None

    @property
    def seq(self) -> int:
        return self.state.seq if self.state else 0


@define(eq=False)
class PostgresTaskStore:
    """Every method raises StorageDown when the database is away."""

    pool: Pool

    async def load(self, task_id: UUID) -> TaskState | None:
        """The task's snapshot and the events after it, or its whole log when the snapshot cannot be read."""
        async with self.pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT %s::uuid, schema_version, seq, state FROM task_snapshots WHERE task_id = %s", (task_id, task_id)
            )
            row = await cursor.fetchone() or (task_id, None, None, None)
            states = await _replay(connection, [_start(*row)])
        return states[0] if states else None

    async def events(self, task_id: UUID, after: int = 0, limit: int = 500) -> tuple[TaskEvent, ...]:
        """At most `limit` events of the log with a greater seq than `after`, in order."""
        async with self.pool.connection() as connection:
            cursor = await connection.execute(LOG, (task_id, after, min(limit, MAX_LIMIT)))
            return tuple(codec.event_from_row(*row) for row in await cursor.fetchall())

    async def history(
        self,
        user: str,
        status: Status | None = None,
        model: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page:
        """A page of the user's tasks that are not archived, newest first.

        Raises:
            UserError: `invalid_cursor`.
        """
        wanted: dict[str, Any] = {"user": user, "status": status, "model": model, "limit": limit + 1}
        query = HISTORY
        if status is not None:
            query += " AND t.status = %(status)s"
        if model is not None:
            query += " AND t.model = %(model)s"
        if cursor is not None:
            query += BEFORE
            wanted["at"], wanted["id"] = read_cursor(cursor)
        if not storable(user) or not storable(model or ""):
            return Page((), None)
        wanted["limit"] = (limit := max(1, min(limit, MAX_LIMIT))) + 1
        async with self.pool.connection() as connection:
            found = connection.cursor(row_factory=dict_row)
            await found.execute(query + " ORDER BY t.created_at DESC, t.id DESC LIMIT %(limit)s", wanted)
            rows = await found.fetchall()
            more, rows = rows[limit:], rows[:limit]
            last = write_cursor(rows[-1]["microseconds"], rows[-1]["id"]) if more else None
            outputs = await _outputs(connection, [row["id"] for row in rows if Status(row["status"]).terminal])
        return Page(tuple(state_of(row, outputs.get(row["id"], ())) for row in rows), last)

    async def by_idempotency_key(self, user: str, key: str) -> UUID | None:
        """The task that holds the user's key."""
        if not storable(user) or not storable(key):
            return None
        async with self.pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT t.id FROM tasks t JOIN users u ON u.id = t.user_id"
                " WHERE u.external_id = %s AND t.idempotency_key = %s",
                (user, key),
            )
            row = await cursor.fetchone()
        return row[0] if row else None

    async def unfinished(self, after: tuple[int, float, UUID] | None, limit: int) -> tuple[TaskState, ...]:
        """Whole states of tasks that are not terminal, by (priority, created_at, id), after the given key."""
        wanted: dict[str, Any] = {"limit": limit}
        query = UNFINISHED
        if after is not None:
            query += AFTER
            wanted |= dict(zip(("priority", "at", "id"), after, strict=True))
        query += " ORDER BY t.priority, t.created_at, t.id LIMIT %(limit)s"
        async with self.pool.connection() as connection:
            cursor = await connection.execute(query, wanted)
            starts: list[Start] = []
            while rows := await cursor.fetchmany(AT_ONCE):
                starts += [_start(*row) for row in rows]
                await trio.lowlevel.checkpoint()
            return tuple(await _replay(connection, starts))

    async def ahead(self, known: Mapping[UUID, int]) -> tuple[UUID, ...]:
        """Those of these tasks, each with the last seq that is known here, whose log goes on: by another server."""
        async with self.pool.connection() as connection:
            cursor = await connection.execute(AHEAD, (list(known), list(known.values())))
            return tuple([row[0] for row in await cursor.fetchall()])

    async def open_prediction(self, task_id: UUID) -> PredictionChange | None:
        """The latest prediction of a task whose end is not known: one to adopt instead of buying another."""
        async with self.pool.connection() as connection:
            cursor = connection.cursor(row_factory=dict_row)
            await cursor.execute(OPEN_PREDICTION, (task_id,))
            row = await cursor.fetchone()
        return PredictionChange(**row | {"usage": Usage(**row["usage"]) if row["usage"] else None}) if row else None

    async def open_attempts(self, attempts: Sequence[UUID]) -> frozenset[UUID]:
        """Those of these attempts whose end is not on record, of tasks that are not over."""
        async with self.pool.connection() as connection:
            cursor = await connection.execute(OPEN_ATTEMPTS, (list(attempts),))
            return frozenset([row[0] for row in await cursor.fetchall()])


# --- from rows to states ----------------------------------------------------------------------------------


def _start(task_id: UUID, version: int | None, seq: int | None, state: Any) -> Start:
    """The snapshot, or an empty start when there is none or it cannot be trusted: the log has everything."""
    if version is None:
        return Start(task_id, None)
    try:
        snapshot = codec.decode_state(version, state)
    except codec.Unreadable as problem:
        log.warning("the snapshot of task %s is passed over: %s", task_id, problem)
        return Start(task_id, None)
    if snapshot.id != task_id or snapshot.seq != seq:
        log.warning("the snapshot of task %s is passed over: it contradicts its row", task_id)
        return Start(task_id, None)
    return Start(task_id, snapshot)


async def _replay(connection: TrioConnection, starts: Sequence[Start]) -> list[TaskState]:
    """Each start with the events after it applied. A task that this version cannot read is left out, with a word."""
    if not starts:
        return []
    cursor = await connection.execute(TAILS, ([start.task_id for start in starts], [start.seq for start in starts]))
    tails: defaultdict[UUID, list[Sequence[Any]]] = defaultdict(list)
    for row in await cursor.fetchall():
        tails[row[0]].append(row)
    states = []
    for number, start in enumerate(starts, 1):
        states.append(_replay_one(start, tails[start.task_id]))
        if not number % AT_ONCE:
            await trio.lowlevel.checkpoint()
    return [state for state in states if state is not None]


def _replay_one(start: Start, rows: Iterable[Sequence[Any]]) -> TaskState | None:
    try:
        return replay(start.state, (codec.event_from_row(*row) for row in rows))
    except (codec.Unreadable, ValueError) as problem:
        log.error("task %s cannot be read: %s", start.task_id, problem)
        return None


def replay(state: TaskState | None, events: Iterable[TaskEvent]) -> TaskState | None:
    """The fold of `events` onto `state`."""
    for event in events:
        state = fold(state, event)
    return state


async def _outputs(connection: TrioConnection, task_ids: list[UUID]) -> dict[UUID, tuple[Output, ...]]:
    query: LiteralString = f"""
        SELECT o.task_id, {OUTPUT} FROM tasks t JOIN outputs o ON o.task_id = t.id AND o.attempt = t.attempt
        WHERE t.id = ANY(%s) ORDER BY o.task_id, o.index
    """
    outputs: defaultdict[UUID, tuple[Output, ...]] = defaultdict(tuple)
    if task_ids:
        cursor = connection.cursor(row_factory=dict_row)
        await cursor.execute(query, (task_ids,))
        for row in await cursor.fetchall():
            outputs[row.pop("task_id")] += (Output(**row),)
    return outputs


def state_of(row: dict[str, Any], outputs: tuple[Output, ...]) -> TaskState:
    """A task's state as its row has it: all that a reader of history sees."""
    row = dict(row)
    row.pop("microseconds", None)
    names = ("error_code", "error_message", "error_action", "error_retryable", "will_retry_at")
    code, message, action, retryable, retry_at = (row.pop(name) for name in names)
    error = TaskError(code, message or "", action or "", bool(retryable), retry_at) if code else None
    usage = Usage(**row.pop("usage")) if row["usage"] else row.pop("usage")
    return TaskState(**row | {"status": Status(row["status"])}, usage=usage, error=error, outputs=outputs)


# --- cursors ----------------------------------------------------------------------------------------------


def write_cursor(microseconds: int, task_id: UUID) -> str:
    """An opaque word for a place in the history, safe in a URL."""
    return base64.urlsafe_b64encode(microseconds.to_bytes(8, "big") + task_id.bytes).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[int, UUID]:
    """The place that `write_cursor` named. Raises UserError."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        if len(raw) != 24:
            raise ValueError("a cursor has 24 bytes")
        return min(int.from_bytes(raw[:8], "big"), 2**53), UUID(bytes=raw[8:])
    except ValueError as problem:
        raise UserError("invalid_cursor", "This cursor is not one of ours; ask for the first page.") from problem
