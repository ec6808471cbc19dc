"""Every question is answered by an index, also by a plan that was made when the tables were empty and is still kept.

The questions are those of the bench at a million tasks, asked through the application's own code; PostgreSQL tells
(auto_explain) how it ran each statement, those of foreign keys included.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import psycopg
import pytest
import trio

from scripts.benches._million_fill import fill
from scripts.benches._million_questions import GROWN, Asker, WatchedPool
from tests.postgres import TestServer

TASKS, USERS = 10_000, 200
OFTEN = 12
"""Times after which psycopg has prepared a statement, and PostgreSQL keeps one plan for it."""
PAGES = {
    "journal: create 20": 1500,
    "journal: begin 20": 1500,
    "journal: complete 20": 2000,
    "snapshots of 20": 400,
    "recovery: two pages": 2500,
    "logs that go on, of 1000": 4500,
    "open attempts": 900,
    "jobs: adopt, strayed": 700,
    "housekeeping: archive": 100,
    "housekeeping: delete archived": 6000,
    "usage of a month, heavy user": 2500,
}
"""Pages that a question may touch, a thousand where nothing is said: about what it needs, and far from a table."""


@pytest.fixture
def fresh(postgres_server: TestServer) -> Iterator[str]:
    """A database of its own that nobody analyzes."""
    name = postgres_server.create()
    conninfo = postgres_server.conninfo(name)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        for table in GROWN:
            connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)".encode())
    yield conninfo
    postgres_server.drop(name)


@pytest.mark.parametrize("known", [False, True], ids=["never analyzed", "analyzed"])
async def test_every_question_is_answered_by_an_index(fresh: str, known: bool, nursery: trio.Nursery) -> None:
    logging.getLogger("persistence.store").setLevel(logging.ERROR)
    pool = WatchedPool(fresh, size=4)
    nursery.start_soon(pool.watch, lambda: None)
    await pool.wait_up()
    asker = Asker(pool, USERS)
    async with asker.at_work():
        await ask_all(asker, 1 if known else OFTEN)  # of empty tables
        await trio.to_thread.run_sync(fill, fresh, TASKS, USERS)
        if known:
            async with pool.connection() as connection:
                await connection.execute("VACUUM (ANALYZE)")
        await asker.look_round()
        await ask_all(asker, OFTEN if known else 1)
        pool.watching = True
        found = {name: await plans(asker, name) for name in asker.questions()}
    assert not [text for text in found.values() if text], "\n".join(found.values())


async def ask_all(asker: Asker, times: int) -> None:
    for _ in range(times):
        for question in asker.questions().values():
            await question()


async def plans(asker: Asker, name: str) -> str:
    """What is wrong with the plans of a question; empty: nothing."""
    pool = asker.pool
    assert isinstance(pool, WatchedPool)
    pool.plans.clear()
    await asker.questions()[name]()
    async with pool.connection():
        pass
    assert pool.plans or name == "preferences", f"{name}: no plan was told"
    whole = {table for plan in pool.plans for table in plan.whole & GROWN}
    pages = sum(plan.pages for plan in pool.plans)
    if whole or pages > PAGES.get(name, 1000):
        how = [(plan.pages, sorted(plan.indices), plan.query[:150]) for plan in pool.plans]
        return f"{name} scans {sorted(whole)}, {pages} pages: {how}"
    return ""
