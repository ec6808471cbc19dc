"""Which promise is broken: pure functions from what was said and what is found to complaints. No I/O.

A log is a list of rows as `GET /api/tasks/<id>/events` has them; a task is the object of `GET /api/tasks/<id>`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from uuid import UUID

from scripts.havoc.record import TERMINAL, Order, Timeline, Wish
from scripts.havoc.sight import Sight

Row = Mapping[str, Any]

MAX_ATTEMPTS = 3
"""Attempts that a task has; those that ended with their server do not count."""
MAX_RESCUES = 50
"""How often a task may lose its server before it is given up; chaos never goes so far with any."""
EXACT = 2e-5
"""Seconds by which a time may differ after its way through the database."""

EVENTS = {
    "created": "task_created", "started": "started", "attempt_failed": "error", "reset": "reset",
    "output_stored": "output_stored", "responded": "llm_response", "requeued": "task_requeued", **TERMINAL,
}  # fmt: skip
"""What each type of the log is called on a channel."""


# --- the log ----------------------------------------------------------------------------------------------


def of_log(status: str, log: list[Row]) -> Iterator[str]:
    """The log is gap-free, begins with the creation, and ends in the one terminal event that the status names."""
    types = [row["type"] for row in log]
    if [row["seq"] for row in log] != list(range(1, len(log) + 1)):
        yield f"the log has gaps: {[row['seq'] for row in log]}"
    if types[:1] != ["created"] or types.count("created") != 1:
        yield f"the log does not begin with one creation: {types}"
    if [kind for kind in types if kind in TERMINAL] != [status] or types[-1:] != [status]:
        yield f"the log of a task that is {status} does not end in one terminal event: {types}"
    if [row["at"] for row in log] != sorted(row["at"] for row in log):
        yield f"the times of the log go back: {[row['at'] for row in log]}"


def of_attempts(log: list[Row]) -> Iterator[str]:
    """Attempts are numbered one by one, each ended before the next, and bounded."""
    numbers = [row["attempt"] for row in log if row["type"] == "started"]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"the attempts are numbered {numbers}"
    running = False
    for row in log:
        if row["type"] == "started" and running:
            yield f"attempt {row['attempt']} began while the one before it ran"
        running = row["type"] == "started" or (running and row["type"] not in ("attempt_failed", "reset"))
    failed = sum(row["type"] == "attempt_failed" for row in log)
    if failed >= MAX_ATTEMPTS:
        yield f"{failed} attempts failed and were tried again; {MAX_ATTEMPTS} may be made"
    if len(numbers) > MAX_ATTEMPTS + MAX_RESCUES:
        yield f"{len(numbers)} attempts were made"


# --- the outcome ------------------------------------------------------------------------------------------


def of_outcome(wish: Wish, task: Row, store_failed: bool) -> Iterator[str]:
    """The task came to what was asked for. `store_failed`: the disk of its outputs was full in its time."""
    status = task["status"]
    if status == "failed":
        if not _may_fail(wish, task["error"]["code"], store_failed):
            yield f"it failed with {task['error']}"
    elif status not in wish.ends:
        yield f"it is {status}; {sorted(wish.ends)} would be right"
    if status != "completed":
        return
    if task["response"] != wish.text:
        yield f"it generated {task['response']!r}, {wish.text!r} would be right"
    found = tuple(output["sha256"] for output in sorted(task["outputs"], key=lambda output: output["index"]))
    if found != wish.outputs:
        yield f"its outputs are {found}, {wish.outputs} would be right"


def _may_fail(wish: Wish, code: str, store_failed: bool) -> bool:
    match code:
        case "store_failed":
            return store_failed and bool(wish.outputs)
        case "cancelled":  # ordered, and the prediction was stopped, before a crash undid what was in memory only
            return "cancelled" in wish.ends and bool(wish.outputs)
        case _:
            return "failed" in wish.ends and code == wish.failure


# --- what was said ----------------------------------------------------------------------------------------


def of_acks(order: Order, found: Iterable[UUID], timeline: Timeline) -> Iterator[str]:
    """`found`: those of the order's ids that are there in the end. An id that is another's alias may be gone: an older
    key that was used again in an outage (D8)."""
    there = list(found)
    if len(there) > 1:
        yield f"the key {order.wish.key} made {len(there)} tasks: {there}"
    for ack in order.acks:
        lost = ack.task_id not in there
        if lost and ack.said.durable:
            yield f"task {ack.task_id} was acknowledged as durable and is gone"
        elif lost and not there and timeline.holds(ack.said):
            yield f"task {ack.task_id} was acknowledged in memory, nothing that may lose it came, and it is gone"


def of_cancellation(order: Order, status: str, timeline: Timeline) -> Iterator[str]:
    """Who was told that the task is cancelled finds it cancelled."""
    if status != "cancelled" and any(timeline.holds(said) for said in order.cancelled):
        yield f"its cancellation was confirmed, and it is {status}"


def of_sight(sight: Sight, status: str, log: list[Row], timeline: Timeline) -> Iterator[str]:
    """Every event that a watcher was told stands in the log, as it was told, unless a crash may have undone it."""
    rows = {row["seq"]: row for row in log}
    for told in sight.told.values():
        row = rows.get(told.seq)
        if row is not None and _tells(told.event, told.payload, row):
            continue
        if sight.over or timeline.holds(told.said):
            yield f"a watcher was told event {told.seq} as {told.event} {dict(told.payload)}; the log has {row}"
    if sight.over and (sight.seen, sight.status) != (len(log), status):
        yield f"a watcher saw {sight.status} at {sight.seen}; the log has {status} at {len(log)}"


def _tells(event: str, payload: Row, row: Row) -> bool:
    """Whether an event on a channel tells this row of the log."""
    if event != EVENTS[row["type"]] or abs(payload["at"] - row["at"]) > EXACT:
        return False
    if payload.get("attempt", row["attempt"]) != row["attempt"]:
        return False
    said = row["payload"]
    match row["type"]:
        case "responded":
            return bool(payload["text"] == said["text"])
        case "output_stored":
            return bool(payload["output"]["sha256"] == said["output"]["sha256"])
        case "failed" | "attempt_failed":
            return bool(payload["code"] == said["code"])
    return True


def of_vanished(sight: Sight, timeline: Timeline) -> Iterator[str]:
    """What a watcher was told of a task that is not there in the end."""
    for told in sight.told.values():
        if timeline.holds(told.said):
            yield f"a watcher was told event {told.seq} ({told.event}), and the task is gone"


# --- refusals ---------------------------------------------------------------------------------------------


def fair(status: int, code: str, repeated: bool, under_way: str) -> bool:
    """Whether a refusal of a new task is right. `under_way`: the fault of the moment; `repeated`: the key was used."""
    match status, code:
        case 503, "draining":
            return under_way in ("restart_in_order", "kill_server_in_shutdown")
        case 503, "storage_down":
            return repeated  # what the key made may be known to the database alone
        case 503, "timeout":
            return under_way.startswith("stop_server")
    return False
