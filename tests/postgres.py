"""A real PostgreSQL for the tests: one server a session, an empty database with the whole schema for each test.

In a folder's conftest: `from tests.postgres import *` (or the fixtures by name). The server keeps nothing over a
crash of the machine (fsync is off), which makes it quick; what is tested about durability is done with servers of
the tests' own.
"""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest
import trio
from attrs import field, frozen

from persistence.embedded import server
from persistence.embedded.folder import lay_out
from persistence.migrator import migrate
from persistence.pool import Pool

__all__ = ["conninfo", "database", "opened", "outage", "postgres_server"]

TEMPLATE = "elwift_template"
SWOLLEN = 30_000_000
TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename NOT LIKE '%yoyo%'"
END_CONNECTIONS = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s"
_numbers = itertools.count(1)


@frozen
class TestServer:
    """The session's server; `conninfo(name)` connects to one of its databases."""

    __test__ = False
    sockets: Path
    clean: list[str] = field(factory=list)

    def conninfo(self, database: str = "postgres") -> str:
        return f"host='{self.sockets}' user={server.SUPERUSER} dbname={database} connect_timeout=5"

    def create(self, template: str = TEMPLATE) -> str:
        """Makes a database; its name."""
        name = f"test_{next(_numbers)}"
        with psycopg.connect(self.conninfo(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return name

    def take(self) -> str:
        """A database with the whole schema and no rows: one that was given back, or a new one."""
        return self.clean.pop() if self.clean else self.create()

    def give_back(self, name: str) -> None:
        """Empties a database for the next test; making one costs a hundred times as much. A swollen one is dropped."""
        with psycopg.connect(self.conninfo(), autocommit=True) as connection:
            connection.execute(END_CONNECTIONS, (name,))
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            connection.execute(f"ALTER DATABASE {name} RESET ALL")
        with psycopg.connect(self.conninfo(name)) as connection:
            size = connection.execute("SELECT pg_database_size(current_database())").fetchone()
            connection.execute("SET session_replication_role = replica")  # no foreign keys: any order will do
            for (table,) in connection.execute(TABLES).fetchall():
                connection.execute(f'DELETE FROM "{table}"')
        if size and size[0] > SWOLLEN:
            self.drop(name)
        else:
            self.clean.append(name)

    def drop(self, name: str) -> None:
        with psycopg.connect(self.conninfo(), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[TestServer]:
    """Starts PostgreSQL in a folder of its own, makes the template database, and stops it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="elwift-tests-"))
    folder.chmod(0o711)
    layout = lay_out(folder)
    installation = server.install("", folder, layout)
    quick = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "32MB"}
    child = server.start(installation, quick)
    try:
        _wait_ready(child)
        # a full pipe would stop whoever has an error to report
        threading.Thread(target=child.stderr.read if child.stderr else None, daemon=True).start()
        running = TestServer(layout.sockets)
        with psycopg.connect(running.conninfo(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {TEMPLATE}")
        migrate(running.conninfo(TEMPLATE))
        yield running
    finally:
        child.send_signal(signal.SIGINT)
        child.wait(timeout=20)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_ready(child: subprocess.Popen[bytes]) -> None:
    assert child.stderr is not None
    said = []
    for line in child.stderr:
        said.append(line)
        if b"ready to accept connections" in line:
            return
    raise RuntimeError(b"".join(said).decode())


@pytest.fixture
def conninfo(postgres_server: TestServer) -> Iterator[str]:
    """Connects to a database of the test's own, with the whole schema and no rows."""
    name = postgres_server.take()
    yield postgres_server.conninfo(name)
    postgres_server.give_back(name)


@asynccontextmanager
async def opened(conninfo: str, size: int = 4) -> AsyncIterator[Pool]:
    """A pool that is watched, and up."""
    pool = Pool(conninfo, size, migrations=None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.watch, lambda: None)
        with trio.fail_after(10):
            await pool.wait_up()
        yield pool
        nursery.cancel_scope.cancel()


@pytest.fixture
async def database(conninfo: str) -> AsyncIterator[Pool]:
    """A pool on a fresh database with the whole schema."""
    async with opened(conninfo) as pool:
        yield pool


@frozen
class Outage:
    """Takes a test's database away and gives it back, as a crash of the server looks to its clients."""

    server: TestServer
    name: str

    def begin(self) -> None:
        """Ends every connection, and lets nobody in."""
        with psycopg.connect(self.server.conninfo(), autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS false")
            connection.execute(END_CONNECTIONS, (self.name,))

    def end(self) -> None:
        with psycopg.connect(self.server.conninfo(), autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS true")


@pytest.fixture
def outage(postgres_server: TestServer, conninfo: str) -> Outage:
    """The switch of this test's own database."""
    name = psycopg.conninfo.conninfo_to_dict(conninfo)["dbname"]
    return Outage(postgres_server, str(name))
