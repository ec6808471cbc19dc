"""The tasks of a user over HTTP: create, read, list, cancel, retry, and the log.

Thin: each handler checks who asks, calls the engine's intake or the store, and shapes the answer. A task of another
user is answered exactly as one that does not exist, so that ids tell nothing.
"""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

import msgspec
from attrs import frozen

from engine.errors import Problem, UserError
from engine.ports import StorageDown
from engine.tasks import intake, lookup
from engine.tasks.events import Actor
from engine.tasks.messages import Accepted, NewTask
from engine.tasks.state import Status, TaskState
from web.http.body import bounded_int, decode, one_of
from web.http.exchange import Answer, Ask, json
from web.http.house import House
from web.views import log_view, task_view


class CreateTask(msgspec.Struct, forbid_unknown_fields=True):
    """What `POST /api/tasks` takes. `prompt` is a short way to write `input.prompt`."""

    prompt: str | None = None
    model: str | None = None
    input: dict[str, Any] | None = None
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] | None = None
    idempotency_key: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] | None = None
    user_id: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] | None = None


_create_task = msgspec.json.Decoder(CreateTask)
_STATUSES = {status.value: status for status in Status}
_UNKNOWN = "There is no task with this id. Check the id, and that it was made with this token's user."


async def create(house: House, ask: Ask) -> Answer:
    """202 with the task's id; the work goes on behind it. The same idempotency key answers the same task."""
    if house.draining():
        raise UserError("draining", "The server is restarting. Send the request again in a moment.", retry_after=2.0)
    wish = decode(ask.headers.get("content-type"), ask.body, _create_task)
    accepted = await intake.accept(house.runtime, new_task(wish, ask))
    return acknowledgement(accepted)


def new_task(wish: CreateTask, ask: Ask) -> NewTask:
    """The engine's wish from the client's. Raises UserError `forbidden` or `invalid_request`."""
    given = dict(wish.input or {})
    if wish.prompt is not None:
        given["prompt"] = wish.prompt
    return NewTask(
        user=owner(ask, wish.user_id),
        input=given,
        model=wish.model,
        priority=wish.priority,
        idempotency_key=idempotency_key(wish.idempotency_key, ask.headers.get("idempotency-key")),
        trace_parent=ask.trace_parent,
    )


def owner(ask: Ask, named: str | None) -> str:
    """Whose task it will be: the caller's own, or for an operator whom they name. Raises UserError `forbidden`."""
    if named is None or named == ask.identity.user:
        return ask.identity.user
    if ask.identity.operator:
        return named
    raise UserError("forbidden", "user_id is another user than the token's. Leave it out, or use that user's token.")


def idempotency_key(in_body: str | None, header: str | None) -> str | None:
    """One key from the two places; the header may be quoted, as the draft standard has it. Raises UserError."""
    if header is None:
        return in_body
    key = header[1:-1] if len(header) > 1 and header[0] == header[-1] == '"' else header
    if not 1 <= len(key) <= 255:
        raise UserError("invalid_request", "Idempotency-Key must have 1 to 255 characters.")
    if in_body not in (None, key):
        message = "Idempotency-Key and idempotency_key differ. Send one of them."
        raise UserError("invalid_request", message, details=(Problem(message, "/idempotency_key"),))
    return key


def acknowledgement(accepted: Accepted) -> Answer:
    """The 202. `durability` says whether the task is in the database yet or still in memory alone."""
    task_id = str(accepted.task.id)
    body: dict[str, Any] = {
        "task_id": task_id,
        "status": accepted.task.status.value,
        "durability": accepted.durability.value,
        "topic": f"task:{task_id}",
    }
    if accepted.queue_position is not None:
        body["queue_position"] = accepted.queue_position
    if accepted.estimated_wait_seconds is not None:
        body["estimated_wait_seconds"] = accepted.estimated_wait_seconds
    location = ("Location", f"/api/tasks/{task_id}")
    return json(body, 202, (location,) if accepted.created else (location, ("Idempotency-Replayed", "true")))


async def show(house: House, ask: Ask) -> Answer:
    """The task: from memory while it lives, from the database after."""
    return await shown(house, await own_task(house, ask))


async def shown(house: House, task: TaskState, status: int = 200) -> Answer:
    """A task, and whether a crash could still undo what is said of it."""
    return json(await seen(house, task) | {"durability": lookup.durability(house.runtime, task.id).value}, status)


