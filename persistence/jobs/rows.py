"""The two statements that the journal runs for the queue inside its own transaction, and nothing else.

`insert_jobs` puts new jobs in line (or inserts them already claimed), `apply_changes` applies outcomes under their
fences. Rows cross as one JSON parameter: quick to encode, and one statement whatever their number.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, LiteralString
from uuid import UUID

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import TupleRow

from engine.jobs.job import Cancel, Complete, Discard, Hold, JobChange, JobState, Lease, NewJob, Retry, Snooze
from engine.jobs.lifecycle import settle
from persistence.connection import TrioConnection
from persistence.encoding import document

CHANNEL: LiteralString = "elwift_jobs"
"""The channel of every notification of the queue; payloads are words: `wake QUEUE`, `stop JOB TOKEN`, `settings`."""

Connection = AsyncConnection[TupleRow]
NewRow = tuple[NewJob, Lease | None]
ChangeRow = tuple[JobChange, Lease | None]

# A job joins the line behind its user's last waiting job, and not before the one being served
# (engine.jobs.fairness.next_turn). Each lookup reads one end of an index, and is written so that no stale plan makes it
# a scan. Its neighbours of the same user in this statement take the turns after it.
# Jobs that were claimed leave dead entries at the front of the line until they are vacuumed, thousands in a busy minute
# (all of them, while somebody keeps an old snapshot open): a lookup begins behind what is known to be served (`floor`).
TURNS: LiteralString = """
    SELECT k.queue, k.priority, k.user_key, greatest(
        coalesce((SELECT turn FROM jobs WHERE state = 'available'
                  AND queue = k.queue AND priority = k.priority AND turn >= k.floor ORDER BY turn LIMIT 1), k.floor),
        coalesce((SELECT turn + 1 FROM jobs WHERE state = 'available'
                  AND queue = k.queue AND priority = k.priority AND user_key = k.user_key AND turn >= k.floor
                  ORDER BY turn DESC LIMIT 1), k.floor)) AS first
    FROM (SELECT DISTINCT queue, priority, user_key, floor FROM joining) AS k
