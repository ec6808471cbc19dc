"""Brings a database's schema up to date: plain SQL files, applied by yoyo under an advisory lock of PostgreSQL.

yoyo's own lock is a row, which a killed process would leave behind for ever; an advisory lock ends with its
connection. And yoyo notes a migration in another transaction than the one that applies it: who was killed between the
two could never start again. Here both are one. When all is applied already this costs one connection and one query.
Blocking: call in a thread.
May import psycopg and yoyo, nothing of ours.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import psycopg

HERE = Path(__file__).parent
FOLDERS = (HERE / "migrations", HERE / "jobs" / "migrations")
LOCK_KEY = 0x656C77696674  # "elwift"
LOCK_TIMEOUT = "60s"

log = logging.getLogger(__name__)


def migrate(conninfo: str, folders: Iterable[Path] = FOLDERS) -> tuple[str, ...]:
    """Applies what is missing, in the order of the files' names; the names of what was applied.

    Two that start at once do it one after the other. A migration that fails is rolled back and raises.
    """
    wanted = [path for folder in folders for path in sorted(folder.glob("*.sql"))]
    names = {path.stem for path in wanted if not path.name.endswith(".rollback.sql")}
    with psycopg.connect(conninfo, autocommit=True) as connection:
        if names <= applied(connection):
            return ()
        # on a server of the user's a lock may be held long by a start elsewhere; that is not ours to wait for blindly
        connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
        connection.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
        missing = names - applied(connection)
        if missing:
            _apply(conninfo, folders)
        return tuple(sorted(missing))


def applied(connection: psycopg.Connection[Any]) -> frozenset[str]:
    """The names of the migrations that this database has had."""
    table = connection.execute("SELECT to_regclass('_yoyo_migration')").fetchone()
    if table is None or table[0] is None:
        return frozenset()
    return frozenset(name for (name,) in connection.execute("SELECT migration_id FROM _yoyo_migration"))


def _apply(conninfo: str, folders: Iterable[Path]) -> None:
    # imported late: most starts have nothing to apply
    import yoyo
    from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
    from yoyo.connections import parse_uri

    class Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]
        """yoyo's, for a caller who may be killed at any instant and who holds an advisory lock."""

        def connect(self, dburi: object) -> psycopg.Connection[Any]:
            # any connection string of libpq: yoyo's own URIs know no socket folders
            return psycopg.connect(conninfo, autocommit=True)

        def lock(self, timeout: float = 0.0) -> AbstractContextManager[None]:
            return nullcontext()

        def apply_one(self, migration: yoyo.migrations.Migration, force: bool = False, mark: bool = True) -> None:
            with self.transaction():
                migration.process_steps(self, "apply")
                self.mark_one(migration)

    for name in ("yoyo", "yoyo.migrations", "yoyo.backends"):
        logging.getLogger(name).setLevel(logging.WARNING)
    backend = Backend(parse_uri("postgresql+psycopg://"), "_yoyo_migration")
    try:
        backend.init_database()
        migrations = yoyo.read_migrations(*(str(folder) for folder in folders))
        backend.apply_migrations(backend.to_apply(migrations))
    finally:
        backend.connection.close()
