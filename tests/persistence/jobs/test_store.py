"""The queue's statements on a real PostgreSQL: claims, leases, staging, pruning."""

from __future__ import annotations

import time
from uuid import UUID, uuid4

import pytest
import trio

from engine.jobs.fairness import FairQueue
from engine.jobs.job import Cancel, Complete, Discard, Job, JobChange, JobState, Lease, NewJob, Retry
from engine.jobs.lifecycle import CALM_RESCUES, LONGEST_CALM, MAX_RESCUES
from engine.jobs.ports import Claim, Claimed, Notice, NoticeKind, QueueSetting, Rate, Retention
from engine.ports import StorageDown
from persistence.connection import TrioConnection
from persistence.jobs import statements
from persistence.jobs.store import PATIENCE, WHOLE_EVERY, PostgresJobStore, parse_notice
from persistence.pool import Pool
from scripts.benches._million_questions import WatchedPool

BOOT = uuid4()


@pytest.fixture
def store(database: Pool) -> PostgresJobStore:
    return PostgresJobStore(database)


def a_job(user: str = "", **more: object) -> NewJob:
    return NewJob(uuid4(), "work", user=user, **more)  # type: ignore[arg-type]


def wish(demand: int = 10, seconds: float = 30.0, **more: object) -> Claim:
    return Claim("default", demand, "node", BOOT, seconds, **more)  # type: ignore[arg-type]


def lease_of(job: Job, seconds: float = 30.0) -> Lease:
    return Lease(job.fence, "node", BOOT, seconds)


async def claim_one(store: PostgresJobStore, seconds: float = 30.0) -> Job:
    (job,) = (await store.claim(wish(1, seconds))).jobs
    return job


async def state(store: PostgresJobStore, job_id: UUID) -> JobState:
    record = await store.get(job_id)
    assert record is not None
    return record.state


async def test_a_claim_takes_what_it_asks_for_and_says_whether_more_may_wait(store: PostgresJobStore) -> None:
    await store.insert([a_job() for _ in range(5)])
    first = await store.claim(wish(3))
    second = await store.claim(wish(3))
    assert (len(first.jobs), first.more, len(second.jobs), second.more) == (3, True, 2, False)
    assert all(job.attempt == 1 and job.rescues == 0 for job in first.jobs)


async def test_a_claimed_job_is_what_was_inserted(store: PostgresJobStore) -> None:
    new = a_job(
        "ann", args={"n": [1, {"x": "é"}]}, priority=2, max_attempts=7, trace_parent="00-a-b-01", task_id=uuid4()
    )
    await store.insert([new])
    job = await claim_one(store)
    assert (job.id, job.worker, job.queue, job.args) == (new.id, "work", "default", new.args)
    assert (job.user, job.priority, job.max_attempts) == ("ann", 2, 7)
    assert (job.trace_parent, job.task_id) == ("00-a-b-01", new.task_id)
    assert job.lease_expires_at == pytest.approx(time.time() + 30, abs=5)


async def test_twenty_claimers_never_take_a_job_twice(store: PostgresJobStore) -> None:
    await store.insert([a_job() for _ in range(300)])
    taken: list[UUID] = []

    async def claimer() -> None:
        while jobs := (await store.claim(wish(7))).jobs:
            taken.extend(job.id for job in jobs)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(claimer)
    assert len(taken) == len(set(taken)) == 300


async def test_the_line_in_the_database_moves_as_the_one_in_memory(store: PostgresJobStore) -> None:
    queue: FairQueue[str] = FairQueue()
    for batch in ("aaaaab", "acccd", "bd"):
        jobs = [a_job(user) for user in batch]
        await store.insert(jobs)
        for job in jobs:
            queue.push(job.id, job.user or "", 4, job.user)
    served = [(await claim_one(store)).user for _ in range(13)]
    expected = [queue.pop() for _ in range(13)]
    # users whose turn is the same may come in either order
    assert sorted(served[:4]) == sorted(str(user) for user in expected[:4]) == ["a", "b", "c", "d"]
    assert served[-3:] == ["a"] * 3 == expected[-3:]


