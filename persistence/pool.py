"""Connections to the database: a bounded pool, and the watch that knows whether the database is there.

The pool is a plain object, made before the supervision tree; `watch` is the body of its process. While the database
is away nobody waits for it in vain: `connection` raises StorageDown at once, and the watch alone keeps asking.
May import engine.ports, psycopg and trio.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic, time
from typing import LiteralString

import psycopg
import trio
from attrs import define, field, frozen

from engine.ports import StorageDown
from persistence.connection import TrioConnection, use_msgspec
from persistence.migrator import migrate
from persistence.outage import is_outage, is_passing

log = logging.getLogger(__name__)

PROBE_INTERVAL = 2.0
"""Seconds between two looks at an idle database."""
PROBE_TIMEOUT = 3.0
"""Seconds after which a database that does not answer counts as away (a stopped process keeps its socket open)."""
PAUSES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
"""Seconds between attempts to reach a database that is away; the last one stays."""

# Every statement of ours finds its rows by an index, a few at a time. The planner is told so, because plans are kept:
# one that was made while a table was small must not become a scan of it when it has grown. And who holds locks in a
# transaction but stands still (a stopped process, a line that is cut) loses them, so that other servers go on.
SESSION: LiteralString = """
    SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
    SET jit = off; SET max_parallel_workers_per_gather = 0; SET idle_in_transaction_session_timeout = '10s'
