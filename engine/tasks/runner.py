"""The job handler that makes an attempt at a task: it stands between a provider and the task's TaskServer.

Runs inside a worker process. It decides nothing about the task: each event is told to the TaskServer, which journals
what must last; so the outcome of the job is already recorded when this returns. A TaskServer that crashes is found
again, and the attempt goes on where it was.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter
from uuid import UUID, uuid4

import structlog
import trio
from attrs import define, field

from engine import telemetry
from engine.errors import UserError
from engine.jobs.job import Cancel, Discard, Job, JobOutcome, Recorded, Snooze
from engine.jobs.lifecycle import MAX_RESCUES
from engine.otp import CallFailed, Pid, Request, StartFailed, call, self_
from engine.outputs import OutputRefused
from engine.outputs.errors import unavailable
from engine.outputs.spool import Spooled
from engine.ports import Model, StorageDown
from engine.providers.protocol import (
    Failed,
    FailureKind,
    Finished,
    OutputReady,
    Progress,
    Provider,
    ProviderEvent,
    ProviderRequest,
    Sabotage,
    TextDelta,
)
from engine.runtime import Runtime
from engine.tasks import lookup, observed
from engine.tasks.feed import Events, Feed
from engine.tasks.harvest import Harvest, failure_of
from engine.tasks.messages import AttemptBegun, BeginAttempt, KeepOutput, Refusal, SetAside, Step, StepTaken
from engine.tasks.patience import Patience
from engine.tasks.resume import RESULT_LOST, Begin, Lost, Plan, Replay, Wait, may_have_earlier, plan
from engine.tasks.state import TaskState

log = structlog.get_logger(__name__)

STEP_TIMEOUT = 30.0
"""Seconds until a TaskServer must have taken a step. It takes microseconds: longer means that it hangs."""
STORAGE_PAUSE = 1.0
PROGRESS_PAUSE = 0.05
"""Seconds between two reports of progress that ride along with text."""

WORKER_LOST = Failed(
    FailureKind.PERMANENT,
    "worker_lost",
    "The server went down again and again while it ran this task.",
    "Try another input; report it if it stays so.",
    in_doubt=True,
)
NO_PROVIDER = Failed(
    FailureKind.PERMANENT, "no_provider", "Nothing here can run this model.", "Choose another model; tell the operator."
)


STORING = Progress(0.0, "storing", "The result waits for the place where it is kept.")


class AttemptOver(Exception):
    """The TaskServer takes no more of this attempt: it was cancelled, or another outcome was first."""


def handler(runtime: Runtime, patience: Patience | None = None) -> Callable[[Job], Awaitable[JobOutcome | Recorded]]:
    """The handler of jobs whose worker is `task`."""
    waits = patience or Patience()

    async def run(job: Job) -> JobOutcome | Recorded:
        told = structlog.contextvars.bound_contextvars(task_id=str(job.task_id), attempt=job.attempt)
        with told, observed.attempt(runtime.spans, job, runtime.clock()):
            return await run_job(runtime, job, waits)

    return run


async def run_job(runtime: Runtime, job: Job, patience: Patience) -> JobOutcome | Recorded:
    """Makes one attempt at the job's task. Until the attempt has begun, what goes wrong is the job's outcome."""
    if job.task_id is None:
        return Discard("a job of a task has no task")
    try:
        work = await _plan(runtime, job.task_id)
        if isinstance(work, Wait):
            return Snooze(runtime.clock() + work.seconds, "its result is on another server")
        begun = await _begin(runtime, job, job.task_id, work)
    except (StorageDown, CallFailed, StartFailed, UserError) as trouble:
        log.warning("attempt not begun", error=type(trouble).__name__)
        return Snooze(runtime.clock() + STORAGE_PAUSE, f"not begun: {type(trouble).__name__}")
    if not isinstance(begun, Begun):
        return begun
    attempt = Attempt(runtime, begun, work, patience)
    await attempt.run(WORKER_LOST if job.rescues >= MAX_RESCUES else None)
    return Recorded()


@define
class Begun:
    """An attempt that the TaskServer has opened."""

    id: UUID
    number: int
    task: TaskState


async def _plan(runtime: Runtime, task_id: UUID) -> Plan:
    """What the attempt goes on from: an earlier one that never ended is taken up, rather than bought again."""
    task = await lookup.find(runtime, task_id)
    if task is None or not may_have_earlier(task):
        return Begin()
    earlier = await runtime.store.open_prediction(task_id)
    ending = await runtime.outputs.spool.ending(earlier.id) if earlier else None
    adopts = bool(getattr(runtime.providers.get(task.provider), "adopts", False))
    return plan(earlier, ending, adopts, runtime.homes.node, runtime.clock())


async def _begin(runtime: Runtime, job: Job, task_id: UUID, work: Begin | Replay | Lost) -> Begun | JobOutcome:
    task = await lookup.find(runtime, task_id)
    if task is None:
        return Discard("the task does not exist")
    model = runtime.models.get(task.model_id)
    slug = model.slug if model else task.model
    attempt_id = work.earlier.id if work.earlier else uuid4()
    request = BeginAttempt(self_(), job.fence, attempt_id, task.provider, slug, work.earlier)
    match await lookup.ask(runtime, task_id, request):
        case AttemptBegun(number, task):
            return Begun(attempt_id, number, task)
        case Refusal(code="terminal" | "stale_job" as code) if lookup.stored(runtime, task_id):
            return Cancel(code)
        # What this node knew of the task was out of date, and by then is not. Or the task's end is still on its way to
        # the database: it takes the job with it, and nothing else may, for a crash could undo it.
        case Refusal(code=code):
            return Snooze(runtime.clock() + STORAGE_PAUSE, code)
        case _:
            return Cancel("the task is over")


@define
class Attempt:
    """One attempt at work. `text` is all that it has generated and told."""

    runtime: Runtime
    begun: Begun
    work: Begin | Replay | Lost
    patience: Patience
    text: str = ""
    _began: float = field(factory=perf_counter)
    _silent: bool = True
    _progress_at: float = -1.0

    async def run(self, doomed: Failed | None) -> None:
        """Runs the provider and tells the TaskServer, until the attempt is over."""
        provider = self.runtime.providers.get(self.begun.task.provider)
        if isinstance(self.work, Lost):
            doomed = RESULT_LOST
        try:
            if doomed is not None or provider is None:
                await self._tell((doomed or NO_PROVIDER,))
                return
            with telemetry.PROVIDER_RUNNING.labels(provider.name).track_inprogress():
                await self._run(provider)
        except* AttemptOver:
            log.info("attempt over")

    async def _run(self, provider: Provider) -> None:
        ending = self.work.ending if isinstance(self.work, Replay) else None
        feed, outputs = Feed(), self.runtime.outputs
        model = self.runtime.models.get(self.begun.task.model_id)
        request = self._request(model)
        asked = None if ending else observed.ProviderCall.begin(self.runtime.spans, provider.name, request, model)
        harvest = Harvest(outputs, provider, asked.request if asked else request, feed, self.patience, ending)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._deliver, harvest, nursery.cancel_scope)
                await harvest.run()  # here, so that the generator is closed by the task that runs it
        finally:
            if asked is not None:
                ago = trio.current_time() - harvest.over_at if harvest.over.is_set() else 0.0
                asked.end(harvest.end, harvest.usage, ago)
            if harvest.files and not harvest.held:
                outputs.spent[self.begun.id] = self.begun.task.id

    def _request(self, model: Model | None) -> ProviderRequest:
        task, earlier = self.begun.task, self.work.earlier
        return ProviderRequest(
            task_id=task.id,
            attempt=self.begun.number,
            attempt_id=self.begun.id,
            model=task.model,
            slug=model.slug if model else task.model,
            version=model.version if model else "",
            input=task.input,
            external_id=earlier.external_id if earlier else None,
            intent_at=earlier.started_at if earlier else None,
            trace_parent=task.trace_parent,
        )

    async def _deliver(self, harvest: Harvest, scope: trio.CancelScope) -> None:
        """Tells the TaskServer what comes, until the end; then nothing more is wanted of the provider."""
        while True:
            events = await harvest.feed.take()
            self._first_output(events[0])
            if isinstance(events[0], OutputReady):
                if await self._keep(harvest, events[0]):
                    continue
                scope.cancel()
                return
            await self._tell(events)
            if isinstance(events[-1], Finished | Failed):
                scope.cancel()
                return

    # --- its files ---------------------------------------------------------------------------------------

    async def _keep(self, harvest: Harvest, event: OutputReady) -> bool:
        """Stores an output, and only then tells of it. While the store is away it is tried again; when that takes too
        long the attempt is set aside, and False is answered."""
        spooled = harvest.files.get(event.index)
        if spooled is None:  # its provider's file server is away
            await harvest.over.wait()
            return await self._set_aside(harvest, harvest.unfetched or unavailable("it is not there"))
        for pause in self.patience.pauses():
            refused = await self._stored(spooled)
            if refused is None or isinstance(harvest.end, Failed):
                return True
            if self._overdue(harvest):
                return await self._set_aside(harvest, refused)
            await self._tell((STORING,))
            await trio.sleep(pause)
        raise AssertionError("pauses never end")

    async def _stored(self, spooled: Spooled) -> OutputRefused | None:
        begun, earlier = self.begun, self.work.earlier
        bought = earlier.attempt if earlier else begun.number
        try:
            with self.runtime.spans.span("store output", attributes={"elwift.output": spooled.index}):
                output = await self.runtime.outputs.keep(begun.task.id, bought, begun.id, spooled, self.runtime.clock())
        except OutputRefused as refused:
            log.warning("output not stored", index=spooled.index, why=refused.message)
            return refused
        await self._ask(KeepOutput(begun.number, output))
        return None

    def _overdue(self, harvest: Harvest) -> bool:
        """Whether the attempt must be set aside, its provider having said its last word. What could not be noted exists
        in this process alone: it is held on to much longer."""
        limit = self.patience.in_place if harvest.safe else self.patience.at_most
        return harvest.over.is_set() and trio.current_time() - harvest.over_at >= limit

    async def _set_aside(self, harvest: Harvest, refused: OutputRefused) -> bool:
        """The result waits, here or at the provider: the next attempt takes it up and buys nothing. True: there is none
        to wait for."""
        if isinstance(harvest.end, Failed):
            return True
        now, earlier = self.runtime.clock(), self.work.earlier
        since = earlier.held_since if earlier and earlier.held_since else now
        until = self.patience.until(since, now) if harvest.safe else None
        failure = failure_of(refused)
        if until is None:
            await self._tell((failure,))
            return False
        harvest.held = True
        usage = harvest.usage.usage if harvest.usage else None
        await self._ask(SetAside(self.begun.number, failure, until, harvest.end or Finished(), usage))
        return False

    # --- telling -----------------------------------------------------------------------------------------

    async def _tell(self, events: Events) -> None:
        """Sends events. A TaskServer that was rebuilt may lack text that was sent before: then it goes with them."""
        events, offset = self._calm(events), len(self.text)
        self.text += "".join(event.text for event in events if isinstance(event, TextDelta))
        while (has := (await self._ask(Step(self.begun.number, events, offset))).text_offset) < offset:
            events, offset = (TextDelta(self.text[has:offset]), *events), has

    def _calm(self, events: Events) -> Events:
        """Progress at every token is more than an eye can see: beside text, it comes now and then."""
        now = trio.current_time()
        told = any(isinstance(event, Progress) for event in events)
        if told and now < self._progress_at and any(isinstance(event, TextDelta) for event in events):
            return tuple(event for event in events if not isinstance(event, Progress))
        if told:
            self._progress_at = now + PROGRESS_PAUSE
        return events

    async def _ask(self, request: Request[StepTaken | Refusal]) -> StepTaken:
        """Asks the TaskServer, and its successor when it crashes. Raises AttemptOver when the step is refused."""
        for _ in range(lookup.ATTEMPTS):
            server = await self._server()
            try:
                answer = await call(server, request, STEP_TIMEOUT)
            except CallFailed:
                if isinstance(request, Step) and isinstance(request.events[0], Sabotage):
                    return StepTaken(len(self.text))  # it has done what it was sent for
                continue
            if isinstance(answer, Refusal):
                raise AttemptOver
            return answer
        raise AttemptOver

    async def _server(self) -> Pid:
        """The task's TaskServer; while one is being restarted, the next one. Raises AttemptOver when the task is."""
        runtime, task_id = self.runtime, self.begun.task.id
        server = lookup.whereis(runtime, task_id)
        if server is None and task_id in runtime.stash:
            server = await lookup.start(runtime, task_id)
        if server is None:
            raise AttemptOver
        return server

    def _first_output(self, event: ProviderEvent) -> None:
        if self._silent and isinstance(event, TextDelta | Progress | OutputReady):
            self._silent = False
            seconds = perf_counter() - self._began
            telemetry.FIRST_OUTPUT.labels(self.begun.task.provider).observe(seconds)
