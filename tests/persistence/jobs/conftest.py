"""One database for this folder, emptied before each test: making a fresh one costs half a second."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from persistence.pool import Pool
from tests.postgres import TestServer, opened


@pytest.fixture(scope="session")
def jobs_conninfo(postgres_server: TestServer) -> Iterator[str]:
    name = postgres_server.create()
    yield postgres_server.conninfo(name)
    postgres_server.drop(name)


@pytest.fixture
async def database(jobs_conninfo: str) -> AsyncIterator[Pool]:
    """A pool on a database without a job."""
    async with opened(jobs_conninfo, size=8) as pool:
        async with pool.connection() as connection:
            await connection.execute("TRUNCATE jobs, job_queues, servers, job_crons")
        yield pool
