"""What is promised about durability, tried against the deaths that could break it (SEMANTICS.md has the numbers)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import psycopg
import trio

from engine.ports import Buffered, Committed, Entry, Receipt
from persistence.embedded import leftovers
from persistence.embedded.folder import DataFolder
from persistence.embedded.server import EmbeddedServer
from persistence.journal.journal import PATIENCE, PostgresJournal
from persistence.pool import Pool
from persistence.store import PostgresTaskStore
from tests.persistence.entries import Completed, Story
from tests.postgres import Outage

ROOT = Path(__file__).resolve().parents[2]


class House:
    """An embedded server with the journal on it."""

    def __init__(self, data_dir: Path) -> None:
        self.server = EmbeddedServer(DataFolder(data_dir))
        self.pool = Pool(self.server.conninfo)
        self.journal = PostgresJournal(self.pool)
        self.store = PostgresTaskStore(self.pool)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[House]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.server.run, lambda: None)
            nursery.start_soon(self.pool.watch, lambda: None)
            nursery.start_soon(self.journal.flush)
            with trio.fail_after(60):
                await self.pool.wait_up()
            yield self
            nursery.cancel_scope.cancel()
        self.server.folder.release()


async def test_promise_1_and_2_postgres_killed_under_load_loses_nothing_and_keeps_the_order(data_dir: Path) -> None:
    dice = random.Random(4)
    receipts: dict[UUID, list[Receipt]] = {}
    stories: list[Story] = []

    async def client(house: House, stop: trio.Event) -> None:
        while not stop.is_set():
            story = Story()
            stories.append(story)
            told = receipts.setdefault(story.task_id, [])
            for entry in (story.begin(), story.start(), story.complete()):
                house.journal.submit(entry, told.append)
            await trio.sleep(0.01)  # the load's pace

    async with House(data_dir).open() as house:
        stop = trio.Event()
        async with trio.open_nursery() as clients:
            for _ in range(4):
                clients.start_soon(client, house, stop)
            for _ in range(4):
                await trio.sleep(dice.uniform(0.02, 0.3))
                await house.pool.wait_up()
                assert house.server.pid
                os.kill(house.server.pid, signal.SIGKILL)
                with trio.fail_after(60):
                    while house.pool.up:  # noqa: ASYNC110
                        await trio.sleep(0.005)
            stop.set()
        with trio.fail_after(60):
            await house.journal.drained()
        assert house.server.starts == 5
        assert len(stories) > 20
        for story in stories:
            told = receipts[story.task_id]
            assert [receipt for receipt in told if receipt != Buffered()] == [Committed()] * 3
            assert await house.store.load(story.task_id) == story.state
            assert [event.seq for event in await house.store.events(story.task_id)] == [1, 2, 3, 4]


WRITER = """
import sys, trio
from pathlib import Path
from engine.ports import Committed
from tests.persistence.entries import Story
from tests.persistence.test_promises import House

async def client(house):
    while True:
        story = Story()
        if await house.journal.write(story.begin()) == Committed():
            print(story.task_id, flush=True)

async def main():
    async with House(Path(sys.argv[1])).open() as house, trio.open_nursery() as nursery:
        for _ in range(16):
            nursery.start_soon(client, house)

trio.run(main)
"""


async def test_promise_1_what_was_acknowledged_as_durable_survives_our_own_kill(data_dir: Path) -> None:
    acknowledged: list[UUID] = []
    for acks in (40, 150):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(data_dir)], stdout=subprocess.PIPE, cwd=ROOT)
        assert child.stdout
        for _ in range(acks):
            acknowledged.append(UUID((await trio.to_thread.run_sync(child.stdout.readline)).decode().strip()))
        child.kill()
        acknowledged += [UUID(word.decode()) for word in child.stdout.read().split() if len(word) == 36]
        child.wait()
        child.stdout.close()
    async with House(data_dir).open() as house:
        with psycopg.connect(house.server.conninfo) as connection:
            found = {row[0] for row in connection.execute("SELECT id FROM tasks")}
            bare = connection.execute("SELECT count(*) FROM tasks t LEFT JOIN task_events e ON e.task_id = t.id "
                                      "WHERE e.seq IS NULL").fetchone()  # fmt: skip
    assert set(acknowledged) <= found
    assert bare == (0,)


async def test_promise_2_a_server_that_only_stands_still_is_said_to_be_away(data_dir: Path) -> None:
    story, told = Story(), list[Receipt]()
    async with House(data_dir).open() as house:
        pids = leftovers.running_in(house.server.layout.cluster)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            began = trio.current_time()
            house.journal.submit(story.begin(), told.append)
            with trio.fail_after(30):
                while not told:  # noqa: ASYNC110
                    await trio.sleep(0.02)
            assert told == [Buffered()]
            assert trio.current_time() - began < PATIENCE * 4
            assert not house.journal.health().up
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        with trio.fail_after(60):
            await house.journal.drained()
        assert told == [Buffered(), Committed()]


async def test_promise_2_a_server_that_refuses_writes_is_waited_out(
    database: Pool, nursery: trio.Nursery, outage: Outage
) -> None:
    """As with a full disk: it answers, and takes nothing."""
    journal, told = PostgresJournal(database), list[Receipt]()
    nursery.start_soon(journal.flush)
    admin = outage.server.conninfo()
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {outage.name} SET default_transaction_read_only = on")
        connection.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
                           (outage.name,))  # fmt: skip
    assert await journal.write(story_entry := Story().begin()) == Buffered()
    journal.submit(Story().begin(), told.append)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {outage.name} SET default_transaction_read_only = off")
        connection.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
                           (outage.name,))  # fmt: skip
    with trio.fail_after(20):
        await journal.drained()
    assert told[-1] == Committed()
    assert await PostgresTaskStore(database).load(story_entry.task.id) is not None


async def test_promise_3_of_racing_outcomes_one_is_recorded(database: Pool, nursery: trio.Nursery) -> None:
    journals = PostgresJournal(database), PostgresJournal(database)
    for journal in journals:
        nursery.start_soon(journal.flush)
    for seed in range(10):
        story = Story()
        await journals[0].write(story.begin())
        await journals[0].write(story.start())
        ends = [Story(story.state, story.task_id).then(Completed(float(number))) for number in range(8)]
        random.Random(seed).shuffle(ends)
        receipts: list[Receipt] = []
        async with trio.open_nursery() as racers:
            for number, entry in enumerate([*ends, *ends[:3]]):
                racers.start_soon(race, journals[number % 2], entry, receipts)
        stored = await PostgresTaskStore(database).events(story.task_id)
        winners = [entry for entry in ends if entry.events == stored[2:]]
        assert len(winners) == 1
        # the winner's own duplicate hears that it stands; everybody else that it came late
        assert receipts.count(Committed()) == 1 + (winners[0] in ends[:3])


async def race(journal: PostgresJournal, entry: Entry, receipts: list[Receipt]) -> None:
    receipts.append(await journal.write(entry))