async def test_one_job_of_one_user_is_not_starved_by_a_thousand_of_another(store: PostgresJobStore) -> None:
    await store.insert([a_job("many") for _ in range(1000)])
    await store.claim(wish(10))
    await store.insert([a_job("one")])
    next_two = [job.user for job in (await store.claim(wish(2))).jobs]
    assert "one" in next_two


async def test_a_newcomer_does_not_overtake_those_whose_turn_it_is_now(database: Pool) -> None:
    store = PostgresJobStore(database)
    await store.insert([a_job(user) for user in "aaaaabbbbb"])
    for _ in range(4):
        await claim_one(store)
    newcomer = a_job("c")
    await store.insert([newcomer])
    async with database.connection() as conn:
        cursor = await conn.execute(
            "SELECT user_key, min(turn) FROM jobs WHERE state = 'available' GROUP BY 1 ORDER BY 1"
        )
        assert await cursor.fetchall() == [("a", 2), ("b", 2), ("c", 2)]


async def test_urgent_jobs_come_first(store: PostgresJobStore) -> None:
    await store.insert([a_job(priority=9), a_job(priority=0), a_job(priority=4)])
    assert [(await claim_one(store)).priority for _ in range(3)] == [0, 4, 9]


async def test_a_claim_is_a_scan_of_the_line_index_and_sorts_nothing(database: Pool) -> None:
    store = PostgresJobStore(database)
    await store.insert([a_job(str(n % 50)) for n in range(3000)])
    async with database.connection() as conn:
        await conn.execute("ANALYZE jobs")
        args = {"queue": "default", "demand": 10, "node": "node", "boot": BOOT, "seconds": 30.0, "floors": [0] * 10}
        cursor = await conn.execute(f"EXPLAIN {statements.CLAIM}", args)
        plan = "\n".join(row[0] for row in await cursor.fetchall())
    assert "jobs_line" in plan
    assert "Sort" not in plan


@pytest.mark.parametrize("name", ["CLAIM", "STAGE", "NEXT_DUE", "RECOVER", "RESCUE", "PRUNE", "COUNTS", "WAITING"])
async def test_no_statement_reads_the_whole_table_when_many_jobs_are_kept(database: Pool, name: str) -> None:
    args = {"queue": "default", "demand": 10, "node": "node", "boot": BOOT, "seconds": 30.0, "limit": 5, **PATIENCE}
    args |= {"floors": [0] * 10, "held": [], "completed": 3600.0, "cancelled": 3600.0, "discarded": 3600.0}
    async with database.connection() as conn:
        await conn.execute(
            "INSERT INTO jobs (id, worker, state, completed_at) "
            "SELECT gen_random_uuid(), 'work', 'completed', now() - n * interval '1 second' "
            "FROM generate_series(1, 8000) n"
        )
        await conn.execute(
            "INSERT INTO jobs (id, worker, state) SELECT gen_random_uuid(), 'work', s::job_state "
            "FROM generate_series(1, 20) n, unnest(ARRAY['available', 'scheduled', 'retryable', 'discarded']) s"
        )
        await conn.execute("ANALYZE jobs")
        cursor = await conn.execute(f"EXPLAIN {getattr(statements, name)}", args, prepare=False)
        plan = "\n".join(row[0] for row in await cursor.fetchall())
    assert "Seq Scan on jobs" not in plan


# --- limits over all nodes ---


async def test_a_global_limit_holds_over_all_nodes(store: PostgresJobStore) -> None:
    await store.insert([a_job() for _ in range(50)])
    claims: list[Claimed] = []

    async def claimer() -> None:
        claims.append(await store.claim(wish(5, global_limit=8)))

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(claimer)
    taken = [job for claimed in claims for job in claimed.jobs]
    assert len(taken) == 8
    assert any(claimed.wait for claimed in claims)
    await store.settle([JobChange(taken[0].id, Complete(), taken[0].fence)])
    assert len((await store.claim(wish(5, global_limit=8))).jobs) == 1


