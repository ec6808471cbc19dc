"""The journal: takes entries at once, writes them in groups, tells each submitter what became of it.

`PostgresJournal` is a plain object, made before the supervision tree: it holds what is not written yet, so nothing
is lost when the process that flushes it (`flush`, under the persistence supervisor) crashes and is restarted.

Entries of one task are written one after the other, in the order of submission; those of different tasks are
independent. While the database is away everything waits in memory, up to a bound.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Sequence
from time import time
from uuid import UUID

import trio
from attrs import define, field

from engine.jobs.ports import QueueDoor
from engine.ports import (
    Buffered,
    Committed,
    Duplicate,
    Entry,
    JournalFull,
    JournalHealth,
    Notify,
    Receipt,
    Refused,
    StorageDown,
)
from persistence.journal.batch import Writer
from persistence.journal.line import BATCH_ENTRIES, Line
from persistence.journal.rows import Pending, Poison, prepare
from persistence.outage import concerns_all, is_locked, is_passing
from persistence.pool import Pool

log = logging.getLogger(__name__)

UNAVAILABLE = Refused("unavailable")
PATIENCE = 2.0
"""Seconds after which submitters of entries that are still not written hear that they are in memory only."""
FLUSH_TIMEOUT = 20.0
"""Seconds after which a write that gets no answer is given up, its connection dropped, and tried again."""
PAUSES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds between attempts while the database is there but takes no writes; the last one stays."""
TRIES_WHOLE = 3
"""After so many failures of a batch it is tried in parts."""
CAUGHT_UP = BATCH_ENTRIES
"""As many entries as may wait when an outage counts as over."""
RECENT_KEYS = 20_000
RESERVE = 4
"""Entries of tasks that are already under way are taken up to this many times the bound: what runs may end."""


