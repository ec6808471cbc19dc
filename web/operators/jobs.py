"""The operators' calls about single jobs: look at one, hold it back, let it go, try it again, cancel it.

A job of a task is its task's affair: cancelling it and trying it again are done to the task, so that its log tells.
Each act is written to the audit log. May import the engine's jobs and tasks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

from attrs import define

from engine.errors import UserError
from engine.jobs.job import JobState
from engine.jobs.ports import JobRecord
from engine.jobs.queues import PAGE, Queues
from engine.tasks import lookup
from engine.tasks.events import Actor
from web.http.body import one_of
from web.http.exchange import Answer, Ask, Handler, json
from web.http.house import House
from web.http.route import Parameter, Route

Record = Callable[..., None]
"""Writes an act to the audit log: who asked, which act, about what."""

_STATES = {state.value: state for state in JobState}
_NO_JOB = "There is no job with this id. Finished jobs are kept for an hour to a week."


@define(eq=False)
class JobRoutes:
    """The calls, over the queues."""

    queues: Queues
    record: Record

    async def index(self, house: House, ask: Ask) -> Answer:
        """Jobs, newest first, a hundred at a time; of a queue, in a state, if these are named."""
        state = one_of(ask.query.get("state"), "state", _STATES)
        return jobs_page(await self.queues.page(ask.query.get("queue"), state, cursor_of(ask)))

    async def show(self, house: House, ask: Ask) -> Answer:
        """One job with its errors, but without what it was asked to do."""
        return json(job_view(await self._job(ask)))

    async def suspend(self, house: House, ask: Ask) -> Answer:
        """Holds a waiting job back until it is released."""
        return await self._act(ask, "suspend", self.queues.suspend, "Only a job that waits can be held back.")

    async def release(self, house: House, ask: Ask) -> Answer:
        """Lets a job go that was held back."""
        return await self._act(ask, "release", self.queues.release, "Only a job that is held back can be released.")

    async def cancel(self, house: House, ask: Ask) -> Answer:
        """Ends a job, or the task it belongs to; what runs is stopped at once."""
        job = await self._job(ask)
        self.record(ask, "cancel", job=str(job.id))
        if job.task_id is not None:
            await lookup.cancel(house.runtime, job.task_id, Actor.OPERATOR)
        else:
            await self.queues.cancel(job.id)
        return json(job_view(await self._job(ask)))

    async def retry(self, house: House, ask: Ask) -> Answer:
        """Runs a job again that is over or waits; a task that has failed gets a new one."""
        job = await self._job(ask)
        self.record(ask, "retry", job=str(job.id))
        if job.task_id is not None:
            task = await lookup.retry(house.runtime, job.task_id, Actor.OPERATOR)
            return json(job_view(await self._named(task.job_id or job.id)))
        await self.queues.retry(job.id)
        return json(job_view(await self._job(ask)))

    async def _act(self, ask: Ask, action: str, act: Callable[[UUID], Awaitable[bool]], refusal: str) -> Answer:
        job = await self._job(ask)
        self.record(ask, action, job=str(job.id))
        if not await act(job.id):
            raise UserError("conflict", f"{refusal} This one is {job.state}.")
        return json(job_view(await self._job(ask)))

    async def _job(self, ask: Ask) -> JobRecord:
        try:
            return await self._named(UUID(ask.args["job_id"]))
        except ValueError:
            raise UserError("no_such_job", _NO_JOB) from None

    async def _named(self, job_id: UUID) -> JobRecord:
        job = await self.queues.get(job_id)
        if job is None:
            raise UserError("no_such_job", _NO_JOB)
        return job

    @property
    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                "GET", "/api/jobs", self.index, "Jobs", answer="Jobs", operator=True, tag="operators",
                refusals=("invalid_request", "invalid_cursor", "storage_down"),
                parameters=(
                    Parameter("queue", {"type": "string"}, "Only this queue's."),
                    Parameter("state", {"enum": list(_STATES)}, "Only those in this state."),
                    Parameter("cursor", {"type": "string"}, "The `cursor` of the page before."),
                ),
            ),
            _route("GET", "", self.show, "One job"),
            _route("POST", "/suspend", self.suspend, "Hold a job back", "conflict"),
            _route("POST", "/release", self.release, "Let a job go", "conflict"),
            _route("POST", "/cancel", self.cancel, "Cancel a job", "conflict", "timeout"),
            _route(
                "POST", "/retry", self.retry, "Try a job again",
                "job_exists", "not_failed", "over_capacity", "over_quota", "over_budget", "conflict", "timeout",
            ),
        )  # fmt: skip


def _route(method: str, path: str, handler: Handler, summary: str, *refusals: str) -> Route:
    return Route(
        method,
        f"/api/jobs/<job_id>{path}",
        handler,
        summary,
        answer="Job",
        refusals=("no_such_job", "storage_down", *refusals),
        operator=True,
        tag="operators",
    )


def cursor_of(ask: Ask) -> UUID | None:
    """The place in a list of jobs where a page begins. Raises UserError `invalid_cursor`."""
    try:
        return UUID(ask.query["cursor"]) if "cursor" in ask.query else None
    except ValueError:
        raise UserError("invalid_cursor", "The cursor is the id of the last job of the page before.") from None


def jobs_page(jobs: Sequence[JobRecord]) -> Answer:
    """A page of jobs, and where the next one begins."""
    return json({"jobs": [job_view(job) for job in jobs], "cursor": str(jobs[-1].id) if len(jobs) == PAGE else None})


def job_view(job: JobRecord) -> dict[str, object]:
    """A job, without what it was asked to do."""
    return {
        "id": str(job.id),
        "state": job.state.value,
        "queue": job.queue,
        "worker": job.worker,
        "task_id": None if job.task_id is None else str(job.task_id),
        "user": job.user,
        "priority": job.priority,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "rescues": job.rescues,
        "snoozes": job.snoozes,
        "scheduled_at": job.scheduled_at,
        "created_at": job.created_at,
        "updated_at": job.updated_at,
        "node": job.node,
        "home": job.home,
        "errors": [{"attempt": error.attempt, "at": error.at, "error": error.error} for error in job.errors],
    }
