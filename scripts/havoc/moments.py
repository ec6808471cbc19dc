"""Kills at chosen instants: between acceptance and commit, at the 202, in a snapshot, in a start, in a shutdown.

An instant inside a transaction is held still with a lock: somebody else's transaction holds a table, the server's own
waits for it, and while it waits the kill comes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import LiteralString

import psycopg
import trio

from scripts.havoc.faults import Chance, Fault, stopped
from scripts.havoc.victim import ServerFailed, Victim

HELD_WITHIN = 7.0
"""Seconds until somebody must wait for a held table: snapshots come every five."""

_LOCKS: dict[str, LiteralString] = {
    "task_events": "LOCK TABLE task_events IN SHARE MODE",
    "jobs": "LOCK TABLE jobs IN SHARE MODE",
    "task_snapshots": "LOCK TABLE task_snapshots IN SHARE MODE",
}
_WAITS: LiteralString = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = %s::regclass AND NOT granted)"


@asynccontextmanager
async def held(victim: Victim, table: str) -> AsyncIterator[bool]:
    """Holds a table against writers; True once one of them waits for it. False: none did, or nothing can be held."""
    connection = await trio.to_thread.run_sync(partial(_hold, victim.conninfo(), table))
    try:
        yield connection is not None and await _somebody_waits(connection, table)
    finally:
        if connection is not None:
            connection.pgconn.finish()


def _hold(conninfo: str, table: str) -> psycopg.Connection[tuple[object, ...]] | None:
    try:
        connection = psycopg.connect(f"{conninfo} options='-c default_transaction_read_only=off -c lock_timeout=2s'")
        connection.execute(_LOCKS[table])
    except psycopg.Error:
        return None
    return connection


async def _somebody_waits(connection: psycopg.Connection[tuple[object, ...]], table: str) -> bool:
    with trio.move_on_after(HELD_WITHIN):
        while True:
            try:
                row = connection.execute(_WAITS, (table,)).fetchone()
            except psycopg.Error:
                return False
            if row and row[0]:
                return True
            await trio.sleep(0.005)
    return False


# --- inside a transaction ---------------------------------------------------------------------------------


def kill_server_in(table: str) -> Callable[[Victim, Chance], Awaitable[None]]:
    """The server dies while its transaction is about to write to `table`: between acceptance and commit."""

    async def kill(victim: Victim, chance: Chance) -> None:
        async with held(victim, table):
            victim.strike()
        await victim.bury()
        await victim.start()

    return kill


def kill_postgres_in(table: str) -> Callable[[Victim, Chance], Awaitable[None]]:
    """PostgreSQL dies in the middle of a transaction of the server's, which lives on."""

    async def kill(victim: Victim, chance: Chance) -> None:
        async with held(victim, table):
            victim.kill_postgres()

    return kill


async def kill_server_with_commits_in_doubt(victim: Victim, chance: Chance) -> None:
    """PostgreSQL stands still, commits pile up in its sockets, the server dies, and PostgreSQL carries them out."""
    with stopped(victim.postgres_family()):
        await trio.sleep(chance.uniform(0.02, 0.4))
        victim.strike()
        await victim.bury()
    await trio.sleep(chance.uniform(0.0, 0.2))
    await victim.start()


async def kill_postgres_with_commits_in_doubt(victim: Victim, chance: Chance) -> None:
    """As before, but PostgreSQL dies: what lay in its sockets was never read, and the server has to find out."""
    with stopped(victim.postgres_family()):
        await trio.sleep(chance.uniform(0.02, 3.0))
        victim.kill_postgres()


# --- at a word of the server's ----------------------------------------------------------------------------


async def kill_server_at_202(victim: Victim, chance: Chance) -> None:
    """The server dies as soon as a client has read its acknowledgement."""
    await _at_next_accept(victim, victim.strike)
    victim.strike()
    await victim.bury()
    await victim.start()


async def kill_both_at_202(victim: Victim, chance: Chance) -> None:
    def strike() -> None:
        victim.kill_postgres()
        victim.strike()

    await _at_next_accept(victim, strike)
    victim.strike()
    await victim.bury()
    await victim.start()


async def _at_next_accept(victim: Victim, strike: Callable[[], None]) -> None:
    """Lets the next client that has a 202 strike; returns when it has, or when none came for a while."""
    struck = trio.Event()

    def once() -> None:
        strike()
        struck.set()

    victim.at_next_accept = once
    with trio.move_on_after(5.0):
        await struck.wait()
    victim.at_next_accept = None


