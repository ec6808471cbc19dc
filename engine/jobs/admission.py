"""Who may still come in, and how long they will wait. Pure: counts in, an estimate or a refusal out.

The line is known from the database's counts (every two seconds) and from what this node saw since. A newcomer's
place follows from fairness: before them go all jobs of a more urgent priority, and of each other user at most as many
as the newcomer's own waiting jobs plus one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from attrs import define, field, frozen

from engine.errors import UserError
from engine.jobs.config import QueueConfig
from engine.jobs.fairness import ahead
from engine.jobs.ports import Waiting

_WEIGHT = 0.1
"""How much one finished job moves the mean service time: the last twenty or so decide."""

_LONGEST_ADVICE = 300.0
"""Seconds; no Retry-After asks for more."""


@frozen
class Estimate:
    """`position`: jobs that will start before this one. `wait_seconds`: until it starts."""

    position: int
    wait_seconds: float


@define
class _Rank:
    """The waiting jobs of one priority: by user, and how many users have how many."""

    users: Counter[str] = field(factory=Counter)
    sizes: Counter[int] = field(factory=Counter)
    total: int = 0

    def add(self, user: str, jobs: int) -> None:
        before = self.users[user]
        after = max(0, before + jobs)
        self.total += after - before
        self._count(before, -1)
        self._count(after, 1)
        if after:
            self.users[user] = after
        else:
            del self.users[user]

    def _count(self, size: int, change: int) -> None:
        if size:
            self.sizes[size] += change
            if not self.sizes[size]:
                del self.sizes[size]

    def ahead(self, user: str) -> int:
        mine = self.users.get(user, 0)
        others = ((size, users - (size == mine)) for size, users in self.sizes.items())
        return ahead(mine, others)


@define
class Line:
    """Who waits in one queue, over all nodes, and how many unfinished jobs each user has."""

    _ranks: defaultdict[int, _Rank] = field(factory=lambda: defaultdict(_Rank))
    unfinished: Counter[str] = field(factory=Counter)

    @property
    def total(self) -> int:
        return sum(rank.total for rank in self._ranks.values())

    def reset(self, waiting: Iterable[Waiting]) -> None:
        """Takes the database's counts for the truth."""
        self._ranks.clear()
        self.unfinished.clear()
        for entry in waiting:
            self._ranks[entry.priority].add(entry.user, entry.jobs)
            self.unfinished[entry.user] += entry.unfinished

    def join(self, priority: int, user: str | None) -> None:
        self._ranks[priority].add(user or "", 1)

    def leave(self, priority: int, user: str | None) -> None:
        self._ranks[priority].add(user or "", -1)

    def ended(self, user: str | None) -> None:
        """One unfinished job less."""
        if self.unfinished[user or ""] > 1:
            self.unfinished[user or ""] -= 1
        else:
            del self.unfinished[user or ""]

    def ahead(self, priority: int, user: str | None) -> int:
        """How many jobs start before a new one."""
        urgent = sum(rank.total for level, rank in self._ranks.items() if level < priority)
        return urgent + self._ranks[priority].ahead(user or "")


@define
class Pace:
    """How long jobs hold their slots, in seconds: an exponentially weighted mean, and a guess before the first."""

    guess: float
    _mean: float | None = None

    @property
    def seconds(self) -> float:
        return self.guess if self._mean is None else self._mean

    def observe(self, seconds: float) -> None:
        self._mean = seconds if self._mean is None else self._mean + _WEIGHT * (seconds - self._mean)


def wait(before: int, free: int, slots: int, seconds: float, config: QueueConfig) -> float:
    """Seconds until a newcomer starts who has `before` jobs before them.

    With every one of `slots` busy for `seconds` a job, one becomes free each `seconds / slots`, the first after half of
    that on average. A rate limit may let fewer start.
    """
    if before < free:
        return 0.0
    served = (before - free + 0.5) * seconds / max(slots, 1)
    allowed = before / config.rate.per_second if config.rate else 0.0
    return max(served, allowed)


def check(config: QueueConfig, line: Line, user: str | None, estimate: Estimate) -> None:
    """Lets a newcomer in, or raises UserError: `over_quota` for the user, `over_capacity` for the queue."""
    unfinished = line.unfinished.get(user or "", 0)
    if config.user_quota is not None and unfinished >= config.user_quota:
        raise UserError(
            "over_quota",
            f"You have {unfinished} unfinished tasks, as many as you may have at once. Wait until one is done.",
            retry_after=advice(estimate.wait_seconds),
        )
    too_many = config.max_waiting is not None and line.total >= config.max_waiting
    too_long = config.max_wait is not None and estimate.wait_seconds > config.max_wait
    if too_many or too_long:
        raise UserError(
            "over_capacity",
            f"More tasks are waiting than can be done soon ({line.total}). Try again later.",
            retry_after=advice(estimate.wait_seconds - (config.max_wait or 0.0)),
        )


def advice(seconds: float) -> float:
    """A Retry-After within reason."""
    return min(max(1.0, seconds), _LONGEST_ADVICE)
