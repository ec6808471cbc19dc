"""What TaskServers, workers and the doors share: the parts of a running node, by their ports. Built once, at the top.

Immutable; holds nothing of its own. The processes behind the parts live in the supervision tree.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from attrs import field, frozen

from engine.models import Models
from engine.otp import Registry
from engine.outputs import Outputs
from engine.ports import ArtifactStore, Journal, Snapshots, TaskStore, UserStore
from engine.providers.protocol import Provider
from engine.tasks.budget import Budgets
from engine.tasks.homes import Alone, Homes
from engine.tasks.relay import Relay
from engine.tasks.stash import Stash
from engine.tracing import Spans

TASKS = "tasks"
"""The name of the DynamicSupervisor under which the TaskServers stand."""


def unix_time() -> float:
    """Unix seconds, in microseconds' steps: what PostgreSQL keeps, so that what is read back is what was written."""
    return round(time.time(), 6)


class Estimate(Protocol):
    """What a queue expects of one more job."""

    @property
    def position(self) -> int: ...

    @property
    def wait_seconds(self) -> float: ...


class Admission(Protocol):
    """The part of the queues that a new task meets."""

    def has(self, queue: str) -> bool:
        """Whether there is such a queue here."""
        ...

    def admit(self, queue: str, user: str | None, priority: int = ..., typical: float | None = ...) -> Estimate:
        """Raises UserError (`over_capacity`, `over_quota`) with `retry_after`."""
        ...


@frozen(eq=False)
class Runtime:
    """`names` is unique: a TaskServer stands under ("task", id). `channels` is not: subscribers found again after a
    crash stand under ("channel", id), those of a user under ("user", external id). `clock` gives Unix seconds."""

    names: Registry
    channels: Registry
    journal: Journal
    store: TaskStore
    snapshots: Snapshots
    queues: Admission
    models: Models
    users: UserStore
    artifacts: ArtifactStore
    providers: Mapping[str, Provider]
    outputs: Outputs
    stash: Stash = field(factory=Stash)
    budgets: Budgets = field(factory=Budgets)
    homes: Homes = field(factory=Alone)
    relay: Relay = field()
    clock: Callable[[], float] = unix_time
    spans: Spans = field(factory=Spans)

    @relay.default
    def _relay(self) -> Relay:
        return Relay(self.homes, self.names, self.channels, self.stash, self.store)
