"""Everything that survives, put together: `Persistence` makes the handles and the branch of the supervision tree.

    persistence = Persistence(PersistenceSettings(data_dir))
    await persistence.prepare()           # claims the folder; says in words what is wrong
    ... Supervisor.start_link([persistence.spec(), ...]) ...
    persistence.release()

The handles (`journal`, `store`, `snapshots`, …) are plain objects and usable as soon as they exist; until the tree
runs, the journal keeps what it is given and the stores raise StorageDown.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import trio
from attrs import define, field, frozen

from engine.otp import ONE_FOR_ONE, ChildSpec, Start, Supervisor, init_ack
from persistence.connection import TrioConnection
from persistence.embedded.folder import DataFolder, FolderError
from persistence.embedded.server import EmbeddedServer
from persistence.journal.journal import PostgresJournal
from persistence.models import PostgresModelStore
from persistence.pool import DatabaseHealth, Pool
from persistence.removal import Removal
from persistence.retention import Retention
from persistence.snapshots import Snapshotter
from persistence.store import PostgresTaskStore
from persistence.usage import UsageStore
from persistence.users import PostgresUserStore
from persistence.webhooks import WebhookStore

OLDEST = 130000
"""The oldest PostgreSQL that will do (it can tell what became of a transaction)."""
POSTGRES_SHUTDOWN = 20.0
LAST_FLUSH = 4.0
"""Seconds that the journal and the snapshotter get at the end for what they still hold."""


class DatabaseUnreachable(Exception):
    """The database of the settings does not answer; the message is for a person."""


@frozen
class PersistenceSettings:
    """`database_url` is any connection string of libpq; empty: PostgreSQL is embedded, in `data_dir`."""

    data_dir: Path
    database_url: str = field(default="", repr=False)
    bin_dir: str = ""
    strict: bool = False
    snapshot_interval: float = 5.0
    pool_size: int = 10
    journal_bound: int = 20_000


@define(eq=False)
class Persistence:
    """The handles, and their processes as one child for the tree."""

    settings: PersistenceSettings
    folder: DataFolder = field(init=False)
    server: EmbeddedServer | None = field(init=False)
    pool: Pool = field(init=False)
    journal: PostgresJournal = field(init=False)
    store: PostgresTaskStore = field(init=False)
    snapshots: Snapshotter = field(init=False)
    models: PostgresModelStore = field(init=False)
    users: PostgresUserStore = field(init=False)
    webhooks: WebhookStore = field(init=False)
    retention: Retention = field(init=False)
    removal: Removal = field(init=False)
    usage: UsageStore = field(init=False)

    def __attrs_post_init__(self) -> None:
        settings = self.settings
        self.folder = DataFolder(settings.data_dir)
        self.server = None if settings.database_url else EmbeddedServer(self.folder, settings.bin_dir)
        self.pool = Pool(self.server.conninfo if self.server else settings.database_url, settings.pool_size)
        self.journal = PostgresJournal(self.pool, settings.journal_bound, strict=settings.strict)
        self.store = PostgresTaskStore(self.pool)
        self.snapshots = Snapshotter(self.pool, settings.snapshot_interval)
        self.models = PostgresModelStore(self.pool)
        self.users = PostgresUserStore(self.pool)
        self.webhooks = WebhookStore(self.pool)
        self.retention = Retention(self.pool)
        self.removal = Removal(self.pool)
        self.usage = UsageStore(self.pool)

    async def prepare(self) -> None:
        """Claims the data folder; with a database URL, tries it once.

        Raises:
            FolderError, FolderInUse: the folder cannot be had.
            DatabaseUnreachable: there is no answer at the URL, or one of a PostgreSQL that is too old.
        """
        self.folder.claim()
        if self.server is None:
            try:
                with trio.fail_after(10):
                    connection = await TrioConnection.connect(self.settings.database_url)
            except (psycopg.Error, OSError, trio.TooSlowError) as problem:
                self.folder.release()
                why = str(problem).strip() or "no answer within 10 s"
                raise DatabaseUnreachable(f"The database cannot be reached: {why}") from problem
            version = connection.info.server_version
            await connection.close()
            if version < OLDEST:
                self.folder.release()
                raise DatabaseUnreachable(f"PostgreSQL {OLDEST // 10000} or newer is needed, not {version // 10000}.")

    def release(self) -> None:
        """Gives the data folder back, after the tree has ended."""
        self.folder.release()

    def health(self) -> DatabaseHealth:
        return self.pool.health()

    def spec(self) -> ChildSpec:
        """The supervisor of the embedded server (if any), the pool, the journal, the snapshotter and the writer of
        deliveries, in this order.

        None of them crashes when the database is away; each is restarted alone when it has a fault of its own, and
        goes on with what its handle holds.
        """
        children = [
            _child("pool", LAST_FLUSH, run_pool, self.pool),
            _child("journal", LAST_FLUSH, run_journal, self.journal),
            _child("snapshots", LAST_FLUSH, run_snapshots, self.snapshots),
            _child("webhooks", 0.0, run_webhooks, self.webhooks),
        ]
        if self.server:
            children.insert(0, _child("postgres", POSTGRES_SHUTDOWN, run_server, self.server))
        return Supervisor.spec(children, strategy=ONE_FOR_ONE, id="persistence", name="persistence")


def _child(name: str, last_words: float, body: Callable[[Any], Awaitable[None]], handle: object) -> ChildSpec:
    """A process of this branch; it gets a little more than `last_words` seconds to end."""
    return ChildSpec(name, Start.process(body, handle, name=name), shutdown=last_words + 2.0)


# --- the processes ----------------------------------------------------------------------------------------


async def run_server(server: EmbeddedServer) -> None:
    """PostgreSQL's process: up when the server takes connections."""
    await server.run(ready=_once(init_ack))


async def run_pool(pool: Pool) -> None:
    """The pool's watch: up after the first look at the database, whatever it found."""
    await pool.watch(started=_once(init_ack))


async def run_journal(journal: PostgresJournal) -> None:
    """The journal's process. When it is told to end, it first writes what it still holds."""
    init_ack()
    # also while the database is away: it may be back within the time that there is
    await _with_last_words(journal.flush, journal.finish)


async def run_snapshots(snapshots: Snapshotter) -> None:
    """The snapshotter's process; a last round at its end."""
    init_ack()
    await _with_last_words(snapshots.run, snapshots.finish)


async def run_webhooks(webhooks: WebhookStore) -> None:
    """The process that stores deliveries. At its end who waits is told to come again."""
    init_ack()
    await webhooks.run()


async def _with_last_words(body: Callable[[], Awaitable[None]], last: Callable[[], Awaitable[None]]) -> None:
    """`body` until the process is told to end, then `last`, within its time."""
    try:
        await body()
    finally:
        # not by `except Cancelled`: out of a nursery it comes in a group
        told_to_end = trio.current_effective_deadline() == -math.inf
        if told_to_end:
            with trio.move_on_after(LAST_FLUSH, shield=True):
                await last()


def _once(call: Callable[[], object]) -> Callable[[], None]:
    """`call`, the first time only."""
    calls = iter([call])

    def once() -> None:
        for first in calls:
            first()

    return once


__all__ = ["DatabaseUnreachable", "FolderError", "Persistence", "PersistenceSettings"]