@define(eq=False)
class PostgresJournal:
    """Implements `engine.ports.Journal`.

    `bound` and `byte_bound` limit what waits. With `strict` no new task is taken while the database is away, and those
    that it catches on their way are refused as `unavailable`, unless they may have been committed already: these wait
    until that is known. `door` is the queue's (set it before the tree starts).
    """

    pool: Pool
    bound: int = 20_000
    byte_bound: int = 256 * 1024 * 1024
    strict: bool = False
    lanes: int = 2
    door: QueueDoor | None = None
    _line: Line = field(init=False, factory=Line)
    _keys: dict[tuple[str, str], Pending] = field(init=False, factory=dict)
    _recent: OrderedDict[tuple[str, str], UUID] = field(init=False, factory=OrderedDict)
    """Keys that were committed lately: who repeats a request in an outage, most likely made it just before."""
    _up: bool = field(init=False, default=True)
    _since: float = field(init=False, factory=time)
    _error: str | None = field(init=False, default=None)
    committed: int = field(init=False, default=0)
    batches: int = field(init=False, default=0)

    # --- taking -------------------------------------------------------------------------------------------

    def submit(self, entry: Entry, notify: Notify) -> None:
        """Takes an entry without waiting; `notify` is called on the loop with each receipt. Raises JournalFull."""
        try:
            pending = prepare(entry, notify)
        except Poison as problem:
            log.error("%s", problem)
            notify(Refused("poison"))
            return
        self._admit(pending)
        pending.since = trio.current_time()
        self._line.enter(pending)
        self._enqueue(pending)
        if not self._up:
            self._tell_buffered(pending)

    async def write(self, entry: Entry) -> Receipt:
        """Submits and waits for the first receipt. Its deadline: `PATIENCE`, then the answer is Buffered."""
        first: list[Receipt] = []
        arrived = trio.Event()

        def notify(receipt: Receipt) -> None:
            first.append(receipt)
            arrived.set()

        self.submit(entry, notify)
        await arrived.wait()
        return first[0]

    def health(self) -> JournalHealth:
        full = self._line.count >= self.bound or self._line.bytes >= self.byte_bound
        accepting = not full and not (self.strict and not self._up)
        return JournalHealth(self._up, self._since, self._line.count, self.bound, self._error, accepting)

    async def drained(self) -> None:
        """Returns when nothing waits. The caller sets the deadline."""
        await self._line.emptied()

    def _admit(self, pending: Pending) -> None:
        """Raises JournalFull."""
        times = 1 if pending.creates else RESERVE
        full = self._line.count >= self.bound * times or self._line.bytes + pending.size > self.byte_bound * times
        if full or (self.strict and not self._up and pending.creates):
            raise JournalFull(retry_after=2.0 if self._up else 10.0)

    def _enqueue(self, pending: Pending) -> None:
        """To the line; unless its idempotency key is another task's, as far as is known here."""
        key = pending.key
        if key is not None:
            holder = self._keys.setdefault(key, pending)
            if holder is not pending:
                self._follow(holder, pending)
                return
            known = self._recent.get(key, pending.task_id)
            if known != pending.task_id and not self._up:
                self._settle(pending, Duplicate(known))
                return
        self._line.join(pending)

    def _follow(self, holder: Pending, pending: Pending) -> None:
        """A second task under the same idempotency key waits for what becomes of the first."""
        if holder.told:
            self._settle(pending, Duplicate(holder.task_id))
        else:
            holder.followers.append(pending)

    # --- telling ------------------------------------------------------------------------------------------

    def _tell_buffered(self, pending: Pending) -> None:
        if pending.told or pending.settled:
            return
        pending.told = True
        self._tell(pending, Buffered())
        followers, pending.followers = pending.followers, []
        for follower in followers:
            self._settle(follower, Duplicate(pending.task_id))

    def _settle(self, pending: Pending, receipt: Receipt) -> None:
        """The last receipt of an entry: it leaves the journal."""
        pending.settled = True
        self._line.leave(pending)
        if pending.key and self._keys.get(pending.key) is pending:
            del self._keys[pending.key]
            self._remember(pending.key, pending.task_id, receipt)
        self._tell(pending, receipt)
        for follower in pending.followers:
            match receipt:
                case Committed():
                    self._settle(follower, Duplicate(pending.task_id))
                case Duplicate():
                    self._settle(follower, receipt)
                case _:
                    self._enqueue(follower)
        pending.followers = []

    def _remember(self, key: tuple[str, str], task_id: UUID, receipt: Receipt) -> None:
        if isinstance(receipt, Committed):
            self._recent[key] = task_id
        if len(self._recent) > RECENT_KEYS:
            self._recent.popitem(last=False)

    def _tell(self, pending: Pending, receipt: Receipt) -> None:
        """A submitter that fails on a receipt harms itself alone."""
        try:
            self._tell_door(pending, receipt)
            pending.notify(receipt)
        except Exception:
            log.exception("a receipt of task %s could not be delivered", pending.task_id)

    def _tell_door(self, pending: Pending, receipt: Receipt) -> None:
        if self.door is None:
            return
        if pending.entry.new_job:
            self.door.inserted(pending.entry.new_job, receipt)
        if pending.entry.job:
            self.door.changed(pending.entry.job, receipt)

    # --- writing ------------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """The body of the journal's process: writes until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_patience)
            nursery.start_soon(self._lane_aside)
            for number in range(self.lanes):
                nursery.start_soon(self._lane, number)

    async def finish(self) -> None:
        """Writes until nothing waits. The caller sets the deadline."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.flush)
            await self.drained()
            nursery.cancel_scope.cancel()

    async def _lane(self, number: int) -> None:
        """Writes one batch after the other. What is not settled when the lane ends goes back in front."""
        while True:
            batch = await self._line.take(number)
            try:
                await self._persist(Writer(batch, self._written, self.door))
            finally:
                self._line.put_back(number)
            self.batches += 1

    async def _persist(self, writer: Writer) -> None:
        """Writes a batch, however long the database is away."""
        others = self.committed
        while True:
            try:
                if await self._once(writer):
                    return
            except StorageDown as problem:
                await self._failed(writer, problem, alone=self.committed == others)
            if self.pool.up:
                await trio.sleep(PAUSES[min(writer.failures, len(PAUSES) - 1)])
            else:
                await self.pool.wait_up()

    async def _failed(self, writer: Writer, problem: StorageDown, alone: bool) -> None:
        """A connection may break, or a transaction clash with another, while the database is well: the first failure is
        told to nobody, a clash only to those whose patience ends. `alone`: nothing else was written meanwhile."""
        cause, failures = problem.__cause__, writer.count_failure()
        if is_locked(cause):
            await self._set_locked_aside(writer)
        elif not is_passing(cause) and (failures > 1 or not self.pool.up):
            self._outage(str(problem), writer.left())
        if failures > TRIES_WHOLE and not concerns_all(cause) and not writer.narrow() and not alone:
            self._set_aside(writer, writer.left()[-1:])

    async def _set_locked_aside(self, writer: Writer) -> None:
        """Somebody holds rows: the entries that need them wait for that alone, and the others do not."""
        try:
            with trio.move_on_after(FLUSH_TIMEOUT):
                async with self.pool.connection() as connection:
                    self._set_aside(writer, await writer.locked(connection))
        except StorageDown as problem:
            log.warning("the journal waits for a lock: %s", problem)

    def _set_aside(self, writer: Writer, some: Sequence[Pending]) -> None:
        for pending in some:
            log.warning("an entry of task %s is set aside", pending.task_id)
            self._line.set_aside(pending)
        writer.leave_out(some)

    async def _lane_aside(self) -> None:
        """Tries, one after the other, what something of its own keeps from being written."""
        while True:
            pending = await self._line.next_aside()
            writer = Writer([pending], self._written, self.door)
            while not pending.settled:
                try:
                    await self._once(writer)
                except StorageDown as problem:
                    log.warning("an entry of task %s waits: %s", pending.task_id, problem)
                    self._keep_waiting(pending)
                    await self.pool.wait_up()
                    await trio.sleep(PAUSES[-1])
                    if not pending.unsure:
                        self._line.turn_aside()
                        break
                else:
                    await trio.sleep(PAUSES[0])

    async def _once(self, writer: Writer) -> bool:
        """One attempt. Raises StorageDown, also for a server that does not answer in time."""
        with trio.move_on_after(FLUSH_TIMEOUT):
            async with self.pool.connection(timeout=FLUSH_TIMEOUT) as connection:
                return await writer.write(connection)
        raise StorageDown(f"a write got no answer within {FLUSH_TIMEOUT:.0f} s")

    def _written(self, pending: Pending, receipt: Receipt) -> None:
        """A lane is done with an entry: the database has spoken, so it is there. But the journal is up again only when
        it has caught up: until then who comes waits behind all that came before, and had better hear so at once."""
        if not self._up and self._line.count <= CAUGHT_UP:
            log.info("the journal writes again; it kept entries in memory for %.1f s", time() - self._since)
            self._up, self._since, self._error = True, time(), None
        self.committed += isinstance(receipt, Committed)
        self._leave(pending, receipt)

    def _leave(self, pending: Pending, receipt: Receipt) -> None:
        """The last receipt of an entry; the next one of its task moves up."""
        self._settle(pending, receipt)
        self._line.done(pending)

    def _outage(self, problem: str, batch: Sequence[Pending]) -> None:
        """What waits is in memory only now, and everybody concerned is told, once; the queue each time."""
        first = self._up
        if first:
            self._up, self._since = False, time()
            log.error("the journal keeps entries in memory: %s", problem)
        self._error = problem
        for pending in batch:
            self._keep_waiting(pending)
        for pending in self._line.waiting() if first else ():
            if not pending.told and not pending.settled:
                self._keep_waiting(pending)

    def _keep_waiting(self, pending: Pending) -> None:
        """An entry could not be written now."""
        if pending.settled:
            return
        if pending.told:
            self._tell_door(pending, Buffered())
        elif not (self.strict and pending.creates):
            self._tell_buffered(pending)
        elif not pending.unsure:
            self._leave(pending, UNAVAILABLE)

    async def _watch_patience(self) -> None:
        """A database that takes its time is as good as away for those who wait: they hear so after `PATIENCE`."""
        while True:
            await trio.sleep(PATIENCE / 4)
            oldest = min((pending.since for pending in self._line.taken() if not pending.told), default=math.inf)
            if self._up and trio.current_time() - oldest > PATIENCE:
                self._outage(f"a write takes longer than {PATIENCE:.0f} s", [])
