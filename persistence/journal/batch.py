"""One batch, one transaction: written whole, or examined and written again without what cannot be.

The common case costs two round trips and looks at nothing but counts. When a count is short the transaction is
rolled back, `EXAMINE` tells which entries are at fault and why, they get their receipts, and the rest is written
anew. So an entry is all or nothing without savepoints. Errors in the data are found by halving. An error that is not
the data's refuses nothing: it raises, and the same is tried again; rows that somebody keeps locked are set aside.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import LiteralString
from uuid import UUID

import psycopg
import trio
from attrs import define, field, frozen
from psycopg.rows import class_row

from engine.jobs.job import Hold, JobChange, Lease, NewJob
from engine.jobs.ports import QueueDoor
from engine.ports import Committed, Duplicate, Receipt, Refused, StorageDown
from engine.tasks import codec
from engine.tasks.events import Requeued
from persistence.connection import TrioConnection
from persistence.encoding import array, to_json
from persistence.jobs.rows import apply_changes, send_jobs
from persistence.journal import statements as sql
from persistence.journal.rows import Pending
from persistence.outage import blames_the_data, is_outage

log = logging.getLogger(__name__)

CONFLICT = Refused("conflict")
STALE_FENCE = Refused("stale_fence")
TERMINAL = Refused("terminal")
POISON = Refused("poison")
AT_ONCE = 32
"""Receipts that are given in one turn of the loop."""
WHOLE = 1 << 30
LOCK_TIMEOUT = "1s"
"""How long a transaction waits for what others have locked, before it is tried without that."""


Settle = Callable[[Pending, Receipt], None]


@define(eq=False)
class Writer:
    """Writes one batch, over as many connections as it takes. `settle` is called once for each entry.

    When a connection is lost after COMMIT was sent, the next one is asked what became of that transaction.
    """

    batch: Sequence[Pending]
    settle: Settle
    door: QueueDoor | None = None
    portion: int = WHOLE
    """How many entries are written in one transaction."""
    failures: int = 0
    _left_before: int = field(init=False, default=WHOLE)
    _unsure: tuple[str, Sequence[Pending]] | None = field(init=False, default=None)

    async def write(self, connection: TrioConnection) -> bool:
        """Writes what is not settled yet; False: an earlier COMMIT is still going on, try again a little later.

        Raises:
            psycopg.Error, StorageDown: this is no fault of an entry. What was settled until then stays so.
        """
        if self._unsure and not await self._resolve(connection, *self._unsure):
            return False
        left = self.left()
        while left:
            portion, left = left[: self.portion], left[self.portion :]
            try:
                await self._write_portion(connection, portion)
            except BaseException:
                self.batch = [*left, *portion]  # another time, those that have not had their turn come first
                raise
        return True

    async def _write_portion(self, connection: TrioConnection, left: Sequence[Pending]) -> None:
        for pending in left:
            pending.unsure = True
        try:
            await self._write(connection, left)
        finally:
            # what was not even sent to be committed is not in doubt
            doubted = {id(pending) for pending in self._unsure[1]} if self._unsure else set()
            for pending in left:
                pending.unsure = id(pending) in doubted

    async def _write(self, connection: TrioConnection, left: Sequence[Pending]) -> None:
        while left:
            problem: Exception = RuntimeError("rows are missing")
            try:
                verdicts = await self._attempt(connection, left)
            except Exception as error:  # noqa: BLE001
                # also an error of ours in making the rows: it is that entry's alone, and no reason to stop writing
                _pass_on(error)
                problem = error
                verdicts = await self._explain(connection, left)
            if verdicts is None:
                return await self._settle_all(left)
            if not any(verdicts):
                return await self._halve(connection, left, problem)
            for pending, verdict in zip(left, verdicts, strict=True):
                if verdict:
                    self.settle(pending, verdict)
            left = [pending for pending in left if not pending.settled]
        return None

    async def _explain(self, connection: TrioConnection, left: Sequence[Pending]) -> list[Receipt | None]:
        """After an error, which may only be how an entry that does not fit shows: a reference to a row not written."""
        try:
            await connection.rollback()
            return await examine(connection, left, set())
        except psycopg.Error as error:
            _pass_on(error)
            await connection.rollback()
            return [None] * len(left)

    async def _halve(self, connection: TrioConnection, batch: Sequence[Pending], problem: Exception) -> None:
        """Finds the entry that makes a batch fail, by writing the halves; a single one is refused."""
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._write(connection, batch[:middle])
            await self._write(connection, batch[middle:])
            return
        log.error("an entry of task %s is refused: %s", batch[0].task_id, problem)
        taken = isinstance(problem, psycopg.errors.UniqueViolation | psycopg.errors.ForeignKeyViolation)
        self.settle(batch[0], CONFLICT if taken else POISON)

    async def _attempt(self, connection: TrioConnection, batch: Sequence[Pending]) -> list[Receipt | None] | None:
        """One transaction. None: committed. Else it was rolled back; there is a verdict for each entry at fault."""
        work = Work.of(batch)
        async with connection.pipeline():
            await connection.execute("BEGIN")
            mark = await connection.execute(sql.MARK, (LOCK_TIMEOUT,))
            cursors = [(await connection.execute(query, (rows,)), expected) for query, rows, expected in work.queries()]
            if jobs := [(job, self._reserve(job)) for job in work.jobs()]:
                await send_jobs(connection, jobs)
            stale = await apply_changes(connection, [(change, self._successor(change)) for change in work.changes()])
            row = await mark.fetchone()
        if not stale and all(expected is None or cursor.rowcount == expected for cursor, expected in cursors):
            self._unsure = (row[0] if row else "", batch)
            await connection.execute("COMMIT")
            self._unsure = None
            return None
        await connection.execute("ROLLBACK")
        return await examine(connection, batch, {id(work.changing[index]) for index in stale})

    # --- when it fails ---

    def left(self) -> list[Pending]:
        """What is still to be written, in the order in which it is tried."""
        return [pending for pending in self.batch if not pending.settled]

    def count_failure(self) -> int:
        """How many attempts in a row have got nothing written."""
        left = len(self.left())
        self.failures = 1 if left < self._left_before else self.failures + 1
        self._left_before = left
        return self.failures

    def narrow(self) -> bool:
        """From now on in parts of half the size; False: each entry is tried alone already."""
        if self.portion == 1:
            return False
        self.portion = min(self.portion, len(self.left())) // 2 or 1
        return True

    def leave_out(self, some: Sequence[Pending]) -> None:
        """These are somebody else's to write."""
        self.batch = [pending for pending in self.batch if pending not in some]

    async def locked(self, connection: TrioConnection) -> list[Pending]:
        """Entries whose rows somebody else keeps locked. Raises psycopg.Error, also when whole tables are."""
        tasks = {pending.task_id: pending for pending in self.left()}
        jobs = {change.job_id: pending for pending in self.left() if (change := pending.entry.job)}
        free: set[UUID] = set()
        async with connection.transaction():
            await connection.execute(sql.MARK, (LOCK_TIMEOUT,))
            for query, ids in ((sql.FREE_TASKS, list(tasks)), (sql.FREE_JOBS, list(jobs))):
                cursor = await connection.execute(query, (ids, ids))
                free |= {row[0] for row in await cursor.fetchall()}
        held = {row_id: pending for row_id, pending in (tasks | jobs).items() if row_id not in free}
        return list({id(pending): pending for pending in held.values()}.values())

    async def _resolve(self, connection: TrioConnection, transaction: str, batch: Sequence[Pending]) -> bool:
        """Finds out what became of the transaction whose COMMIT got no answer; False: it is still going on.

        One that the server cannot tell of any more counts as not committed: writing again is harmless, since rows
        that are there already are recognised. And its word is not enough: in a crash PostgreSQL forgets the numbers of
        transactions that had not reached its log, and gives them to others. A row of the batch has to be there.
        """
        try:
            cursor = await connection.execute("SELECT pg_xact_status(%s::xid8)", (transaction,))
            row = await cursor.fetchone()
        except psycopg.DataError:
            row = None
        if row and row[0] == "in progress":
            return False
        self._unsure = None
        if row and row[0] == "committed" and Committed() in await examine(connection, batch, set()):
            await self._settle_all(batch)
        return True

    async def _settle_all(self, batch: Sequence[Pending]) -> None:
        """Each receipt wakes somebody who has been waiting; all of them in one turn of the loop would hold it long."""
        for number, pending in enumerate(batch, 1):
            self.settle(pending, Committed())
            if not number % AT_ONCE:
                await trio.lowlevel.cancel_shielded_checkpoint()

    def _reserve(self, job: NewJob) -> Lease | None:
        return self.door.reserve(job) if self.door else None

    def _successor(self, change: JobChange) -> Lease | None:
        if not self.door or not change.fence or isinstance(change.outcome, Hold):
            return None
        return self.door.successor(change.fence)