# --- while it comes and goes ------------------------------------------------------------------------------


async def kill_server_in_start(victim: Victim, chance: Chance) -> None:
    """The server dies, and once to three times again while it starts: before, in or after its recovery."""
    await victim.kill()
    for _ in range(chance.randint(1, 3)):
        await _start_and_kill(victim, chance.choice((chance.uniform(0.0, 0.6), chance.uniform(0.5, 2.0))))
    await victim.start()


async def _start_and_kill(victim: Victim, after: float) -> None:
    """Starts the server and kills it after so many seconds, or at the moment at which it is ready."""
    async with trio.open_nursery() as nursery:

        async def strike() -> None:
            await trio.sleep(after)
            victim.strike()

        nursery.start_soon(strike)
        with suppress(ServerFailed):  # killed before it was ready; any other reason shows at the next start
            await victim.start()
        nursery.cancel_scope.cancel()
    victim.strike()
    await victim.bury()


async def kill_server_in_shutdown(victim: Victim, chance: Chance) -> None:
    """SIGTERM, and SIGKILL while it is in the middle of its last things."""
    os.kill(victim.pid, signal.SIGTERM)
    await trio.sleep(chance.uniform(0.0, 1.5))
    victim.strike()
    await victim.bury()
    await victim.start()


async def kill_postgres_in_recovery(victim: Victim, chance: Chance) -> None:
    """PostgreSQL dies, and once to three times again while it replays its log."""
    for _ in range(chance.randint(2, 4)):
        victim.kill_postgres()
        dead = victim.postgres()
        with trio.move_on_after(10.0):
            while (now := victim.postgres()) is None or now == dead:  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.005)
        await trio.sleep(chance.uniform(0.0, 0.3))


async def first_starts(victim: Victim, chance: Chance, most: int) -> int:
    """Kills the very first starts, on an empty folder, while the cluster is made and in the migrations; how many."""
    unfinished = victim.cluster.with_name("postgres.unfinished")
    moments: list[Callable[[], bool]] = [
        unfinished.exists,
        lambda: (unfinished / "base").exists(),
        victim.cluster.exists,
        lambda: victim.postgres() is not None,
        partial(_migrating, victim),
        partial(_migrating, victim),
    ]
    moments = moments[-most:]
    for moment in moments:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_strike_when, victim, moment, chance.uniform(0.0, 0.1))
            with suppress(ServerFailed):  # killed before it was ready
                await victim.start()
            nursery.cancel_scope.cancel()
        victim.strike()
        await victim.bury()
    return len(moments)


async def _strike_when(victim: Victim, moment: Callable[[], bool], later: float) -> None:
    while not await trio.to_thread.run_sync(moment):  # noqa: ASYNC110 - nobody tells
        await trio.sleep(0.002)
    await trio.sleep(later)
    victim.strike()


def _migrating(victim: Victim) -> bool:
    """Whether the migrations are being applied now: somebody holds an advisory lock."""
    try:
        with psycopg.connect(victim.conninfo(), autocommit=True) as connection:
            row = connection.execute("SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory')").fetchone()
    except psycopg.Error:
        return False
    return bool(row and row[0])


MOMENTS = (
    Fault("kill_server_before_commit", 2.0, kill_server_in("task_events")),
    Fault("kill_server_in_job_write", 1.0, kill_server_in("jobs")),
    Fault("kill_server_in_snapshot", 1.0, kill_server_in("task_snapshots")),
    Fault("kill_postgres_before_commit", 1.0, kill_postgres_in("task_events")),
    Fault("kill_server_with_commits_in_doubt", 1.5, kill_server_with_commits_in_doubt),
    Fault("kill_postgres_with_commits_in_doubt", 1.0, kill_postgres_with_commits_in_doubt),
    Fault("kill_server_at_202", 2.0, kill_server_at_202),
    Fault("kill_both_at_202", 1.0, kill_both_at_202),
    Fault("kill_server_in_start", 1.0, kill_server_in_start),
    Fault("kill_server_in_shutdown", 1.0, kill_server_in_shutdown),
    Fault("kill_postgres_in_recovery", 1.0, kill_postgres_in_recovery),
)
