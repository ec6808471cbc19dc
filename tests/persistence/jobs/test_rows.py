"""What the journal writes for the queue inside its own transaction."""

from __future__ import annotations

import time
from uuid import UUID, uuid4

import pytest
import trio

from engine.jobs.job import Cancel, Complete, Discard, Fence, Hold, JobChange, JobState, Lease, NewJob, Retry, Snooze
from engine.jobs.ports import Claim, JobRecord, Notice, NoticeKind
from persistence.jobs.rows import ChangeRow, NewRow, apply_changes, insert_jobs
from persistence.jobs.store import PostgresJobStore
from persistence.pool import Pool

BOOT = uuid4()


def leased(job: NewJob, attempt: int = 1) -> Lease:
    return Lease(Fence(job.id, attempt, uuid4()), "node", BOOT, 30.0)


def a_job(**more: object) -> NewJob:
    return NewJob(uuid4(), "work", **more)  # type: ignore[arg-type]


async def insert(pool: Pool, *rows: NewRow) -> frozenset[UUID]:
    async with pool.connection() as conn, conn.transaction():
        return await insert_jobs(conn, rows)


async def apply(pool: Pool, *changes: ChangeRow) -> frozenset[int]:
    async with pool.connection() as conn, conn.transaction():
        return await apply_changes(conn, changes)


async def found(pool: Pool, job_id: UUID) -> JobRecord:
    record = await PostgresJobStore(pool).get(job_id)
    assert record is not None
    return record


async def test_a_job_inserted_under_a_lease_is_executing_and_its_outcome_is_taken(database: Pool) -> None:
    job = a_job()
    lease = leased(job)
    assert await insert(database, (job, lease)) == {job.id}
    assert (await found(database, job.id)).state is JobState.EXECUTING
    assert await apply(database, (JobChange(job.id, Complete(), lease.fence), None)) == frozenset()
    record = await found(database, job.id)
    assert (record.state, record.attempt, record.node) == (JobState.COMPLETED, 1, "node")


async def test_an_insert_that_is_rolled_back_leaves_no_job(database: Pool) -> None:
    job = a_job()
    async with database.connection() as conn, conn.transaction(force_rollback=True):
        assert await insert_jobs(conn, [(job, None)]) == {job.id}
    assert await PostgresJobStore(database).get(job.id) is None


async def test_an_insert_repeated_after_an_unsure_commit_changes_nothing(database: Pool) -> None:
    job = a_job()
    lease = leased(job)
    await insert(database, (job, lease))
    assert await insert(database, (job, lease)) == frozenset()
    assert await apply(database, (JobChange(job.id, Complete(), lease.fence), None)) == frozenset()


async def test_a_job_of_the_future_is_scheduled(database: Pool) -> None:
    job = a_job(scheduled_at=time.time() + 3600)
    await insert(database, (job, None))
    record = await found(database, job.id)
    assert record.state is JobState.SCHEDULED
    assert record.scheduled_at == pytest.approx(job.scheduled_at or 0, abs=0.01)


async def test_a_unique_key_is_taken_until_its_job_is_finished(database: Pool) -> None:
    first, second = a_job(unique_key="one"), a_job(unique_key="one")
    assert await insert(database, (first, None), (second, None)) == {first.id}
    await apply(database, (JobChange(first.id, Cancel()), None))
    assert await insert(database, (second, None)) == {second.id}


async def test_a_late_outcome_is_stale_and_changes_nothing(database: Pool) -> None:
    job = a_job()
    lease, other = leased(job), Fence(job.id, 1, uuid4())
    await insert(database, (job, lease))
    assert await apply(database, (JobChange(job.id, Discard("late"), other), None)) == {0}
    assert (await found(database, job.id)).state is JobState.EXECUTING


async def test_of_two_outcomes_the_first_wins_and_its_repetition_is_no_refusal(database: Pool) -> None:
    job = a_job()
    lease = leased(job)
    await insert(database, (job, lease))
    done = (JobChange(job.id, Complete(), lease.fence), None)
    failed = (JobChange(job.id, Discard("no"), lease.fence), None)
    assert [await apply(database, change) for change in (done, done, failed)] == [frozenset(), frozenset(), {0}]
    assert (await found(database, job.id)).state is JobState.COMPLETED


async def test_an_outcome_of_an_unknown_job_is_stale_and_an_order_for_it_is_nothing(database: Pool) -> None:
    job = a_job()
    assert await apply(database, (JobChange(job.id, Complete(), leased(job).fence), None)) == {0}
    assert await apply(database, (JobChange(job.id, Cancel()), None)) == frozenset()


async def test_a_failed_attempt_keeps_its_error_and_waits(database: Pool) -> None:
    job = a_job()
    lease = leased(job)
    await insert(database, (job, lease))
    await apply(database, (JobChange(job.id, Retry("bo\0om \ud800", at=time.time() + 60), lease.fence), None))
    record = await found(database, job.id)
    assert (record.state, record.attempt) == (JobState.RETRYABLE, 1)
    assert [error.error for error in record.errors] == ["bo\ufffdom \ufffd"]


async def test_a_snooze_does_not_count_the_attempt(database: Pool) -> None:
    job = a_job()
    lease = leased(job)
    await insert(database, (job, lease))
    await apply(database, (JobChange(job.id, Snooze(time.time() + 60), lease.fence), None))
    record = await found(database, job.id)
    assert (record.state, record.attempt, record.snoozes) == (JobState.SCHEDULED, 0, 1)


