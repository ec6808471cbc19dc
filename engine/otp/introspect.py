"""Looking at a running system: the tree, and one process in detail. Reading changes nothing and asks nobody.

Everything is read from counters that the engine keeps anyway; no message is sent, so a busy process is seen too.
"""

from __future__ import annotations

import time
from itertools import islice
from typing import Any

import trio
from attrs import frozen

from engine.otp.brood import Brood
from engine.otp.children import Child
from engine.otp.context import current_node
from engine.otp.messages import Call, Cast
from engine.otp.pid import Address, Pid
from engine.otp.process import Process
from engine.otp.reports import summary
from engine.otp.slot import describe
from engine.otp.supervisor import Family

PAGE = 100


@frozen
class ProcessInfo:
    """One process. `started_at` is Unix time; `busy` is seconds spent in callbacks; `stack` is where it stands; of
    `links` the first hundred are shown."""

    pid: Pid
    kind: str
    names: tuple[Any, ...]
    status: str
    parent: Pid
    state: str
    mailbox: int
    mailbox_peak: int
    refused: int
    handled: int
    busy: float
    started_at: float
    last_message: str
    links: tuple[Pid, ...]
    monitors: tuple[Pid, ...]
    monitored_by: int
    trap_exit: bool
    stack: str


@frozen
class Branch:
    """One process of the tree, or a child that is not running: `restarting`, `done` (it ended normally, by itself) or
    `down`. `count` is how many children it has; of a dynamic supervisor
    `children` are the first page only. `started_at` is Unix time in seconds."""

    id: Any
    pid: Pid | None
    kind: str
    status: str
    strategy: str | None = None
    restarts: int = 0
    mailbox: int = 0
    started_at: float | None = None
    names: tuple[Any, ...] = ()
    count: int = 0
    children: tuple[Branch, ...] = ()


@frozen
class Overview:
    """How many processes there are; `zombies` are dead to everybody but trio, each with its kind."""

    live: int
    asleep: int
    zombies: tuple[tuple[Pid, str], ...]


def overview() -> Overview:
    """The node in numbers that cost nothing to read."""
    node = current_node()
    zombies = tuple((pid, process.blueprint.kind) for pid, process in node.zombies.items())
    return Overview(len(node.table), len(node.dormitory), zombies)


def info(address: Address) -> ProcessInfo | None:
    """A process in detail; None when there is none."""
    process = current_node().peek(address)
    return None if process is None else _info(process)


def _info(process: Process) -> ProcessInfo:
    last = process.last
    content = last.message if isinstance(last, Cast) else last.request if isinstance(last, Call) else last
    return ProcessInfo(
        pid=process.pid,
        kind=process.blueprint.kind,
        names=_names(process),
        status=status(process),
        parent=process.blueprint.parent,
        state=summary(process.shown_state()),
        mailbox=len(process.queue or ()),
        mailbox_peak=max(process.peak, len(process.queue or ())),
        refused=process.refused,
        handled=process.handled,
        busy=process.busy,
        started_at=_unix(process.started_at),
        last_message=summary(content, 200),
        links=tuple(islice(process.linked(), PAGE)),
        monitors=tuple((process.monitoring or {}).values()),
        monitored_by=len(process.watchers or ()),
        trap_exit=process.trap_exit,
        stack="" if process.task is None else describe(process.task),
    )


def _names(process: Process) -> tuple[Any, ...]:
    return tuple(via.key for via in process.names)


def _unix(moment: float) -> float:
    """Unix time of a moment on trio's clock."""
    return time.time() - (trio.current_time() - moment)


def status(process: Process) -> str:
    """hibernated, waiting, running, starting or exiting."""
    if process.task is None and process.starter is None:
        return "hibernated"
    if process.exiting is not None:
        return "exiting"
    if process.starter is not None:
        return "starting"
    return "waiting" if process.sleeper is not None else "running"


def tree(supervisor: Address, limit: int = PAGE) -> Branch | None:
    """The tree below a supervisor, with at most `limit` children of each dynamic supervisor."""
    process = current_node().peek(supervisor)
    return None if process is None else _node(process, process.blueprint.kind, 0, limit)


def children(supervisor: Address, offset: int = 0, limit: int = PAGE) -> tuple[Branch, ...]:
    """A page of the children of a supervisor, in start order."""
    process = current_node().peek(supervisor)
    return () if process is None else _children(process, offset, limit, limit)


def _node(process: Process, id: Any, restarts: int, limit: int) -> Branch:
    state = process.state
    return Branch(
        id=id,
        pid=process.pid,
        kind=process.blueprint.kind,
        status=status(process),
        strategy=state.flags.strategy.value if isinstance(state, Family | Brood) else None,
        restarts=restarts,
        mailbox=len(process.queue or ()),
        started_at=_unix(process.started_at),
        names=_names(process),
        count=len(state.children) if isinstance(state, Family | Brood) else 0,
        children=_children(process, 0, limit if isinstance(state, Brood) else None, limit),
    )


def _children(process: Process, offset: int, limit: int | None, deeper: int) -> tuple[Branch, ...]:
    """Children from `offset` on, at most `limit` of them; `deeper` bounds dynamic supervisors below."""
    stop = None if limit is None else offset + limit
    if isinstance(process.state, Family):
        some = islice(process.state.children.values(), offset, stop)
        return tuple(_child(process, child, deeper) for child in some)
    if isinstance(process.state, Brood):
        peeked = (process.node.peek(pid) for pid in islice(process.state.children, offset, stop))
        return tuple(_node(below, below.pid, 0, deeper) for below in peeked if below is not None)
    return ()


def _child(process: Process, child: Child, deeper: int) -> Branch:
    """A child of a supervisor, up or down."""
    below = None if child.pid is None else process.node.peek(child.pid)
    if below is not None:
        return _node(below, child.spec.id, child.restarts, deeper)
    kind = getattr(child.spec.start.subject, "__name__", "?")
    status = "restarting" if child.restarting else "done" if child.done else "down"
    return Branch(child.spec.id, None, kind, status, restarts=child.restarts)