async def test_a_rate_limit_says_when_to_come_again(store: PostgresJobStore) -> None:
    await store.insert([a_job() for _ in range(10)])
    rate = Rate(3, period=60.0)
    first = await store.claim(wish(10, rate=rate))
    second = await store.claim(wish(10, rate=rate))
    assert (len(first.jobs), len(second.jobs)) == (3, 0)
    assert second.wait == pytest.approx(20.0, abs=2.0)


async def test_a_rate_limit_refills_with_time(database: Pool) -> None:
    store = PostgresJobStore(database)
    await store.insert([a_job() for _ in range(10)])
    rate = Rate(3, period=60.0)
    await store.claim(wish(10, rate=rate))
    async with database.connection() as conn:
        await conn.execute("UPDATE job_queues SET rate_at = rate_at - interval '41 seconds'")
    assert len((await store.claim(wish(10, rate=rate))).jobs) == 2


# --- leases ---


async def test_a_heartbeat_names_what_is_no_longer_held(store: PostgresJobStore) -> None:
    await store.insert([a_job(), a_job()])
    kept, lost = (await store.claim(wish(2))).jobs
    await store.settle([JobChange(lost.id, Cancel())])
    assert await store.heartbeat([lease_of(kept), lease_of(lost)]) == {lost.id}


async def test_a_lease_that_expired_is_rescued_once_uncounted_and_its_late_outcome_refused(
    store: PostgresJobStore,
) -> None:
    await store.insert([a_job()])
    lost = await claim_one(store, seconds=-1.0)
    assert [rescued.job_id for rescued in await store.rescue([], 10)] == [lost.id]
    assert await store.rescue([], 10) == ()
    again = await claim_one(store)
    assert (again.id, again.attempt, again.rescues) == (lost.id, 1, 1)
    assert await store.settle([JobChange(lost.id, Complete(), lost.fence)]) == {0}
    assert await store.settle([JobChange(again.id, Complete(), again.fence)]) == frozenset()


async def test_a_lease_that_was_extended_is_not_rescued(store: PostgresJobStore) -> None:
    await store.insert([a_job()])
    job = await claim_one(store, seconds=-1.0)
    await store.heartbeat([lease_of(job)])
    assert await store.rescue([], 10) == ()


async def test_what_lives_here_is_not_rescued_whatever_its_lease(store: PostgresJobStore) -> None:
    await store.insert([a_job()])
    job = await claim_one(store, seconds=-1.0)
    assert await store.rescue([job.id], 10) == ()
    assert await state(store, job.id) is JobState.EXECUTING


async def all_due(store: PostgresJobStore) -> None:
    """Makes what waits for its time due now."""
    async with store._pool.connection() as connection:
        await connection.execute("UPDATE jobs SET scheduled_at = now() WHERE state = 'scheduled'")
    await store.stage(10)


async def test_a_job_that_is_lost_with_its_node_too_often_becomes_a_dead_letter(store: PostgresJobStore) -> None:
    await store.insert([a_job()])
    states = []
    for _ in range(MAX_RESCUES + 1):
        await all_due(store)
        await claim_one(store, seconds=-1.0)
        states += [rescued.state for rescued in await store.rescue([], 10)]
    calm = MAX_RESCUES - CALM_RESCUES
    assert states == [JobState.AVAILABLE] * CALM_RESCUES + [JobState.SCHEDULED] * calm + [JobState.DISCARDED]


async def test_a_job_that_is_lost_with_its_node_again_and_again_waits_longer_each_time(store: PostgresJobStore) -> None:
    new = a_job()
    await store.insert([new])
    waits = []
    for _ in range(MAX_RESCUES):
        await all_due(store)
        await claim_one(store)
        assert await store.recover("node", uuid4()) == 1
        record = await store.get(new.id)
        assert record is not None
        waits.append(record.scheduled_at - time.time())
    longest = [min(2.0**number, LONGEST_CALM) for number in range(MAX_RESCUES - CALM_RESCUES)]
    assert all(wait <= 0.5 for wait in waits[:CALM_RESCUES])
    assert all(most / 2 - 1 < wait < most + 1 for wait, most in zip(waits[CALM_RESCUES:], longest, strict=True))