"""


@frozen
class DatabaseHealth:
    """`since`: Unix time of the last change of `up`. `latency`: seconds that the last look took."""

    up: bool
    since: float
    latency: float
    last_error: str | None
    open: int
    idle: int


@define(eq=False)
class Pool:
    """At most `size` connections to `conninfo`, opened when needed and used again, last one first."""

    conninfo: str
    size: int = 8
    migrations: Callable[[str], object] | None = migrate
    _up: bool = field(init=False, default=False)
    _since: float = field(init=False, factory=time)
    _latency: float = field(init=False, default=0.0)
    _error: str | None = field(init=False, default=None)
    served: dict[tuple[str, int], int] = field(init=False, factory=dict)
    _idle: list[TrioConnection] = field(init=False, factory=list)
    _lent: set[TrioConnection] = field(init=False, factory=set)
    _room: trio.Semaphore = field(init=False)
    _came_up: trio.Event = field(init=False, factory=trio.Event)
    _suspicion: trio.Event = field(init=False, factory=trio.Event)
    _migrated: bool = field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        self._room = trio.Semaphore(self.size)

    @property
    def up(self) -> bool:
        return self._up

    def health(self) -> DatabaseHealth:
        return DatabaseHealth(self._up, self._since, self._latency, self._error, self._open, len(self._idle))

    @property
    def _open(self) -> int:
        return len(self._idle) + len(self._lent)

    async def wait_up(self) -> None:
        """Returns once the database is there. Waits as long as it takes: its callers have nothing else to do."""
        while not self._up:
            await self._came_up.wait()

    @asynccontextmanager
    async def connection(self, timeout: float = 5.0) -> AsyncIterator[TrioConnection]:
        """A connection in autocommit mode, for the length of the block.

        Raises:
            StorageDown: the database is away, went away during the block, or had no connection free in `timeout` s;
                or a clash with other transactions, after which the same may succeed.
        """
        connection = await self._take(timeout)
        try:
            yield connection
        except (psycopg.Error, OSError) as problem:
            if not is_outage(problem):
                raise
            if not is_passing(problem):
                self.suspect(problem)
            raise StorageDown(str(problem)) from problem
        finally:
            self._give(connection)

    async def dedicated(self) -> TrioConnection:
        """A connection outside the pool, the caller's to close (for LISTEN). Raises StorageDown."""
        if not self._up:
            raise StorageDown(self._error or "the database is away")
        return await self._connect()

    def suspect(self, problem: BaseException) -> None:
        """Somebody met an error: the watch looks at once whether it is an outage."""
        self._error = str(problem)
        self._suspicion.set()

    async def _take(self, timeout: float) -> TrioConnection:
        if not self._up:
            raise StorageDown(self._error or "the database is away")
        with trio.move_on_after(timeout) as scope:
            await self._room.acquire()
        if scope.cancelled_caught:
            raise StorageDown(f"no connection to the database was free within {timeout:.1f} s")
        while self._idle:
            connection = self._idle.pop()
            if not connection.hung_up():
                self._lent.add(connection)
                return connection
            connection.pgconn.finish()
        try:
            connection = await self._connect()
        except BaseException:
            self._room.release()
            raise
        self._lent.add(connection)
        return connection

    def _give(self, connection: TrioConnection) -> None:
        """Takes a connection back, unless it is broken or in the middle of something."""
        self._lent.discard(connection)
        if connection.at_rest and self._up:
            self._idle.append(connection)
        else:
            connection.pgconn.finish()
        self._room.release()

    async def _connect(self) -> TrioConnection:
        try:
            with trio.fail_after(PROBE_TIMEOUT):
                connection = await _connected(self.conninfo)
        except (psycopg.Error, OSError, trio.TooSlowError) as problem:
            self.suspect(problem)
            raise StorageDown(str(problem) or "the database does not answer") from problem
        connection.served = self.served
        return connection

    # --- the watch ---------------------------------------------------------------------------------------

    async def watch(self, started: Callable[[], None]) -> None:
        """Keeps `up` true to the facts until cancelled, then closes what is idle.

        `started` is called after the first look, whatever it found. The first time that the database is seen its
        schema is brought up to date.
        """
        attempt = 0
        try:
            while True:
                try:
                    connection = await self._look()
                except StorageDown as problem:
                    self._down(problem)
                    started()
                    await trio.sleep(PAUSES[min(attempt, len(PAUSES) - 1)])
                    attempt += 1
                    continue
                attempt = 0
                self._rise()
                started()
                await self._guard(connection)
        finally:
            self._fall("the pool is closed")

    async def _look(self) -> TrioConnection:
        """Connects, asks, and migrates when that has not been done. Raises StorageDown."""
        self._suspicion = trio.Event()
        connection = await self._connect()
        try:
            await self._probe(connection)
            if self.migrations and not self._migrated:
                await trio.to_thread.run_sync(partial(self.migrations, self.conninfo))
                self._migrated = True
        except (psycopg.Error, OSError) as problem:
            connection.pgconn.finish()
            raise StorageDown(str(problem)) from problem
        except BaseException:
            connection.pgconn.finish()
            raise
        return connection

    async def _probe(self, connection: TrioConnection) -> None:
        began = monotonic()
        with trio.move_on_after(PROBE_TIMEOUT) as scope:
            await connection.execute("SELECT 1")
        if scope.cancelled_caught:
            raise StorageDown(f"the database did not answer within {PROBE_TIMEOUT:.0f} s")
        self._latency = monotonic() - began

    async def _guard(self, connection: TrioConnection) -> None:
        """Returns when the database is no longer there."""
        try:
            while True:
                await self._pause(connection)
                self._suspicion = trio.Event()
                await self._probe(connection)
        except (psycopg.Error, OSError, StorageDown) as problem:
            self._down(problem)
        finally:
            connection.pgconn.finish()

    async def _pause(self, connection: TrioConnection) -> None:
        """Until the next look: when it is due, when somebody met an error, or when the server hangs up."""
        with trio.move_on_after(PROBE_INTERVAL):
            async with trio.open_nursery() as nursery:

                async def hung_up() -> None:
                    await connection.dead()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(hung_up)
                await self._suspicion.wait()
                nursery.cancel_scope.cancel()

    def _rise(self) -> None:
        log.info("the database is there")
        self._up, self._since, self._error = True, time(), None
        self._came_up.set()

    def _down(self, problem: BaseException) -> None:
        if self._up or str(problem) != self._error:
            log.error("the database is away: %s", problem)
        self._fall(str(problem))

    def _fall(self, why: str) -> None:
        if self._up:
            self._up, self._since = False, time()
            self._came_up = trio.Event()
        self._error = why
        self._latency = 0.0
        for connection in self._idle:
            connection.pgconn.finish()
        self._idle.clear()
        for connection in self._lent:
            connection.drop()


async def _connected(conninfo: str) -> TrioConnection:
    connection = await TrioConnection.connect(conninfo)
    try:
        await connection.execute(SESSION)
    except BaseException:
        connection.pgconn.finish()
        raise
    use_msgspec(connection)
    return connection