"""

INSERT: LiteralString = f"""
WITH incoming AS (
    SELECT t.*, CASE WHEN t.token IS NOT NULL THEN 'executing'::job_state
                     WHEN t.due_in > 0 THEN 'scheduled' ELSE 'available' END AS state
    FROM jsonb_to_recordset(%s) AS t(
        n int, id uuid, worker text, queue text, args jsonb, task_id uuid, user_key text, priority smallint,
        max_attempts int, due_in float8, unique_key text, trace_parent text, home text, floor bigint,
        token uuid, node text, boot uuid, seconds float8)
), joining AS (SELECT * FROM incoming WHERE state = 'available'
), turns AS ({TURNS}
), inserted AS (
    INSERT INTO jobs (id, state, queue, worker, args, task_id, user_key, priority, turn, attempt, max_attempts,
                      unique_key, trace_parent, home, scheduled_at, attempted_at,
                      lease_token, lease_node, lease_boot, lease_expires_at)
    SELECT i.id, i.state, i.queue, i.worker, i.args, i.task_id, i.user_key, i.priority,
           coalesce(s.first, 0) - 1 + row_number() OVER (PARTITION BY i.queue, i.priority, i.user_key, i.state
                                                         ORDER BY i.n),
           (i.token IS NOT NULL)::int, i.max_attempts, i.unique_key, i.trace_parent,
           coalesce(i.node, i.home), now() + coalesce(i.due_in, 0) * interval '1 second',
           CASE WHEN i.token IS NOT NULL THEN now() END,
           i.token, i.node, i.boot, now() + i.seconds * interval '1 second'
    FROM incoming i LEFT JOIN turns s USING (queue, priority, user_key)
    ORDER BY i.unique_key
    ON CONFLICT DO NOTHING
    RETURNING id, queue, state
), told AS (
    SELECT pg_notify('{CHANNEL}', 'wake ' || queue)::text AS sent
    FROM (SELECT DISTINCT queue FROM inserted WHERE state = 'available') AS woken
)
SELECT id, (SELECT count(sent) FROM told) FROM inserted
"""

# The plan of a statement is kept while the table grows. This says that the rows given are few, so that jobs are looked
# up by id even by a plan that was made when the table was empty.
FEW: LiteralString = "n BETWEEN 0 AND 1000000"

# Rows are locked in the order of their ids, here as in every statement that writes several jobs: no deadlocks.
# A change without a fence is an order of the job's owner: on a finished job it is no refusal, it only does nothing.
APPLY: LiteralString = f"""
WITH change AS (
    SELECT * FROM jsonb_to_recordset(%s) AS c(
        n int, id uuid, token uuid, state job_state, due_in float8, error text, undo boolean,
        next_token uuid, next_attempt int, node text, boot uuid, seconds float8)
    WHERE {FEW}
), target AS MATERIALIZED (
    SELECT c.*, j.state AS was, j.lease_token AS holding, j.queue, j.priority, j.user_key,
           CASE WHEN c.token IS NULL THEN
                    CASE WHEN j.state = c.state
                              OR (j.state IN ('completed', 'cancelled', 'discarded') AND c.state <> 'available')
                              OR (j.state IN ('available', 'executing') AND c.state = 'available') THEN 'void'
                         ELSE 'order' END
                WHEN j.lease_token = c.token AND j.state = 'executing' THEN
                    CASE WHEN c.state = 'executing' THEN 'kept' ELSE 'held' END
                WHEN j.lease_token IN (c.token, c.next_token) AND j.state IN (c.state, 'executing') THEN 'repeated'
                ELSE 'stale' END AS verdict
    FROM jobs j JOIN change c USING (id) ORDER BY j.id FOR UPDATE OF j
), joining AS (
    SELECT queue, priority, user_key, 0::bigint AS floor FROM target WHERE verdict = 'order' AND state = 'available'
), turns AS ({TURNS}
), applied AS (
    UPDATE jobs j SET
        state = CASE WHEN t.next_token IS NULL THEN t.state ELSE 'executing' END,
        attempt = coalesce(t.next_attempt, CASE WHEN t.undo THEN greatest(j.attempt - 1, 0) ELSE j.attempt END),
        max_attempts = CASE WHEN t.state IN ('retryable', 'available') THEN greatest(j.max_attempts, j.attempt + 1)
                            ELSE j.max_attempts END,
        turn = CASE WHEN t.verdict = 'order' AND t.state = 'available' THEN
                   (SELECT s.first FROM turns s
                    WHERE s.queue = j.queue AND s.priority = j.priority AND s.user_key = j.user_key)
               ELSE j.turn END,
        snoozes = j.snoozes + (t.undo)::int,
        errors = CASE WHEN t.error IS NULL THEN j.errors ELSE
            CASE WHEN jsonb_array_length(j.errors) >= 50 THEN j.errors - 0 ELSE j.errors END || jsonb_build_object(
                'at', extract(epoch FROM now()), 'attempt', j.attempt, 'error', t.error) END,
        scheduled_at = coalesce(now() + t.due_in * interval '1 second', j.scheduled_at),
        completed_at = CASE WHEN t.state = 'completed' THEN now() END,
        cancelled_at = CASE WHEN t.state = 'cancelled' THEN now() END,
        discarded_at = CASE WHEN t.state = 'discarded' THEN now() END,
        lease_token = coalesce(t.next_token, j.lease_token),
        lease_node = coalesce(t.node, j.lease_node),
        home = coalesce(t.node, j.home),
        lease_boot = coalesce(t.boot, j.lease_boot),
        lease_expires_at = coalesce(now() + t.seconds * interval '1 second', j.lease_expires_at),
        updated_at = now()
    FROM target t
    WHERE j.id = t.id AND t.verdict IN ('order', 'held')
    RETURNING j.id, j.queue, j.state, t.was, t.verdict, t.holding
), told AS (
    SELECT pg_notify('{CHANNEL}', CASE WHEN state = 'available' THEN 'wake ' || queue
                                       ELSE 'stop ' || id || ' ' || holding END)::text AS sent
    FROM applied WHERE verdict = 'order' AND (state = 'available' OR was = 'executing')
)
SELECT n, verdict, (SELECT count(sent) FROM told) FROM target
"""


async def insert_jobs(conn: Connection, jobs: Sequence[NewRow]) -> frozenset[UUID]:
    """Inserts the jobs: under their lease as `executing`, else in line; the ids that were new.

    A taken id or unique key is passed over, so that repeating the call after an unsure commit does no harm.
    """
    if not jobs:
        return frozenset()
    cursor = await send_jobs(conn, jobs)
    return frozenset([row[0] for row in await cursor.fetchall()])


async def send_jobs(conn: Connection, jobs: Sequence[NewRow]) -> AsyncCursor[TupleRow]:
    """`insert_jobs`, whose answer nobody waits for yet: in a pipeline that saves a round trip."""
    served = conn.served if isinstance(conn, TrioConnection) else {}
    rows = document([_new_row(n, job, lease, served) for n, (job, lease) in enumerate(jobs)])
    return await conn.execute(INSERT, (rows,))


async def apply_changes(conn: Connection, changes: Sequence[ChangeRow]) -> frozenset[int]:
    """Applies the changes in order; the indices of those whose fence is stale, which changed nothing.

    With a lease, a Retry or Snooze hands the job straight to that next claim. Repeating an applied change is not stale.
    """
    stale: set[int] = set()
    for wave in _waves(changes):
        rows = document([_change_row(n, *changes[n]) for n in wave])
        cursor = await conn.execute(APPLY, (rows,))
        verdicts = {row[0]: row[1] for row in await cursor.fetchall()}
        stale.update(n for n in wave if _is_stale(changes[n][0], verdicts.get(n)))
    return frozenset(stale)


def _is_stale(change: JobChange, verdict: str | None) -> bool:
    return change.fence is not None and verdict in (None, "stale")


def _waves(changes: Sequence[ChangeRow]) -> Iterator[list[int]]:
    """Indices in order, cut so that no job appears twice in one statement."""
    wave: list[int] = []
    seen: set[UUID] = set()
    for n, (change, _) in enumerate(changes):
        if change.job_id in seen:
            yield wave
            wave, seen = [], set()
        wave.append(n)
        seen.add(change.job_id)
    if wave:
        yield wave


def _new_row(n: int, job: NewJob, lease: Lease | None, served: Mapping[tuple[str, int], int]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "n": n,
        "floor": served.get((job.queue, job.priority), 0),
        "id": job.id,
        "worker": job.worker,
        "queue": job.queue,
        "args": job.args,
        "task_id": job.task_id,
        "user_key": job.user or "",
        "priority": job.priority,
        "max_attempts": job.max_attempts,
        "due_in": _due_in(job.scheduled_at),
        "unique_key": job.unique_key,
        "trace_parent": job.trace_parent,
        "home": job.home,
    }
    if lease is not None:
        row |= _lease_columns(lease, token="token")
    return row


def _due_in(at: float | None) -> float | None:
    """A time of this server's clock as the time from now: servers' clocks differ, and the database's alone decides."""
    return None if at is None else at - time.time()