async def test_a_job_that_kills_its_own_node_again_and_again_becomes_a_dead_letter_too(store: PostgresJobStore) -> None:
    new = a_job()
    await store.insert([new])
    for _ in range(MAX_RESCUES + 1):
        await all_due(store)
        await claim_one(store)
        assert await store.recover("node", uuid4()) == 1
    assert await state(store, new.id) is JobState.DISCARDED


async def test_a_job_of_a_task_is_never_discarded_by_a_rescue(store: PostgresJobStore) -> None:
    await store.insert([a_job(task_id=uuid4())])
    for _ in range(MAX_RESCUES + 1):
        await all_due(store)
        await claim_one(store, seconds=-1.0)
        (rescued,) = await store.rescue([], 10)
    assert rescued.state is JobState.SCHEDULED
    await all_due(store)
    assert (await claim_one(store)).rescues == MAX_RESCUES + 1


async def test_a_node_that_starts_again_gives_back_what_its_earlier_life_held(store: PostgresJobStore) -> None:
    await store.insert([a_job(), a_job()])
    mine = await claim_one(store)
    other = (await store.claim(Claim("default", 1, "another", uuid4(), 30.0))).jobs[0]
    assert await store.recover("node", BOOT) == 0
    assert await store.recover("node", uuid4()) == 1
    assert await state(store, other.id) is JobState.EXECUTING
    again = await claim_one(store)
    assert (again.id, again.attempt, again.rescues) == (mine.id, 1, 1)


async def test_a_job_given_back_at_shutdown_has_lost_no_attempt(store: PostgresJobStore) -> None:
    await store.insert([a_job()])
    job = await claim_one(store)
    assert await store.release([job.fence]) == 1
    assert await store.release([job.fence]) == 0
    assert (await claim_one(store)).attempt == 1


# --- time passes ---


async def test_due_jobs_join_the_line_and_the_next_one_is_announced(store: PostgresJobStore) -> None:
    now = time.time()
    due, later = a_job(), a_job(scheduled_at=now + 500)
    await store.insert([due, later])
    job = await claim_one(store)
    await store.settle([JobChange(job.id, Retry("x", now - 1), job.fence)])
    staged = await store.stage(100)
    assert (staged.queues, staged.moved) == ({"default"}, 1)
    assert staged.next_in == pytest.approx(500, abs=5)
    assert (await claim_one(store)).attempt == 2


async def test_finished_jobs_are_pruned_when_their_time_has_come_and_others_never(store: PostgresJobStore) -> None:
    await store.insert([a_job() for _ in range(5)])
    done, failed, gone, running = (await store.claim(wish(4))).jobs
    await store.settle(
        [
            JobChange(done.id, Complete(), done.fence),
            JobChange(failed.id, Discard("x"), failed.fence),
            JobChange(gone.id, Cancel()),
        ]
    )
    assert await store.prune(Retention(0.0, 3600.0, 3600.0), 100) == 1
    assert await store.prune(Retention(0.0, 0.0, 0.0), 1) == 1
    assert await store.prune(Retention(0.0, 0.0, 0.0), 100) == 1
    left = await store.page(None, None, None, 10)
    assert {record.state for record in left} == {JobState.EXECUTING, JobState.AVAILABLE}
    assert await state(store, running.id) is JobState.EXECUTING


# --- looking ---


async def test_counts_tell_the_states_the_oldest_and_who_waits(store: PostgresJobStore) -> None:
    await store.insert([a_job("a"), a_job("a"), a_job("b"), a_job("b", scheduled_at=time.time() + 60)])
    await claim_one(store)
    (counts,) = await store.counts()
    assert (counts.available, counts.executing, counts.scheduled) == (2, 1, 1)
    assert counts.oldest_age is not None
    assert counts.oldest_age >= 0
    assert sum(waiting.unfinished for waiting in counts.waiting) == 4
    assert sum(waiting.jobs for waiting in counts.waiting) == 2


