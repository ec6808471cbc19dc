"""PostgreSQL for the tests of this folder, what stands on it, and a data folder for servers of the tests' own."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from persistence.embedded import leftovers
from persistence.embedded.folder import lay_out
from persistence.journal.journal import PostgresJournal
from persistence.pool import Pool
from persistence.store import PostgresTaskStore
from tests.postgres import *  # noqa: F403


@pytest.fixture
async def journal(database: Pool, nursery: trio.Nursery) -> PostgresJournal:
    journal = PostgresJournal(database)
    nursery.start_soon(journal.flush)
    return journal


@pytest.fixture
def store(database: Pool) -> PostgresTaskStore:
    return PostgresTaskStore(database)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder that PostgreSQL's account can reach, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="elwift-test-"))
    folder.chmod(0o711)
    yield folder
    for pid in leftovers.running_in(lay_out(folder).cluster):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)