def _lease_columns(lease: Lease, token: str) -> dict[str, Any]:
    return {token: lease.fence.token, "node": lease.node, "boot": lease.boot, "seconds": lease.seconds}


def _change_row(n: int, change: JobChange, lease: Lease | None) -> dict[str, Any]:
    row: dict[str, Any] = {"n": n, "id": change.job_id, "undo": False}
    row |= _order(change) if change.fence is None else _outcome(change)
    if change.fence is not None:
        row["token"] = change.fence.token
    if lease is not None:
        row |= _lease_columns(lease, token="next_token") | {"next_attempt": lease.fence.attempt}
    return row


def _outcome(change: JobChange) -> dict[str, Any]:
    """What a fenced outcome sets. Whoever decided on a Retry knew that there is an attempt left."""
    assert change.fence is not None
    if isinstance(change.outcome, Hold):
        return {"state": JobState.EXECUTING}
    attempt = change.fence.attempt
    settled = settle(change.outcome, attempt, max_attempts=attempt + 1, now=time.time())
    undo = isinstance(change.outcome, Snooze)
    return {"state": settled.state, "due_in": _due_in(settled.scheduled_at), "error": settled.error, "undo": undo}


def _order(change: JobChange) -> dict[str, Any]:
    """What an unfenced order sets. A retry by hand goes to the line at once, or waits for its time."""
    match change.outcome:
        case Retry(error, at):
            later = at is not None and at > time.time()
            return {
                "state": JobState.SCHEDULED if later else JobState.AVAILABLE,
                "due_in": _due_in(at),
                "error": error or None,
            }
        case Snooze(at, _):
            return {"state": JobState.SCHEDULED, "due_in": _due_in(at)}
        case Complete():
            return {"state": JobState.COMPLETED}
        case Cancel(reason):
            return {"state": JobState.CANCELLED, "error": reason}
        case Discard(error):
            return {"state": JobState.DISCARDED, "error": error}
        case Hold():
            raise ValueError("to hold a job is nobody's order: a worker asks it under its fence")