async def test_a_crowd_of_users_is_summed_up(store: PostgresJobStore) -> None:
    await store.insert([a_job("greedy") for _ in range(5)] + [a_job(f"user {n}") for n in range(2100)])
    (counts,) = await store.counts()
    named = [waiting for waiting in counts.waiting if waiting.users == 1]
    (crowd,) = [waiting for waiting in counts.waiting if waiting.users > 1]
    assert (len(named), max(waiting.jobs for waiting in named)) == (2000, 5)
    assert (crowd.users, crowd.jobs, crowd.unfinished) == (101, 101, 101)


async def test_jobs_are_paged_newest_first(store: PostgresJobStore) -> None:
    await store.insert([a_job() for _ in range(5)])
    first = await store.page("default", JobState.AVAILABLE, None, 3)
    rest = await store.page("default", JobState.AVAILABLE, first[-1].id, 3)
    ids = [record.id for record in (*first, *rest)]
    assert len(ids) == 5
    assert ids == sorted(ids, reverse=True)
    assert await store.page("other", None, None, 3) == ()


async def test_what_an_operator_sets_is_kept(store: PostgresJobStore) -> None:
    await store.set(QueueSetting("default", paused=True))
    await store.set(QueueSetting("default", paused=True, limit=3))
    assert await store.settings() == (QueueSetting("default", True, 3),)


async def test_a_notification_arrives_as_it_was_sent(store: PostgresJobStore) -> None:
    async with store.notices() as notices:
        for notice in (Notice(NoticeKind.PING, "me"), Notice(NoticeKind.STOP, "job", "token")):
            await store.notify(notice)
            with trio.fail_after(5):
                assert await anext(notices) == notice


def test_a_notification_of_a_newer_version_is_passed_over() -> None:
    assert parse_notice("dance now") is None


async def test_a_database_that_is_away_is_said_to_be_away() -> None:
    store = PostgresJobStore(Pool("host=/nowhere", migrations=None))
    with pytest.raises(StorageDown):
        await store.claim(wish())


# --- what has been claimed does not slow down what comes after --------------------------------------------


async def test_behind_thousands_that_were_claimed_inserts_and_claims_still_touch_few_pages(
    database: Pool, conninfo: str
) -> None:
    """While somebody keeps an old snapshot open (a dump, a forgotten session), their dead entries stay in the index."""
    pool = WatchedPool(conninfo)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.watch, lambda: None)
        await pool.wait_up()
        store = PostgresJobStore(pool)
        await store.insert([a_job("ann") for _ in range(4000)])
        async with await TrioConnection.connect(conninfo) as dump, dump.transaction():
            await dump.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            await dump.execute("SELECT count(*) FROM jobs")
            for _ in range(30):
                await store.claim(wish(100))
            pool.watching = True
            async with pool.connection():
                pool.plans.clear()
            await store.insert([a_job("bob")])
            await store.claim(wish(1))
            async with pool.connection():
                pass
        nursery.cancel_scope.cancel()
    pages = [plan.pages for plan in pool.plans if "INSERT INTO jobs" in plan.query or "SKIP LOCKED" in plan.query]
    assert len(pages) >= 2
    assert max(pages) < 60, pages


async def test_a_job_that_is_given_back_is_claimed_before_those_that_came_later(store: PostgresJobStore) -> None:
    """It keeps its turn, though claims begin behind what was served."""
    await store.insert([a_job("ann") for _ in range(50)])
    early = (await store.claim(wish(10))).jobs
    await store.claim(wish(10))
    await store.release([early[0].fence])
    await trio.sleep(WHOLE_EVERY)
    assert [job.id for job in (await store.claim(wish(1))).jobs] == [early[0].id]
    await store.release([early[1].fence])
    left = (await store.claim(wish(100))).jobs  # more than there is: nothing may stay behind
    assert len(left) == 31
    assert early[1].id in {job.id for job in left}
