"""The servers that share a database: leases by the database's clock, who is gone, and what is adopted."""

from __future__ import annotations

from uuid import uuid4

import pytest
import trio

from engine.jobs.job import JobState, NewJob
from engine.jobs.ports import Peer, Slot
from engine.jobs.servers import Servers
from engine.otp import Node
from persistence.jobs.store import PostgresJobStore
from persistence.pool import Pool
from tests.persistence.jobs.floor import new_job, running

BOOT = uuid4()


@pytest.fixture
async def store(database: Pool) -> PostgresJobStore:
    return PostgresJobStore(database)


def servers(store: PostgresJobStore, name: str) -> Servers:
    return Servers(store, name, uuid4())


async def test_servers_see_each_other_and_who_does_not_beat_is_gone(store: PostgresJobStore) -> None:
    one, two = servers(store, "one"), servers(store, "two")
    await two.beat(0.05, {"default": 7}, sure=True)
    await one.beat(30.0, {"default": 5}, sure=True)
    assert (one.alone, one.slots("default"), one.slots("other")) == (False, 7, 0)
    await trio.sleep(0.1)
    await one.look_around(sure=False)
    assert not one.alone  # who is not sure of the database, concludes nothing
    with trio.move_on_after(0.05) as scope:
        await one.someone_gone()
    assert scope.cancelled_caught
    await one.look_around(sure=True)
    assert one.alone
    with trio.fail_after(1):
        await one.someone_gone()


async def test_who_leaves_in_good_order_is_gone_at_once(store: PostgresJobStore, node: Node) -> None:
    two = servers(store, "two")
    await two.beat(30.0, {}, sure=True)
    async with running(store._pool, node="one") as floor:
        await floor.eventually(lambda: not floor.queues.servers.alone)
        await floor.eventually(lambda: floor.queues.hearing.push)
        await two.leave()
        with trio.fail_after(5):
            await floor.queues.servers.someone_gone()
        assert floor.queues.servers.alone


async def test_a_twin_of_the_same_name_is_told_of(store: PostgresJobStore, caplog: pytest.LogCaptureFixture) -> None:
    mine, twin = servers(store, "same"), servers(store, "same")
    await mine.beat(30.0, {}, sure=True)
    await twin.beat(30.0, {}, sure=True)  # a quick restart looks the same: that is no reason to complain
    assert "calls itself" not in caplog.text
    await mine.beat(30.0, {}, sure=True)
    assert "another server calls itself same" in caplog.text


async def test_only_what_lives_nowhere_else_is_adopted_and_by_one(store: PostgresJobStore) -> None:
    here, there, lost, none = (
        NewJob(uuid4(), "task", task_id=uuid4(), home=home) for home in ("here", "there", "lost", None)
    )
    await store.insert([here, there, lost, none])
    await store.beat("there", BOOT, 30.0, {})
    wanted = [job.id for job in (here, there, lost, none)]
    got: list[frozenset[object]] = []

    async def adopt(name: str) -> None:
        got.append(await store.adopt(name, wanted))

    await store.beat("here", BOOT, 30.0, {})
    await store.beat("also here", BOOT, 30.0, {})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(adopt, "here")
        nursery.start_soon(adopt, "also here")
    assert there.id not in got[0] | got[1]
    assert not got[0] & got[1]
    assert got[0] | got[1] == {here.id, lost.id, none.id}
    assert await store.strayed("here", wanted) == {there.id, *((got[0] | got[1]) - await store.adopt("here", wanted))}


async def test_a_job_that_is_held_back_does_not_run_until_it_is_released(database: Pool, node: Node) -> None:
    async with running(database) as floor:
        await floor.queues.pause("default")
        job = new_job()
        await floor.queues.insert([job])
        assert await floor.queues.suspend(job.id)
        await floor.queues.resume("default")
        other = new_job()
        await floor.queues.insert([other])
        await floor.in_state(other.id, JobState.COMPLETED)
        assert (await floor.in_state(job.id, JobState.SUSPENDED)).attempt == 0
        await floor.eventually(lambda: floor.queues.stats()[0].suspended == 1)
        assert await floor.queues.release(job.id)
        await floor.in_state(job.id, JobState.COMPLETED)
        assert not await floor.queues.suspend(job.id)  # it is over


async def test_a_cron_has_one_job_a_time_however_many_servers_and_restarts(store: PostgresJobStore) -> None:
    def slot(at: float) -> Slot:
        return Slot("sweep", at, NewJob(uuid4(), "work"))

    made = []

    async def make() -> None:
        made.append(await store.make_for([slot(1000.0)]))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(make)
    assert sorted(len(ids) for ids in made) == [0, 0, 0, 0, 1]
    assert await store.make_for([slot(940.0)]) == frozenset()  # a server whose clock is behind
    assert len(await store.make_for([slot(1060.0)])) == 1


def test_news_of_who_joined_does_not_count_oneself() -> None:
    mine = Servers(None, "me", BOOT)  # type: ignore[arg-type]
    mine.joined("me")
    assert mine.alone
    mine.joined("other")
    assert not mine.alone
    mine.see((Peer("other", BOOT, True, 0.1), Peer("me", BOOT, True, 0.1)), sure=True)
    assert not mine.alone
