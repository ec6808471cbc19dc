"""The supervision tree and one process, as JSON. Pure, over what `engine.otp.introspect` reads.

Nothing of a task's input or output is in it: of states and messages only the names of their types are told.
"""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

from engine.otp import Pid, introspect
from engine.otp.introspect import Branch, ProcessInfo
from engine.runtime import Runtime
from engine.tasks.stash import Live, Stash

_PID = re.compile(r"<?(?:0\.)?(\d{1,18})>?")


def read_pid(text: str) -> Pid | None:
    """A pid from how it is shown: `<0.42>`, `0.42` or `42`."""
    found = _PID.fullmatch(text)
    return Pid(found[1]) if found else None


def node_view(node: Branch, stash: Stash) -> dict[str, Any]:
    """A node and what stands below it. `counts.active` may exceed the children shown: `paged` says so."""
    view: dict[str, Any] = {
        "id": label(node),
        "pid": None if node.pid is None else str(node.pid),
        "kind": kind(node),
        "behaviour": node.kind,
        "strategy": node.strategy,
        "status": node.status,
        "restarts": max(node.restarts, crashes(node, stash)),
        "mailbox": node.mailbox,
        "started_at": node.started_at,
    }
    if node.strategy is not None:
        view["counts"] = {"active": node.count, "shown": len(node.children)}
        view["paged"] = kind(node) == "dynamic_supervisor"
        view["children"] = [node_view(child, stash) for child in node.children]
    return view


def kind(node: Branch) -> str:
    """supervisor, dynamic_supervisor or worker."""
    if node.strategy is None:
        return "worker"
    return "dynamic_supervisor" if "Dynamic" in node.kind else "supervisor"


def crashes(node: Branch, stash: Stash) -> int:
    """How often a TaskServer crashed lately: the task's own memory of it, since a dynamic child has no record."""
    task_id = task_of(node.names)
    live = None if task_id is None else stash.get(task_id)
    return 0 if live is None else len(live.crashes)


def label(node: Branch) -> str:
    """The child's id; for one that has none of its own, what it is registered as, else what it is."""
    if isinstance(node.id, Pid) or node.id == node.kind:
        return spoken(node.names[0]) if node.names else f"{node.kind} {node.pid}"
    return spoken(node.id)


def spoken(name: object) -> str:
    """A registered name as text: ("task", id) is `task:id`."""
    return ":".join(map(str, name)) if isinstance(name, tuple) else str(name)


def process_view(info: ProcessInfo, runtime: Runtime) -> dict[str, Any]:
    """One process. Times in seconds; `busy_seconds` is the time spent in its callbacks."""
    task_id = task_of(info.names)
    view = {
        "pid": str(info.pid),
        "names": [spoken(name) for name in info.names],
        "behaviour": info.kind,
        "status": info.status,
        "parent": None if info.parent is None else str(info.parent),
        "mailbox": info.mailbox,
        "mailbox_peak": info.mailbox_peak,
        "refused": info.refused,
        "handled": info.handled,
        "busy_seconds": round(info.busy, 6),
        "started_at": info.started_at,
        "last_message": info.last_message.partition("(")[0],
        "links": [str(pid) for pid in info.links],
        "monitors": [str(pid) for pid in info.monitors],
        "monitored_by": info.monitored_by,
        "trap_exit": info.trap_exit,
        "stack": info.stack,
        "task_id": None if task_id is None else str(task_id),
        "task": None,
        "killable": killable(info),
    }
    live = None if task_id is None else runtime.stash.get(task_id)
    return view if live is None else {**view, "task": task_summary(live)}


def task_summary(live: Live) -> dict[str, Any]:
    """What a TaskServer holds, without what the user gave or got."""
    task = live.task
    return {
        "status": task.status.value,
        "model": task.model,
        "user": task.user,
        "attempt": task.attempt,
        "progress": task.progress,
        "seq": task.seq,
        "unsaved_events": len(live.outbox.unsaved),
        "subscribers": len(live.subscribers),
        "crashes": len(live.crashes),
    }


def task_of(names: tuple[object, ...]) -> UUID | None:
    """The task whose TaskServer has these names."""
    for name in names:
        match name:
            case ("task", UUID() as task_id):
                return task_id
    return None


def killable(info: ProcessInfo) -> bool:
    """Supervisors are not: what stands below them would go with them."""
    node = introspect.tree(info.pid, 0)
    return node is not None and node.strategy is None
