"""Memory watermarks: when the operating system process grows too large, idle processes hibernate, then some end.

`Policy` says who and when, `decide` and `choose` are pure; `MemoryGuard` is the process that looks now and then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import Any

import trio
from attrs import field, frozen

from engine.otp.child_spec import PERMANENT, WORKER, ChildSpec, Start
from engine.otp.context import current_node
from engine.otp.gen_server import GenServer, NoReply, Ok, Timeout
from engine.otp.node import Node
from engine.otp.pid import Pid
from engine.otp.reasons import TIMEOUT, Shutdown
from engine.otp.reports import MemoryReport
from engine.otp.signals import exit


def resident_bytes() -> int:
    """What this operating system process holds in memory, in bytes (Linux; elsewhere 0)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


class Action(Enum):
    HIBERNATE = "hibernated"
    END = "ended"


def _names(kinds: Iterable[str]) -> frozenset[str]:
    return frozenset(kinds)


@frozen
class Policy:
    """What to do at which memory use.

    From `hibernate_at` bytes idle processes of `kinds` hibernate; from `end_at` bytes those older than `min_age`
    seconds are ended with Shutdown("memory"), oldest first, `batch` at each look; one look every `interval` seconds.
    `kinds` are the names of server classes.
    """

    hibernate_at: int
    end_at: int
    kinds: frozenset[str] = field(converter=_names)
    min_age: float = 60.0
    batch: int = 1000
    interval: float = 5.0
    measure: Callable[[], int] = resident_bytes


@frozen
class Candidate:
    """A process as far as the choice goes; `age` in seconds."""

    pid: Pid
    kind: str
    age: float
    idle: bool
    asleep: bool


def decide(policy: Policy, used: int) -> Action | None:
    """What the memory use calls for."""
    if used >= policy.end_at:
        return Action.END
    return Action.HIBERNATE if used >= policy.hibernate_at else None


def choose(policy: Policy, action: Action, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Whom it meets: the oldest of the kinds named; only who is idle and awake can hibernate."""
    fitting = [c for c in candidates if c.kind in policy.kinds and _fits(policy, action, c)]
    return sorted(fitting, key=lambda c: c.age, reverse=True)[: policy.batch]


def _fits(policy: Policy, action: Action, candidate: Candidate) -> bool:
    if action is Action.HIBERNATE:
        return candidate.idle and not candidate.asleep
    return candidate.age >= policy.min_age


class MemoryGuard(GenServer[Policy]):
    """Looks at the memory use now and then, and acts on it with a report."""

    @classmethod
    def spec(cls, policy: Policy, id: Any = "memory guard") -> ChildSpec:
        return ChildSpec(id, Start.server(cls, policy), PERMANENT, None, WORKER)

    async def init(self, policy: Policy) -> Ok[Policy]:
        return Ok(policy, Timeout(policy.interval))

    async def handle_info(self, message: Any, state: Policy) -> NoReply[Policy]:
        if message is not TIMEOUT:
            await super().handle_info(message, state)
        else:
            _look(current_node(), state)
        return NoReply(state, Timeout(state.interval))


def _look(node: Node, policy: Policy) -> None:
    used = policy.measure()
    action = decide(policy, used)
    if action is None:
        return
    met = choose(policy, action, _candidates(node, policy, action))
    for candidate in met:
        _act(node, action, candidate.pid)
    for kind in sorted({candidate.kind for candidate in met}):
        count = sum(candidate.kind == kind for candidate in met)
        limit = policy.end_at if action is Action.END else policy.hibernate_at
        node.report(MemoryReport(used, limit, action.value, kind, count))


def _candidates(node: Node, policy: Policy, action: Action) -> Iterable[Candidate]:
    now = trio.current_time()
    for process in node.table.values():
        if process.blueprint.kind in policy.kinds:
            idle = process.sleeper is not None and not process.queue
            yield Candidate(process.pid, process.blueprint.kind, now - process.started_at, idle, asleep=False)
    if action is Action.END:
        for pid, kind, started_at in node.dormitory.ages(policy.kinds):
            yield Candidate(pid, kind, now - started_at, idle=True, asleep=True)


def _act(node: Node, action: Action, pid: Pid) -> None:
    if action is Action.END:
        exit(pid, Shutdown("memory"))
    elif pid in node.table:
        node.table[pid].hibernate()
