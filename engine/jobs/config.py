"""What can be set on a queue and on the queue's clockwork. Data only."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen, validators

from engine.jobs import backoff
from engine.jobs.backoff import Backoff
from engine.jobs.cron import Schedule
from engine.jobs.ports import Rate, Retention

_positive = validators.gt(0.0)
_optional_positive = validators.optional(_positive)
_some = validators.optional(validators.gt(0))


@frozen
class QueueConfig:
    """One queue. `limit` jobs run at once on each node, `global_limit` over all nodes; times are in seconds.

    `timeout` ends an attempt that runs longer. Admission refuses what would wait in line behind `max_waiting` jobs or
    for longer than `max_wait`, and a user who already has `user_quota` unfinished jobs.
    While the database is away, `global_limit` and `rate` bind each node on its own.
    """

    limit: int = field(default=10, validator=validators.ge(0))
    global_limit: int | None = field(default=None, validator=_some)
    rate: Rate | None = None
    backoff: Backoff = backoff.DEFAULT
    timeout: float | None = field(default=None, validator=_optional_positive)
    max_waiting: int | None = field(default=None, validator=_some)
    max_wait: float | None = field(default=None, validator=_optional_positive)
    user_quota: int | None = field(default=None, validator=_some)
    typical_seconds: float = field(default=5.0, validator=_positive)
    """A guess at how long a job runs, for estimates made before the first one has ended."""

    @property
    def shared(self) -> bool:
        """Whether a limit spans nodes, so that every claim must be made in the database."""
        return self.global_limit is not None or self.rate is not None


@frozen
class Timing:
    """The clockwork, in seconds. A heartbeat comes three times in a lease, so two may fail before a rescue.

    `drain`: how long running jobs may go on at shutdown before they are stopped and given back.
    """

    lease: float = 30.0
    heartbeat: float = 10.0
    rescue: float = 5.0
    stage: float = 1.0
    poll: float = 5.0
    count: float = 2.0
    prune: float = 30.0
    ping: float = 15.0
    drain: float = 10.0

    @classmethod
    def of_lease(cls, lease: float, drain: float) -> Timing:
        """The usual figures, quickened with a shorter lease."""
        return cls(lease=lease, heartbeat=lease / 3, rescue=lease / 6, drain=drain)

    def __attrs_post_init__(self) -> None:
        if self.heartbeat > self.lease / 2:
            raise ValueError(f"a heartbeat every {self.heartbeat} s is not well inside a lease of {self.lease} s")


@frozen
class Cron:
    """A job made at each time of a schedule, once for all nodes; none while the one before is unfinished."""

    name: str
    schedule: Schedule
    worker: str
    args: dict[str, Any] = field(factory=dict)
    queue: str = "housekeeping"
    max_attempts: int = 3


__all__ = ["Cron", "QueueConfig", "Rate", "Retention", "Timing"]
