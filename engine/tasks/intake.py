"""How a task comes into being: checked, admitted, journaled, acknowledged.

May import the rest of this room, models and ports. The acknowledgement says where the task is: in the database, or
in memory while the database is away.
"""

from __future__ import annotations

from time import perf_counter

from attrs import evolve

from engine import telemetry, tracing
from engine.errors import UserError
from engine.models.models import Fitted
from engine.ports import Buffered, Committed, Duplicate, Durability, JournalFull, Model, Receipt, Refused
from engine.runtime import Estimate, Runtime
from engine.tasks import decide, delivery, lookup
from engine.tasks.events import Created
from engine.tasks.ids import new_id
from engine.tasks.messages import Accepted, NewTask
from engine.tasks.stash import Live
from engine.tasks.state import TaskState

RETRY_AFTER = 10.0
"""Seconds, said to those whom an outage catches in strict mode."""
DEFAULT_PRIORITY = 4
DEFAULT_ATTEMPTS = 3


async def accept(runtime: Runtime, new: NewTask) -> Accepted:
    """Makes a task of a wish and waits until it is safe, or says that it is not.

    Raises:
        UserError: `unknown_model`, `inactive_model`, `invalid_input`, `over_capacity`, `over_quota`, `over_budget`,
            `task_exists`, `unauthorized` (the id is another user's), `idempotency_conflict`, `timeout`.
        JournalFull: the database is away, and memory is full or (in strict mode) not enough.
        StorageDown: over the budget, the database is away, and only there may the idempotency key be known.
    """
    with runtime.spans.span("accept task", new.trace_parent) as span:
        if span is None:
            return await _accept(runtime, new)
        accepted = await _accept(runtime, evolve(new, trace_parent=tracing.traceparent(span)))
        span.set_attribute("elwift.task.id", str(accepted.task.id))
        span.set_attribute("elwift.durability", accepted.durability.value)
        return accepted


async def _accept(runtime: Runtime, new: NewTask) -> Accepted:
    began = perf_counter()
    fitted = runtime.models.fit(new.model, new.input)
    birth = birth_of(new, fitted, queue_of(runtime, fitted.model))
    if new.id is not None and new.id in runtime.stash:
        raise await _exists(runtime, new)
    try:
        await runtime.budgets.check(new.user)
    except UserError:
        if (made := await _made_before(runtime, new)) is None:
            raise
        return await _same(runtime, made, birth)
    estimate = runtime.queues.admit(birth.queue, new.user, birth.priority, _typical(fitted))
    entry = decide.create(new.id or new_id(), birth, runtime.clock(), home=runtime.homes.node)
    live = delivery.unborn(runtime, entry)
    runtime.stash.offer(live)
    runtime.budgets.hold(entry.task.id, new.user, fitted.model, fitted.input)
    match await _launched(runtime, live):
        case Duplicate(task_id):
            return await _same(runtime, _found(await lookup.find(runtime, task_id)), birth)
        case Refused("unavailable"):
            raise JournalFull(RETRY_AFTER)
        case Refused("poison"):
            raise UserError("invalid_input", "The input cannot be stored.")
        case Refused():
            raise await _exists(runtime, new)
        case Committed():
            durability = Durability.DURABLE
        case Buffered():
            durability = Durability.MEMORY
    telemetry.accepted(birth.model, durability).inc()
    telemetry.ACCEPT_DURATION.observe(perf_counter() - began)
    return _acknowledged(entry.task, durability, estimate)


def queue_of(runtime: Runtime, model: Model) -> str:
    """The queue that the model's settings name, or that of its back end, as far as they are here."""
    wished, own = model.settings.get("queue"), f"{model.provider}-{model.slug}"
    return next((name for name in (wished, own) if isinstance(name, str) and runtime.queues.has(name)), "default")


async def _launched(runtime: Runtime, live: Live) -> Receipt:
    """The journal's word; a task that does not come into being holds nothing of the budget."""
    try:
        receipt = await lookup.launch(runtime, live)
    except BaseException:
        runtime.budgets.release(live.task.id)
        raise
    if not isinstance(receipt, Committed | Buffered):
        runtime.budgets.release(live.task.id)
    return receipt


def birth_of(new: NewTask, fitted: Fitted, queue: str) -> Created:
    """Everything that a task is born with; what the wish leaves open, its model's settings say."""
    model, settings = fitted.model, fitted.model.settings
    return Created(
        user=new.user,
        model_id=model.id,
        model=model.name,
        provider=model.provider,
        input=fitted.input,
        priority=settings.get("priority", DEFAULT_PRIORITY) if new.priority is None else new.priority,
        max_attempts=settings.get("max_attempts", DEFAULT_ATTEMPTS),
        queue=queue,
        job_id=new_id(),
        idempotency_key=new.idempotency_key,
        trace_parent=new.trace_parent,
    )


def _typical(fitted: Fitted) -> float | None:
    """How long an attempt takes, in seconds, as far as the model's settings say (`typical_seconds`)."""
    seconds = fitted.model.settings.get("typical_seconds")
    return float(seconds) if isinstance(seconds, int | float) and seconds > 0 else None


def _acknowledged(task: TaskState, durability: Durability, estimate: Estimate) -> Accepted:
    return Accepted(task, durability, queue_position=estimate.position, estimated_wait_seconds=estimate.wait_seconds)


async def _exists(runtime: Runtime, new: NewTask) -> UserError:
    """The refusal of an id that is taken; whose it is, only its user may know."""
    assert new.id is not None
    task = await lookup.find(runtime, new.id)
    if task is not None and task.user != new.user:
        return UserError("unauthorized", "This id is not yours to use.")
    return UserError("task_exists", "There is a task of this id already.")


async def _made_before(runtime: Runtime, new: NewTask) -> TaskState | None:
    """The task of the idempotency key: to answer it again costs nothing. Raises StorageDown."""
    if new.idempotency_key is None:
        return None
    task_id = await runtime.store.by_idempotency_key(new.user, new.idempotency_key)
    return None if task_id is None else await lookup.find(runtime, task_id)


def _found(task: TaskState | None) -> TaskState:
    if task is None:
        raise UserError("conflict", "A task with this idempotency key was removed. Use another key.")
    return task


async def _same(runtime: Runtime, task: TaskState, birth: Created) -> Accepted:
    """The task that the idempotency key has made before, if it was the same wish."""
    if (task.model, task.input) != (birth.model, birth.input):
        raise UserError("idempotency_conflict", "This idempotency key was used for another request.")
    return Accepted(task, lookup.durability(runtime, task.id), created=False)