def _pass_on(error: Exception) -> None:
    """Raises an error that no entry is to blame for: a reason to try again."""
    if is_outage(error):
        raise error
    if not blames_the_data(error):
        raise StorageDown(f"the database refuses what it should take: {error}") from error


@frozen
class Work:
    """A batch, sorted by what there is to do with it."""

    batch: Sequence[Pending]
    born: list[Pending]
    changed: list[Pending]
    changing: list[Pending]

    @classmethod
    def of(cls, batch: Sequence[Pending]) -> Work:
        return cls(
            batch,
            born=[pending for pending in batch if pending.creates],
            changed=[pending for pending in batch if pending.task and not pending.creates],
            changing=[pending for pending in batch if pending.entry.job],
        )

    def queries(self) -> Iterable[tuple[LiteralString, object, int | None]]:
        """Statements, their rows, and how many rows they must touch (None: any number)."""
        born = [pending.task for pending in self.born if pending.task]
        if born:
            yield sql.ADD_USERS, array(born), None
            yield sql.ADD_TASKS, array(born), len(born)
        changed = [pending.task for pending in self.changed if pending.task]
        if changed:
            yield sql.CHANGE_TASKS, array(changed), len(changed)
        for query, rows, strict in (
            (sql.ADD_EVENTS, self._all(lambda pending: pending.events), True),
            (sql.PUT_PREDICTIONS, self._all(lambda pending: pending.predictions), False),
            (sql.PUT_OUTPUTS, self._all(lambda pending: pending.outputs), False),
        ):
            if rows:
                yield query, array(rows), len(rows) if strict else None

    def _all(self, part: Callable[[Pending], tuple[bytes, ...]]) -> list[bytes]:
        return [row for pending in self.batch for row in part(pending)]

    def jobs(self) -> Iterable[NewJob]:
        return (pending.entry.new_job for pending in self.batch if pending.entry.new_job)

    def changes(self) -> Iterable[JobChange]:
        return (pending.entry.job for pending in self.changing if pending.entry.job)


