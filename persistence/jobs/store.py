"""The JobStore in PostgreSQL: runs the statements of the queue on connections of the pool.

A lost database shows as `StorageDown`, whatever psycopg called it; everything else that fails is a bug and escapes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from time import monotonic
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import trio

from engine.errors import UserError
from engine.jobs.job import Fence, Job, JobChange, JobState, Lease, NewJob
from engine.jobs.lifecycle import CALM_RESCUES, LONGEST_CALM, MAX_RESCUES
from engine.jobs.ports import (
    Claim,
    Claimed,
    JobError,
    JobRecord,
    Notice,
    NoticeKind,
    Peer,
    QueueCounts,
    QueueSetting,
    Rescued,
    Retention,
    Slot,
    Staged,
    Waiting,
)
from engine.ports import StorageDown
from persistence.encoding import document
from persistence.jobs import statements as sql
from persistence.jobs.rows import CHANNEL, Connection, apply_changes, insert_jobs
from persistence.outage import is_outage
from persistence.pool import Pool

RELAXED: LiteralString = "SET LOCAL synchronous_commit = off"
"""Nobody was promised that news between servers arrives: its commit does not wait for the disk."""

PATIENCE = {"calm": CALM_RESCUES, "longest": LONGEST_CALM, "most": MAX_RESCUES}
NO_FLOORS = [0] * 10
WHOLE_EVERY = 1.0
"""Seconds after which a claim looks at the whole line again."""
FULL_WAIT = 0.1
"""Seconds until a claim that met the global limit is tried again: another node may have finished a job."""


class PostgresJobStore:
    """See `engine.jobs.ports.JobStore`."""

    def __init__(self, pool: Pool, timeout: float = 10.0) -> None:
        self._pool = pool
        self._timeout = timeout
        self._claimed_whole: dict[str, float] = {}

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        """A connection for one step. A database that does not answer in time counts as away: it may be stopped."""
        try:
            with trio.fail_after(self._timeout):
                async with self._pool.connection() as conn:
                    yield conn
        except trio.TooSlowError as problem:
            raise StorageDown(f"the database did not answer within {self._timeout:g} s") from problem

    # --- jobs come and go ---

    async def insert(self, jobs: Sequence[NewJob]) -> frozenset[UUID]:
        async with self._connection() as conn:
            return await insert_jobs(conn, [(job, None) for job in jobs])

    async def claim(self, wish: Claim) -> Claimed:
        args: dict[str, Any] = {
            "queue": wish.queue,
            "demand": wish.demand,
            "node": wish.node,
            "boot": wish.boot,
            "seconds": wish.seconds,
        }
        async with self._connection() as conn:
            if wish.global_limit is not None or wish.rate is not None:
                return await self._claim_limited(conn, wish, args)
            rows = await self._claim_line(conn, wish, args)
        return Claimed(in_order([_job(row) for row in rows]), more=len(rows) == wish.demand)

    async def _claim_line(self, conn: Connection, wish: Claim, args: dict[str, Any]) -> list[Any]:
        """From where the line was served last; from its very beginning when that is not enough, and now and then: a job
        that is given back keeps its old turn."""
        floors = [self._pool.served.get((wish.queue, priority), 0) for priority in range(10)]
        if self._claimed_whole.get(wish.queue, -WHOLE_EVERY) + WHOLE_EVERY < monotonic():
            floors = NO_FLOORS
        rows = await (await conn.execute(sql.CLAIM, args | {"floors": floors})).fetchall()
        if floors != NO_FLOORS and len(rows) < wish.demand:
            more = args | {"floors": NO_FLOORS, "demand": wish.demand - len(rows)}
            floors, rows = NO_FLOORS, rows + await (await conn.execute(sql.CLAIM, more)).fetchall()
        if floors == NO_FLOORS:
            self._claimed_whole[wish.queue] = monotonic()
        for row in rows:
            place = wish.queue, row[8]
            self._pool.served[place] = max(self._pool.served.get(place, 0), row[15])
        return rows

    async def _claim_limited(self, conn: Connection, wish: Claim, args: dict[str, Any]) -> Claimed:
        rate = wish.rate
        limits = {
            "global_limit": wish.global_limit,
            "allowed": rate.allowed if rate else None,
            "period": rate.period if rate else None,
        }
        async with conn.transaction():
            if await (await conn.execute(sql.LOCK_QUEUE, args)).fetchone() is None:
                await conn.execute(sql.ENSURE_QUEUE, (wish.queue,))
                await conn.execute(sql.LOCK_QUEUE, args)
            rows = await (await conn.execute(sql.CLAIM_LIMITED, args | limits)).fetchall()
        jobs = in_order([_job(row[2:17]) for row in rows if row[2] is not None])
        free, tokens = (rows[0][0], rows[0][1]) if rows else (None, None)
        return _limited(wish, jobs, free, tokens)

    async def settle(self, changes: Sequence[JobChange]) -> frozenset[int]:
        try:
            async with self._connection() as conn, conn.transaction():
                return await apply_changes(conn, [(change, None) for change in changes])
        except psycopg.errors.UniqueViolation as problem:
            # only a job that is reopened by hand can meet its own key again
            message = "Another job with the same unique key is not finished yet; wait for it, or cancel it."
            raise UserError("job_exists", message) from problem

    async def suspend(self, job_id: UUID) -> bool:
        return await self._touched(sql.SUSPEND, job_id)

    async def unsuspend(self, job_id: UUID) -> bool:
        return await self._touched(sql.UNSUSPEND, job_id)

    async def _touched(self, query: LiteralString, job_id: UUID) -> bool:
        async with self._connection() as conn:
            return (await conn.execute(query, (job_id,))).rowcount == 1

    # --- servers ---

    async def beat(self, node: str, boot: UUID, seconds: float, slots: Mapping[str, int]) -> tuple[Peer, ...]:
        args = {"node": node, "boot": boot, "seconds": seconds, "slots": document(slots)}
        async with self._connection() as conn:
            rows = await (await conn.execute(sql.BEAT, args)).fetchall()
        return tuple([Peer(*row[:5]) for row in rows])

    async def look_around(self) -> tuple[Peer, ...]:
        async with self._connection() as conn:
            return tuple([Peer(*row) for row in await (await conn.execute(sql.LOOK_AROUND)).fetchall()])

    async def leave(self, node: str, boot: UUID) -> None:
        async with self._connection() as conn:
            await conn.execute(sql.LEAVE, {"node": node, "boot": boot})

    async def adopt(self, node: str, jobs: Sequence[UUID]) -> frozenset[UUID]:
        return await self._jobs(sql.ADOPT, node, jobs)

    async def strayed(self, node: str, jobs: Sequence[UUID]) -> frozenset[UUID]:
        return await self._jobs(sql.STRAYED, node, jobs)

    async def _jobs(self, query: LiteralString, node: str, jobs: Sequence[UUID]) -> frozenset[UUID]:
        async with self._connection() as conn:
            rows = await (await conn.execute(query, {"node": node, "jobs": list(jobs)}, prepare=False)).fetchall()
        return frozenset([row[0] for row in rows])

    # --- leases ---

    async def heartbeat(self, leases: Sequence[Lease]) -> frozenset[UUID]:
        rows = [
            {"n": n, "id": lease.fence.job_id, "token": lease.fence.token, "seconds": lease.seconds}
            for n, lease in enumerate(leases)
        ]
        async with self._connection() as conn:
            alive = await (await conn.execute(sql.HEARTBEAT, (document(rows),))).fetchall()
        return frozenset(x.fence.job_id for x in leases) - {row[0] for row in alive}

    async def release(self, fences: Sequence[Fence]) -> int:
        rows = [{"n": n, "id": fence.job_id, "token": fence.token} for n, fence in enumerate(fences)]
        async with self._connection() as conn:
            row = await (await conn.execute(sql.RELEASE, (document(rows),))).fetchone()
        return int(row[0]) if row else 0

    async def recover(self, node: str, boot: UUID) -> int:
        async with self._connection() as conn:
            return (await conn.execute(sql.RECOVER, {"node": node, "boot": boot, **PATIENCE}, prepare=False)).rowcount

    async def rescue(self, held: Sequence[UUID], limit: int) -> tuple[Rescued, ...]:
        args = {"held": list(held), "limit": limit, **PATIENCE}
        async with self._connection() as conn:
            rows = await (await conn.execute(sql.RESCUE, args, prepare=False)).fetchall()
        return tuple(Rescued(row[0], row[1], JobState(row[2]), row[3]) for row in rows)

    # --- time passes (now and then, so each is planned anew: the table may have grown a thousandfold) ---

    async def stage(self, limit: int) -> Staged:
        async with self._connection() as conn:
            rows = await (await conn.execute(sql.STAGE, {"limit": limit}, prepare=False)).fetchall()
            due = await (await conn.execute(sql.NEXT_DUE, prepare=False)).fetchone()
        next_in = None if due is None or due[0] is None else max(0.0, due[0])
        return Staged(frozenset(row[0] for row in rows), sum(row[1] for row in rows), next_in)

    async def prune(self, retention: Retention, limit: int) -> int:
        args = {
            "completed": retention.completed,
            "cancelled": retention.cancelled,
            "discarded": retention.discarded,
            "limit": limit,
        }
        async with self._connection() as conn:
            return (await conn.execute(sql.PRUNE, args, prepare=False)).rowcount

    async def now(self) -> float:
        async with self._connection() as conn:
            row = await (await conn.execute(sql.NOW)).fetchone()
        assert row is not None
        return float(row[0])

    async def make_for(self, slots: Sequence[Slot]) -> frozenset[UUID]:
        async with self._connection() as conn, conn.transaction():
            mine = [slot for slot in slots if (await conn.execute(sql.TAKE_TURN, (slot.name, slot.at))).rowcount]
            return await insert_jobs(conn, [(slot.job, None) for slot in mine])

    # --- looking ---

    async def counts(self) -> tuple[QueueCounts, ...]:
        async with self._connection() as conn:
            states = await (await conn.execute(sql.COUNTS, prepare=False)).fetchall()
            waiting = await (await conn.execute(sql.WAITING, prepare=False)).fetchall()
        return _counts(states, waiting)

    async def paces(self) -> dict[str, float]:
        async with self._connection() as conn:
            return dict(await (await conn.execute(sql.PACES, prepare=False)).fetchall())

    async def settings(self) -> tuple[QueueSetting, ...]:
        async with self._connection() as conn:
            rows = await (await conn.execute(sql.SETTINGS)).fetchall()
        return tuple(QueueSetting(*row) for row in rows)

    async def set(self, setting: QueueSetting) -> None:
        async with self._connection() as conn:
            await conn.execute(sql.SET, (setting.queue, setting.paused, setting.limit))

    async def get(self, job_id: UUID) -> JobRecord | None:
        async with self._connection() as conn:
            row = await (await conn.execute(sql.GET, (job_id,))).fetchone()
        return _record(row) if row else None

    async def page(
        self, queue: str | None, state: JobState | None, after: UUID | None, limit: int
    ) -> tuple[JobRecord, ...]:
        args = {"queue": queue, "state": state, "after": after, "limit": limit}
        query = sql.PAGE
        if queue is not None:
            query += sql.OF_QUEUE
        if state is not None:
            query += sql.OF_DEAD if state is JobState.DISCARDED else sql.OF_STATE
        if after is not None:
            query += sql.BEFORE
        async with self._connection() as conn:
            rows = await (await conn.execute(query + sql.NEWEST, args)).fetchall()
        return tuple(_record(row) for row in rows)

    # --- notifications ---

    async def notify(self, notice: Notice) -> None:
        words = " ".join(word for word in (notice.kind, notice.subject, notice.token) if word)
        async with self._connection() as conn:
            await conn.execute("SELECT pg_notify(%s, %s)", (CHANNEL, words))

    async def tell(self, words: Sequence[str]) -> None:
        async with self._connection() as conn, conn.pipeline(), conn.transaction():
            await conn.execute(RELAXED)
            await conn.execute(
                "SELECT count(pg_notify(%s, 'news ' || w)) FROM unnest(%s::text[]) w", (CHANNEL, list(words))
            )

    @asynccontextmanager
    async def notices(self) -> AsyncIterator[AsyncIterator[Notice]]:
        conn = await self._pool.dedicated()
        try:
            with _outages():
                await conn.execute(f"LISTEN {CHANNEL}")
            async with aclosing(conn.notifies()) as messages, aclosing(_notices(messages)) as notices:
                yield notices
        finally:
            await conn.close()


async def _notices(messages: AsyncIterator[psycopg.Notify]) -> AsyncGenerator[Notice, None]:
    with _outages():
        async for message in messages:
            if (notice := parse_notice(message.payload)) is not None:
                yield notice


@contextmanager
def _outages() -> Iterator[None]:
    """Lets a lost connection show as StorageDown."""
    try:
        yield
    except psycopg.Error as problem:
        if is_outage(problem):
            raise StorageDown(str(problem)) from problem
        raise


def parse_notice(payload: str) -> Notice | None:
    """A notification's words as data; None for one that a newer version may have sent."""
    kind, _, rest = payload.partition(" ")
    if kind not in set(NoticeKind):
        return None
    if kind in (NoticeKind.STOP, NoticeKind.MOVED):
        subject, _, token = rest.partition(" ")
        return Notice(NoticeKind(kind), subject, token)
    return Notice(NoticeKind(kind), rest)


