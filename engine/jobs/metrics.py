"""The queue's metrics. Labels are queues, workers and states: never a user, a task or a job.

The gauges that an autoscaler reads are `elwift_jobs_waiting`, `elwift_jobs_oldest_available_age_seconds` and
`elwift_job_estimated_wait_seconds`.
"""

from __future__ import annotations

from functools import cache

from prometheus_client import Counter, Gauge, Histogram

_WAITS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_RUNS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)

FINISHED = Counter(
    "elwift_jobs", "Attempts that ended on this node, by what became of the job.", ("queue", "worker", "state")
)
QUEUE_WAIT = Histogram(
    "elwift_job_queue_wait_seconds", "From the time a job was due until it started.", ("queue",), buckets=_WAITS
)
DURATION = Histogram("elwift_job_duration_seconds", "How long attempts ran.", ("queue", "worker"), buckets=_RUNS)
RUNNING = Gauge("elwift_jobs_running", "Jobs in this node's slots.", ("queue",))
LIMIT = Gauge("elwift_jobs_limit", "This node's slots.", ("queue",))
WAITING = Gauge("elwift_jobs_waiting", "Jobs that wait for a slot, on all nodes.", ("queue",))
IN_STATE = Gauge("elwift_jobs_in_state", "Jobs on all nodes that are not done, and dead letters.", ("queue", "state"))
OLDEST = Gauge("elwift_jobs_oldest_available_age_seconds", "Age of the job that has waited longest.", ("queue",))
ESTIMATE = Gauge("elwift_job_estimated_wait_seconds", "What a new user's job would wait now.", ("queue",))
REFUSED = Counter("elwift_jobs_refused", "Admissions refused.", ("queue", "code"))
RESCUES = Counter("elwift_lease_rescues", "Jobs taken back from a node that was lost.", ("queue",))
LOST = Counter("elwift_leases_lost", "Jobs that this node had to stop because their lease was gone.", ("queue",))
STALE = Counter("elwift_job_stale_outcomes", "Outcomes refused because their fence was stale.")
PUSH = Gauge("elwift_jobs_push", "1 while notifications of the database arrive, 0 while the queue only polls.")
RESCUE_PAUSED = Gauge("elwift_job_rescue_paused", "1 while rescue waits because the database is away or slow.")


# Looking a child up by its labels costs as much as all the rest of a job's metrics: these are found once.


@cache
def queue_wait(queue: str) -> Histogram:
    return QUEUE_WAIT.labels(queue)


@cache
def duration(queue: str, worker: str) -> Histogram:
    return DURATION.labels(queue, worker)


@cache
def finished(queue: str, worker: str, state: str) -> Counter:
    return FINISHED.labels(queue, worker, state)