# --- why an entry was not written -------------------------------------------------------------------------


@frozen
class Found:
    """What the database holds where an entry wants to be written."""

    n: int
    status: str | None
    taken: bool
    same: bool | None
    follows: bool
    holder: UUID | None


def judge(pending: Pending, found: Found, stale: bool) -> Receipt | None:
    """The receipt of an entry that stands in a batch which came out short; None: it is not at fault."""
    if pending.entry.events and found.same:
        return Committed()  # written before, and the answer was lost
    if stale:
        return STALE_FENCE
    if not pending.entry.events:
        return None if found.status else CONFLICT
    if pending.creates:
        if found.holder is not None and found.holder != pending.task_id:
            return Duplicate(found.holder)
        return CONFLICT if found.status else None
    reopens = isinstance(pending.entry.events[0].body, Requeued)
    if found.status in ("completed", "failed", "cancelled") and not reopens:
        return TERMINAL
    return CONFLICT if found.status is None or found.taken or not found.follows else None


async def examine(connection: TrioConnection, batch: Sequence[Pending], stale: set[int]) -> list[Receipt | None]:
    """A verdict for each entry of a batch that was rolled back."""
    rows = [_question(n, pending) for n, pending in enumerate(batch)]
    async with connection.cursor(row_factory=class_row(Found)) as cursor:
        await cursor.execute(sql.EXAMINE, (array(rows),))
        found = {row.n: row for row in await cursor.fetchall()}
    return [judge(pending, found[n], id(pending) in stale) for n, pending in enumerate(batch)]


def _question(n: int, pending: Pending) -> bytes:
    user, key = pending.key or (pending.entry.task.user, None)
    question: dict[str, object] = {"n": n, "id": pending.task_id, "user": user, "key": key, "first": 1}
    if pending.entry.events:
        event = pending.entry.events[0]
        question |= {"first": event.seq, "type": codec.type_name(event.body), "at": event.at}
        question |= {"actor": event.actor, "attempt": event.attempt}
    return to_json(question)