async def seen(house: House, task: TaskState) -> dict[str, Any]:
    """The task's view, with links that work now."""
    runtime = house.runtime
    return task_view(await runtime.outputs.links.task(task, runtime.clock()))


async def own_task(house: House, ask: Ask) -> TaskState:
    """The task of the path, if the caller may see it. Raises UserError `unknown_task`."""
    task = await lookup.find(house.runtime, task_id(ask))
    if task is None or not may_see(ask, task):
        raise UserError("unknown_task", _UNKNOWN)
    return task


def may_see(ask: Ask, task: TaskState) -> bool:
    """Its own user may, and operators."""
    return task.user == ask.identity.user or ask.identity.operator


def task_id(ask: Ask) -> UUID:
    """The id of the path. What is no UUID is no task's id. Raises UserError `unknown_task`."""
    try:
        return UUID(ask.args["task_id"])
    except ValueError:
        raise UserError("unknown_task", _UNKNOWN) from None


async def index(house: House, ask: Ask) -> Answer:
    """A page of the user's history, newest first; what still runs is shown as it is now.

    While the database is away the first page is what is in memory, and says so: `partial` is true.
    """
    query = ask.query
    wanted = Wanted(
        owner(ask, query.get("user")),
        one_of(query.get("status"), "status", _STATUSES),
        query.get("model"),
        bounded_int(query.get("limit"), "limit", 50, 1, house.limits.page),
    )
    cursor = query.get("cursor")
    try:
        page = await house.runtime.store.history(
            wanted.user, status=wanted.status, model=wanted.model, cursor=cursor, limit=wanted.limit
        )
    except StorageDown:
        if cursor is not None:
            raise
        return json(
            {"tasks": [await seen(house, each) for each in remembered(house, wanted)], "cursor": None, "partial": True}
        )
    tasks = [await as_now(house, task) for task in page.tasks]
    return json({"tasks": [await seen(house, task) for task in tasks], "cursor": page.cursor, "partial": False})


@frozen
class Wanted:
    """Which tasks a list is to have."""

    user: str
    status: Status | None
    model: str | None
    limit: int

    def fits(self, task: TaskState) -> bool:
        return task.user == self.user and self.status in (None, task.status) and self.model in (None, task.model)


def remembered(house: House, wanted: Wanted) -> list[TaskState]:
    """The live tasks that are wanted, newest first."""
    found = [task for task in house.runtime.stash if wanted.fits(task)]
    return sorted(found, key=lambda task: task.created_at, reverse=True)[: wanted.limit]


async def as_now(house: House, row: TaskState) -> TaskState:
    """A row of history, or the state in memory when the task is alive: rows know nothing of progress and text."""
    return await lookup.find(house.runtime, row.id) or row if row.id in house.runtime.stash else row


async def cancel(house: House, ask: Ask) -> Answer:
    """Stops the task and the provider's work; asking twice, or after the end, changes nothing."""
    task = await own_task(house, ask)
    return await shown(house, await lookup.cancel(house.runtime, task.id, actor(ask, task)))


async def retry(house: House, ask: Ask) -> Answer:
    """A new attempt for a failed task."""
    task = await own_task(house, ask)
    return await shown(house, await lookup.retry(house.runtime, task.id, actor(ask, task)), 202)


def actor(ask: Ask, task: TaskState) -> Actor:
    """Who the log names: the user for their own tasks, else the operator."""
    return Actor.USER if task.user == ask.identity.user else Actor.OPERATOR


async def events(house: House, ask: Ask) -> Answer:
    """The task's log after `after`, oldest first; `has_more` says that another page follows."""
    task = await own_task(house, ask)
    after = bounded_int(ask.query.get("after"), "after", 0, 0, 999_999_999)
    limit = bounded_int(ask.query.get("limit"), "limit", 500, 1, 500)
    if after >= task.seq:
        return json({"events": [], "has_more": False})
    seen = await lookup.view(house.runtime, task.id, after)
    if seen is None or seen.reset:  # the older part is in the database alone
        raise StorageDown
    page = seen.events[:limit]
    rows = [log_view(event, seen.durability(event.seq)) for event in page]
    return json({"events": rows, "has_more": page != seen.events or seen.has_more})
