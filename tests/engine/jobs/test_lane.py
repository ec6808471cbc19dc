"""One queue on one node: slots, claims, and jobs that only memory knows while the database is away."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from attrs import define, field

from engine.jobs.config import QueueConfig, Rate
from engine.jobs.job import Cancel, Complete, Discard, Fence, Job, JobChange, Lease, NewJob, Retry, Snooze
from engine.jobs.lane import Identity, Lane, Running
from engine.jobs.ports import Claimed
from engine.otp.pid import new_pid
from engine.ports import Buffered, Committed, Refused

IDENTITY = Identity("node", UUID(int=1), lease=30.0)


@define
class World:
    """A lane that knows its line to be empty, and a clock moved by hand."""

    config: QueueConfig = field(factory=lambda: QueueConfig(limit=2))
    now: float = 1000.0
    settled: list[JobChange] = field(factory=list)
    lane: Lane = field(init=False)

    def __attrs_post_init__(self) -> None:
        def clock() -> float:
            return self.now

        self.lane = Lane("default", self.config, IDENTITY, self.settled.append, clock=clock, monotonic=clock)
        self.lane.end_claim(Claimed((), more=False), self.lane.begin_claim()[1])

    def start(self) -> list[Running]:
        """Starts what may start, as the dispatcher and its workers do."""
        self.lane.start_from_memory()
        started = []
        while (held := self.lane.take(new_pid())) is not None:
            started.append(held)
        return started

    def start_one(self) -> Running:
        (held,) = self.start()
        return held

    def outage(self, job: NewJob) -> None:
        self.lane.inserted(job, Buffered())

    def flush_insert(self, job: NewJob) -> Lease | None:
        lease = self.lane.reserve(job)
        self.lane.inserted(job, Committed())
        return lease

    def flush_change(self, change: JobChange) -> Lease | None:
        assert change.fence is not None
        lease = self.lane.successor(change.fence)
        self.lane.changed(change, Committed())
        return lease


def new_job(**more: object) -> NewJob:
    return NewJob(uuid4(), "work", **more)  # type: ignore[arg-type]


def claimed_job() -> Job:
    fence = Fence(uuid4(), 1, uuid4())
    return Job(fence, "work", "default", {}, None, None, 4, 1, 20, 0.0, 0.0, 0.0)


@pytest.fixture
def world() -> World:
    return World()


# --- with the database there ---


def test_a_new_job_gets_a_lease_while_a_slot_is_free_and_none_after(world: World) -> None:
    leases = [world.lane.reserve(new_job()) for _ in range(3)]
    assert [lease is not None for lease in leases] == [True, True, False]


def test_the_same_job_gets_the_same_lease_again(world: World) -> None:
    job = new_job()
    assert world.lane.reserve(job) == world.lane.reserve(job)
    assert world.lane.free == 1


def test_a_job_starts_under_its_lease_when_its_insert_is_committed(world: World) -> None:
    job = new_job(args={"a": 1}, user="ann")
    lease = world.lane.reserve(job)
    assert world.start() == []
    world.lane.inserted(job, Committed())
    held = world.start_one()
    assert lease is not None
    assert (held.job.fence, held.job.args, held.job.user, held.stored) == (lease.fence, {"a": 1}, "ann", True)


def test_a_refused_insert_gives_its_slot_back(world: World) -> None:
    job = new_job()
    world.lane.reserve(job)
    world.lane.inserted(job, Refused("conflict"))
    assert world.lane.free == 2
    assert world.start() == []


def test_a_job_that_got_no_lease_is_asked_for_in_the_line(world: World) -> None:
    world.lane.limit = 0
    job = new_job()
    assert world.flush_insert(job) is None
    assert world.lane.demand == 0
    world.lane.limit = 2
    assert world.lane.demand == 2


def test_nobody_in_line_is_passed_over_by_a_newcomer(world: World) -> None:
    world.lane.wake()
    assert world.lane.reserve(new_job()) is None


def test_a_job_of_the_future_gets_no_slot(world: World) -> None:
    assert world.lane.reserve(new_job(scheduled_at=world.now + 1)) is None


@pytest.mark.parametrize("config", [QueueConfig(global_limit=5), QueueConfig(rate=Rate(5))])
def test_a_queue_with_a_limit_over_all_nodes_is_always_asked_of_the_database(config: QueueConfig) -> None:
    assert World(config).lane.reserve(new_job()) is None


def test_a_paused_or_draining_lane_reserves_and_demands_nothing(world: World) -> None:
    world.lane.wake()
    world.lane.paused = True
    assert (world.lane.reserve(new_job()), world.lane.demand) == (None, 0)
    world.lane.paused, world.lane.draining = False, True
    assert (world.lane.reserve(new_job()), world.lane.demand) == (None, 0)


def test_a_claim_keeps_the_slots_that_it_asks_for(world: World) -> None:
    world.lane.wake()
    demand, mark = world.lane.begin_claim()
    assert (demand, world.lane.free, world.lane.demand) == (2, 0, 0)
    world.lane.end_claim(Claimed((claimed_job(),), more=False), mark)
    assert (len(world.start()), world.lane.free, world.lane.backlog) == (1, 1, False)


def test_who_joins_the_line_during_a_claim_is_not_forgotten(world: World) -> None:
    world.lane.wake()
    _, mark = world.lane.begin_claim()
    world.lane.wake()
    world.lane.end_claim(Claimed((), more=False), mark)
    assert world.lane.demand == 2


def test_a_limit_over_all_nodes_postpones_the_next_claim(world: World) -> None:
    world.lane.wake()
    _, mark = world.lane.begin_claim()
    world.lane.end_claim(Claimed((), more=True, wait=5.0), mark)
    assert (world.lane.demand, world.lane.next_in) == (0, 5.0)
    world.now += 5.0
    assert world.lane.demand == 2


def test_a_job_withdrawn_before_its_worker_had_it_never_starts(world: World) -> None:
    world.flush_insert(job := new_job())
    assert world.lane.stop(job.id, "cancelled")
    assert world.lane.take(new_pid()) is None
    assert world.lane.free == 2


def test_a_cancelled_job_is_stopped_and_another_attempt_of_it_is_not(world: World) -> None:
    job = new_job()
    world.flush_insert(job)
    held = world.start_one()
    assert not world.lane.stop(job.id, "cancelled", token=uuid4())
    world.lane.changed(JobChange(job.id, Cancel()), Committed())
    assert list(world.lane.stopping) == [(held, "cancelled")]


def test_a_stale_fence_stops_the_worker(world: World) -> None:
    job = new_job()
    world.flush_insert(job)
    held = world.start_one()
    world.lane.changed(JobChange(job.id, Complete(), held.job.fence), Refused("stale_fence"))
    assert list(world.lane.stopping) == [(held, "lease_lost")]


def test_leases_are_kept_of_what_runs_and_of_what_a_task_has_yet_to_journal(world: World) -> None:
    job = new_job(task_id=uuid4())
    world.flush_insert(job)
    held = world.start_one()
    assert [lease.fence for lease in world.lane.leases()] == [held.job.fence]
    world.lane.leave(held, journaled=True)
    assert [lease.fence for lease in world.lane.leases()] == [held.job.fence]
    assert job.id in world.lane.holding()
    world.lane.changed(JobChange(job.id, Complete(), held.job.fence), Committed())
    assert world.lane.leases() == []


@pytest.mark.parametrize("heard", ["before its worker left", "after"])
@pytest.mark.parametrize("end", [Committed(), Refused("terminal")], ids=["committed", "refused"])
def test_a_job_whose_outcome_waits_for_the_database_is_kept_however_long_that_takes(
    heard: str, end: Committed | Refused
) -> None:
    world = World()
    job = new_job()
    world.flush_insert(job)
    held = world.start_one()
    change = JobChange(job.id, Complete(), held.job.fence)
    if heard == "after":
        world.lane.leave(held, journaled=True)
    world.lane.changed(change, Buffered())
    if heard != "after":
        world.lane.leave(held, journaled=True)
    world.now += 1000.0
    assert [lease.fence for lease in world.lane.leases()] == [held.job.fence]
    assert job.id in world.lane.holding()
    world.lane.changed(change, end)
    assert world.lane.leases() == []
    assert job.id not in world.lane.holding()


def test_a_task_that_never_journals_its_outcome_loses_its_lease_in_the_end(world: World) -> None:
    world.flush_insert(new_job(task_id=uuid4()))
    world.lane.leave(world.start_one(), journaled=True)
    world.now += 31.0
    assert world.lane.leases() == []


def test_a_lease_that_ended_with_its_outcome_is_not_mistaken_for_a_lost_one(world: World) -> None:
    job = new_job(task_id=uuid4())
    world.flush_insert(job)
    held = world.start_one()
    world.lane.changed(JobChange(job.id, Complete(), held.job.fence), Committed())
    assert not world.lane.lost(job.id)
    assert not world.lane.stopping


def test_a_job_whose_lease_was_lost_is_stopped(world: World) -> None:
    world.flush_insert(job := new_job())
    held = world.start_one()
    assert world.lane.lost(job.id)
    assert list(world.lane.stopping) == [(held, "lease_lost")]


# --- while the database is away ---


def test_a_job_runs_from_memory_and_is_flushed_under_the_lease_it_ran_with(world: World) -> None:
    job = new_job()
    world.outage(job)
    held = world.start_one()
    assert not held.stored
    lease = world.flush_insert(job)
    assert lease is not None
    assert lease.fence == held.job.fence
    assert held.stored


def test_a_job_whose_insert_failed_runs_under_the_lease_reserved_for_it(world: World) -> None:
    job = new_job()
    lease = world.lane.reserve(job)
    world.outage(job)
    held = world.start_one()
    assert lease is not None
    assert held.job.fence == lease.fence
    assert world.flush_insert(job) == lease
    assert world.start() == []


def test_jobs_wait_in_memory_for_a_slot_in_fair_order(world: World) -> None:
    jobs = [new_job(user="many") for _ in range(5)] + [new_job(user="one")]
    for job in jobs:
        world.outage(job)
    first = world.start()
    assert [held.job.user for held in first] == ["many", "one"]
    world.lane.leave(first[0], journaled=True)
    assert [held.job.id for held in world.start()] == [jobs[1].id]


def test_a_job_that_waits_in_memory_when_the_database_is_back_goes_to_the_line(world: World) -> None:
    jobs = [new_job() for _ in range(3)]
    for job in jobs:
        world.outage(job)
    world.start()
    assert world.flush_insert(jobs[2]) is None
    world.lane.leave(next(iter(world.lane.running.values())), journaled=False)
    assert world.start() == []
    assert world.lane.demand == 1


def test_a_job_that_may_have_been_committed_to_the_line_does_not_start_from_memory(world: World) -> None:
    world.lane.paused = True
    job = new_job()
    assert world.lane.reserve(job) is None
    world.outage(job)
    world.lane.paused = False
    assert world.start() == []
    assert world.lane.reserve(job) is not None


def test_an_attempt_that_failed_during_the_outage_runs_again_from_memory_under_a_new_fence(world: World) -> None:
    job = new_job(max_attempts=3)
    world.outage(job)
    first = world.start_one()
    retry = JobChange(job.id, Retry("x", at=world.now + 10), first.job.fence)
    world.lane.changed(retry, Buffered())
    world.lane.leave(first, journaled=True)
    assert world.start() == []
    assert world.lane.next_in == 10.0
    world.now += 10.0
    second = world.start_one()
    assert (second.job.attempt, second.job.fence.attempt) == (2, 2)
    assert second.job.fence.token != first.job.fence.token

    insert_lease, retry_lease = world.flush_insert(job), world.flush_change(retry)
    assert insert_lease is not None
    assert retry_lease is not None
    assert (insert_lease.fence, retry_lease.fence) == (first.job.fence, second.job.fence)
    assert second.stored


def test_a_snooze_in_memory_runs_again_as_the_same_attempt(world: World) -> None:
    job = new_job()
    world.outage(job)
    first = world.start_one()
    world.lane.changed(JobChange(job.id, Snooze(world.now), first.job.fence), Buffered())
    world.lane.leave(first, journaled=True)
    second = world.start_one()
    assert second.job.attempt == 1
    assert second.job.fence != first.job.fence


def test_an_attempt_that_is_not_due_when_the_database_is_back_is_left_to_it(world: World) -> None:
    job = new_job()
    world.outage(job)
    first = world.start_one()
    retry = JobChange(job.id, Retry("x", at=world.now + 10), first.job.fence)
    world.lane.changed(retry, Buffered())
    world.lane.leave(first, journaled=True)
    world.flush_insert(job)
    assert world.flush_change(retry) is None
    world.now += 10.0
    assert world.start() == []


def test_a_retry_that_may_have_been_committed_does_not_start_from_memory(world: World) -> None:
    world.flush_insert(new_job())
    first = world.start_one()
    retry = JobChange(first.job.id, Retry("x", at=world.now), first.job.fence)
    assert world.lane.successor(first.job.fence) is None
    world.lane.changed(retry, Buffered())
    world.lane.leave(first, journaled=True)
    assert world.start() == []


def test_a_job_cancelled_while_it_waits_in_memory_never_starts(world: World) -> None:
    job = new_job()
    world.lane.paused = True
    world.outage(job)
    world.lane.changed(JobChange(job.id, Cancel()), Buffered())
    world.lane.paused = False
    assert world.start() == []


def test_an_outcome_under_a_claim_made_in_memory_is_written_only_after_the_claim(world: World) -> None:
    job = new_job()
    world.outage(job)
    held = world.start_one()
    world.lane.leave(held, journaled=False)
    world.lane.conclude(held, Discard("x"))
    assert world.settled == []
    world.flush_insert(job)
    assert world.settled == [JobChange(job.id, Discard("x"), held.job.fence)]


def test_a_claim_that_only_memory_knows_is_not_kept_alive_in_the_database(world: World) -> None:
    world.outage(new_job())
    world.start()
    assert world.lane.leases() == []
    assert len(world.lane.holding()) == 1