async def test_a_retry_by_hand_reopens_a_dead_letter_with_an_attempt_more(database: Pool) -> None:
    job = a_job(max_attempts=1)
    lease = leased(job)
    await insert(database, (job, lease))
    await apply(database, (JobChange(job.id, Discard("dead"), lease.fence), None))
    await apply(database, (JobChange(job.id, Retry("")), None))
    record = await found(database, job.id)
    assert (record.state, record.max_attempts) == (JobState.AVAILABLE, 2)


async def test_attempts_made_in_memory_are_flushed_in_order_under_their_own_fences(database: Pool) -> None:
    job = a_job(max_attempts=3)
    first, second, third = leased(job), leased(job, 2), leased(job, 3)
    await insert(database, (job, first))
    soon = time.time()
    stale = await apply(
        database,
        (JobChange(job.id, Retry("one", soon), first.fence), second),
        (JobChange(job.id, Retry("two", soon), second.fence), third),
        (JobChange(job.id, Complete(), third.fence), None),
    )
    record = await found(database, job.id)
    assert (stale, record.state, record.attempt) == (frozenset(), JobState.COMPLETED, 3)
    assert [(error.attempt, error.error) for error in record.errors] == [(1, "one"), (2, "two")]


async def test_a_memory_attempt_that_still_runs_holds_the_job_after_the_flush(database: Pool) -> None:
    job = a_job()
    first, second = leased(job), leased(job, 2)
    await insert(database, (job, first))
    await apply(database, (JobChange(job.id, Retry("one", time.time()), first.fence), second))
    assert (await found(database, job.id)).state is JobState.EXECUTING
    assert await apply(database, (JobChange(job.id, Complete(), first.fence), None)) == {0}
    assert await apply(database, (JobChange(job.id, Complete(), second.fence), None)) == frozenset()


async def test_cancelling_a_running_job_tells_every_node_to_stop_it(database: Pool) -> None:
    job = a_job()
    lease = leased(job)
    await insert(database, (job, lease))
    store = PostgresJobStore(database)
    async with store.notices() as notices:
        await apply(database, (JobChange(job.id, Cancel()), None))
        with trio.fail_after(5):
            assert await anext(notices) == Notice(NoticeKind.STOP, str(job.id), str(lease.fence.token))
    assert await apply(database, (JobChange(job.id, Complete(), lease.fence), None)) == {0}
    assert (await found(database, job.id)).state is JobState.CANCELLED


async def test_a_job_put_in_line_wakes_every_node_and_one_that_has_a_lease_none(database: Pool) -> None:
    job, other = a_job(), a_job(queue="other")
    store = PostgresJobStore(database)
    async with store.notices() as notices:
        await insert(database, (job, leased(job)))
        await insert(database, (other, None))
        with trio.fail_after(5):
            assert await anext(notices) == Notice(NoticeKind.WAKE, "other")


async def test_two_that_change_the_same_jobs_in_opposite_orders_do_not_deadlock(database: Pool) -> None:
    jobs = [(job := a_job(), leased(job)) for _ in range(40)]
    await insert(database, *jobs)
    changes: list[ChangeRow] = [(JobChange(job.id, Complete(), lease.fence), None) for job, lease in jobs]
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for order in (changes, changes[::-1]) * 2:
                nursery.start_soon(apply, database, *order)
    records = [await found(database, job.id) for job, _ in jobs]
    assert {record.state for record in records} == {JobState.COMPLETED}


async def test_both_statements_run_inside_a_pipeline(database: Pool) -> None:
    job = a_job()
    lease = leased(job)
    async with database.connection() as conn, conn.pipeline(), conn.transaction():
        assert await insert_jobs(conn, [(job, lease)]) == {job.id}
        assert await apply_changes(conn, [(JobChange(job.id, Complete(), lease.fence), None)]) == frozenset()
    assert (await found(database, job.id)).state is JobState.COMPLETED


async def test_a_worker_that_only_holds_its_job_changes_nothing_and_is_refused_once_another_has_it(
    database: Pool,
) -> None:
    job = a_job()
    lease, other = leased(job), Fence(job.id, 1, uuid4())
    await insert(database, (job, lease))
    before = await found(database, job.id)
    assert await apply(database, (JobChange(job.id, Hold(), lease.fence), None)) == frozenset()
    assert await found(database, job.id) == before
    assert await apply(database, (JobChange(job.id, Hold(), other), None)) == {0}
    await apply(database, (JobChange(job.id, Cancel()), None))
    assert await apply(database, (JobChange(job.id, Hold(), lease.fence), None)) == {0}


async def test_what_a_job_waits_for_is_the_databases_time_however_wrong_the_servers_clock(
    database: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server whose clock is ten minutes ahead says 'in a minute' in its own time; all others agree on the minute."""
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + 600)
    job, failed = a_job(scheduled_at=time.time() + 60), a_job()
    lease = leased(failed)
    await insert(database, (job, None), (failed, lease))
    await apply(database, (JobChange(failed.id, Retry("no", time.time() + 60), lease.fence), None))
    for one in (job, failed):
        assert (await found(database, one.id)).scheduled_at == pytest.approx(true() + 60, abs=2)


async def test_a_job_keeps_the_home_where_it_was_made_until_another_server_claims_it(database: Pool) -> None:
    job = a_job(home="here", task_id=uuid4())
    await insert(database, (job, None))
    store = PostgresJobStore(database)
    assert (await found(database, job.id)).home == "here"
    async with store.notices() as notices:
        await store.claim(Claim("default", 1, "there", BOOT, 30.0))
        with trio.fail_after(5):
            async for notice in notices:
                if notice.kind is NoticeKind.MOVED:
                    assert (notice.subject, notice.token) == (str(job.task_id), "here")
                    break
    assert (await found(database, job.id)).home == "there"