# --- rows to data ---------------------------------------------------------------------------------------


def _job(row: Sequence[Any]) -> Job:
    return Job(Fence(row[0], row[1], row[2]), row[3], row[4], row[5], row[6], row[7], row[8], row[1], *row[9:15])


def in_order(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """Claimed jobs by priority: UPDATE … RETURNING keeps no order."""
    return tuple(sorted(jobs, key=lambda job: job.priority))


def _limited(wish: Claim, jobs: tuple[Job, ...], free: int | None, tokens: float | None) -> Claimed:
    got = len(jobs)
    if got == wish.demand:
        return Claimed(jobs, more=True)
    if free is not None and got >= max(free, 0):
        return Claimed(jobs, more=True, wait=FULL_WAIT)
    if wish.rate is not None and tokens is not None and got >= int(tokens + 1e-9):
        return Claimed(jobs, more=True, wait=max(0.001, (1.0 - (tokens - got)) / wish.rate.per_second))
    return Claimed(jobs, more=False)


def _counts(states: Sequence[Sequence[Any]], waiting: Sequence[Sequence[Any]]) -> tuple[QueueCounts, ...]:
    numbers: dict[str, dict[str, Any]] = defaultdict(dict)
    lines: dict[str, list[Waiting]] = defaultdict(list)
    for queue, state, jobs, age in states:
        numbers[queue][state] = jobs
        if state == JobState.AVAILABLE:
            numbers[queue]["oldest_age"] = age
    for queue, *entry in waiting:
        lines[queue].append(Waiting(*entry))
    return tuple(QueueCounts(queue, **found, waiting=tuple(lines[queue])) for queue, found in numbers.items())


def _record(row: Sequence[Any]) -> JobRecord:
    errors = tuple(JobError(error["at"], error["attempt"], error["error"]) for error in row[17])
    values: list[Any] = [row[0], JobState(row[1]), *row[2:17], errors, row[18]]
    return JobRecord(*values)
