"""psycopg on trio: nothing of asyncio is needed, cancellation is real, and a long statement does not hold the loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from time import perf_counter

import psycopg
import pytest
import trio
import trio.testing

from persistence.connection import PRIVATE_NAMES, YIELD_BUDGET, TrioConnection, use_msgspec


@pytest.fixture
async def connection(conninfo: str) -> AsyncIterator[TrioConnection]:
    connection = await TrioConnection.connect(conninfo)
    use_msgspec(connection)
    yield connection
    await connection.close()


async def fetch(connection: TrioConnection, query: str, *values: object) -> object:
    row = await (await connection.execute(query, values)).fetchone()  # type: ignore[arg-type]
    return row[0] if row else None


def test_the_private_names_that_it_leans_on_are_there() -> None:
    assert psycopg.__version__.startswith("3.3.")
    assert [name for name in PRIVATE_NAMES if not hasattr(psycopg.AsyncConnection, name)] == []


async def test_values_cross_in_both_directions(connection: TrioConnection) -> None:
    assert await fetch(connection, "SELECT %s::int + 1", 41) == 42
    assert await fetch(connection, "SELECT %s::jsonb", '{"a": [1, null, "é"]}') == {"a": [1, None, "é"]}


async def test_a_cancelled_statement_ends_on_the_server_and_the_connection_lives(connection: TrioConnection) -> None:
    with trio.move_on_after(0.1) as scope:
        await connection.execute("SELECT pg_sleep(60)")
    assert scope.cancelled_caught
    assert not connection.closed
    assert await fetch(connection, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%%'") == 0


async def test_a_cancelled_pipeline_closes_its_connection_and_raises_nothing_else(connection: TrioConnection) -> None:
    with trio.move_on_after(0.1) as scope:
        async with connection.pipeline():
            await connection.execute("SELECT pg_sleep(60)")
            for _ in range(40):
                await connection.execute("SELECT length(%s)", ("x" * 1_000_000,))  # more than the socket takes
    assert scope.cancelled_caught
    assert connection.closed


@pytest.mark.parametrize("pieces", [0, 40], ids=["reading", "reading and writing"])
async def test_a_connection_that_is_dropped_fails_its_user_who_alone_may_free_it(
    connection: TrioConnection, pieces: int
) -> None:
    async def use() -> None:
        async with connection.pipeline():
            await connection.execute("SELECT pg_sleep(60)")
            for _ in range(pieces):
                await connection.execute("SELECT length(%s)", ("x" * 1_000_000,))  # more than the socket takes

    async def drop() -> None:
        await trio.testing.wait_all_tasks_blocked(0.2)
        connection.drop()
        assert connection.pgconn.status == psycopg.pq.ConnStatus.OK

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drop)
            with pytest.raises(psycopg.OperationalError):
                await use()
    assert connection.closed


async def test_two_tasks_take_turns_on_one_connection(connection: TrioConnection) -> None:
    answers = []
    async with trio.open_nursery() as nursery:
        for number in range(10):

            async def ask(number: int) -> None:
                answers.append(await fetch(connection, "SELECT %s::int", number))

            nursery.start_soon(ask, number)
    assert sorted(answers) == list(range(10))  # type: ignore[type-var]


async def test_pipelines_answer_in_order(connection: TrioConnection) -> None:
    async with connection.pipeline():
        cursors = [await connection.execute("SELECT %s::int", (number,)) for number in range(50)]
    assert [(await cursor.fetchone() or (None,))[0] for cursor in cursors] == list(range(50))


async def test_notifications_arrive_while_nobody_asks(connection: TrioConnection, conninfo: str) -> None:
    await connection.execute("LISTEN news")
    async with await TrioConnection.connect(conninfo) as other:
        await other.execute("NOTIFY news, 'hello'")
    with trio.fail_after(5):
        async for notice in connection.notifies(stop_after=1):
            assert notice.payload == "hello"


async def test_rows_are_copied_in_and_out(connection: TrioConnection) -> None:
    await connection.execute("CREATE TEMP TABLE numbers (n int)")
    async with connection.cursor() as cursor, cursor.copy("COPY numbers FROM STDIN") as copy:
        for number in range(1000):
            await copy.write_row((number,))
    async with connection.cursor() as cursor, cursor.copy("COPY numbers TO STDOUT") as copy:
        assert len([row async for row in copy.rows()]) == 1000


async def test_large_results_are_read_by_a_server_side_cursor(connection: TrioConnection) -> None:
    async with connection.transaction(), connection.cursor("big") as cursor:
        await cursor.execute("SELECT generate_series(1, 5000)")
        assert sum([row[0] async for row in cursor]) == 5000 * 5001 // 2


async def test_a_long_copy_lets_others_run(connection: TrioConnection) -> None:
    """Counts turns that a neighbour gets, not milliseconds: the machine may be busy with something else."""
    turns = 0
    await connection.execute("CREATE TEMP TABLE words (w text)")
    async with trio.open_nursery() as nursery:

        async def neighbour() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        nursery.start_soon(neighbour)
        began = perf_counter()
        async with connection.cursor() as cursor, cursor.copy("COPY words FROM STDIN") as copy:
            for _ in range(300):
                await copy.write(b"x" * 100_000 + b"\n")
        took = perf_counter() - began
        nursery.cancel_scope.cancel()
    assert turns >= took / YIELD_BUDGET / 4


async def test_a_server_that_hangs_up_is_noticed_by_who_waits_for_it(connection: TrioConnection, conninfo: str) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.dead)
        async with await TrioConnection.connect(conninfo) as other:
            await other.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
        with trio.fail_after(5):
            while nursery.child_tasks:
                await trio.testing.wait_all_tasks_blocked()
    assert connection.closed


async def test_nobody_at_the_address_is_an_operational_error() -> None:
    with pytest.raises(psycopg.OperationalError):
        await TrioConnection.connect("host=/nonexistent user=nobody")
