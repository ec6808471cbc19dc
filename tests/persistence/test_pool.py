"""The pool hands out working connections, knows when the database is away, and says so at once."""

from __future__ import annotations

import psycopg
import pytest
import trio

from engine.ports import StorageDown
from persistence.outage import is_outage
from persistence.pool import Pool
from tests.postgres import Outage, opened


async def backend(pool: Pool) -> int:
    async with pool.connection() as connection:
        return connection.info.backend_pid


async def test_a_connection_is_used_again(database: Pool) -> None:
    assert await backend(database) == await backend(database)


async def test_one_left_in_the_middle_of_a_transaction_is_not(database: Pool) -> None:
    async with database.connection() as connection:
        await connection.execute("BEGIN")
        left = connection.info.backend_pid
    assert await backend(database) != left


async def test_nobody_waits_for_ever_for_a_free_connection(conninfo: str) -> None:
    async with opened(conninfo, size=1) as pool, pool.connection():
        with pytest.raises(StorageDown, match="free"):
            async with pool.connection(timeout=0.05):
                pass


async def test_a_wrong_statement_is_not_an_outage(database: Pool) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable):
        async with database.connection() as connection:
            await connection.execute("SELECT * FROM nothing")
    assert database.up


async def test_an_outage_is_noticed_without_a_query_and_its_end_too(database: Pool, outage: Outage) -> None:
    await trio.to_thread.run_sync(outage.begin)
    with trio.fail_after(5):
        while database.up:
            await trio.testing.wait_all_tasks_blocked(0.01)
    with pytest.raises(StorageDown):
        async with database.connection():
            pass
    health = database.health()
    assert not health.up
    assert health.last_error
    await trio.to_thread.run_sync(outage.end)
    with trio.fail_after(5):
        await database.wait_up()
    assert await backend(database)


async def test_a_cancelled_transaction_is_rolled_back_and_its_connection_replaced(database: Pool) -> None:
    with trio.move_on_after(0.1):
        async with database.connection() as connection, connection.transaction():
            used = connection.info.backend_pid
            await connection.execute("INSERT INTO users (external_id) VALUES ('ghost')")
            await connection.execute("SELECT pg_sleep(60)")
    assert await backend(database) != used
    async with database.connection() as connection:
        assert await (await connection.execute("SELECT count(*) FROM users")).fetchone() == (0,)


async def test_a_connection_lost_in_use_is_storage_down(database: Pool, conninfo: str) -> None:
    async def lose_it() -> None:
        async with database.connection() as connection:
            async with await type(connection).connect(conninfo) as other:
                await other.execute("SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))
            await connection.execute("SELECT 1")

    with pytest.raises(StorageDown):
        await lose_it()
    assert await backend(database)


@pytest.mark.parametrize(
    ("state", "away"), [("53100", True), ("57P01", True), ("40P01", True), ("23505", False), ("22P05", False)]
)
def test_the_class_of_an_error_tells_an_outage_from_a_mistake(state: str, away: bool) -> None:
    assert is_outage(psycopg.errors.lookup(state)("")) is away


async def test_a_connection_whose_user_was_cancelled_in_a_pipeline_is_not_handed_out_again(database: Pool) -> None:
    """At whatever checkpoint it happens."""

    async def use() -> None:
        async with database.connection() as connection, connection.pipeline(), connection.transaction():
            await connection.execute("SELECT 1")
            await connection.execute("SELECT 2")

    for turns in range(12):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        async with database.connection() as connection:
            rows = await connection.execute("SELECT generate_series(1, 300)")
            assert len(await rows.fetchmany(100)) == 100
