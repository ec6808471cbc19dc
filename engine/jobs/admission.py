"""Who may still come in, and how long they will wait. Pure: counts in, an estimate or a refusal out.

The line is known from the database's counts (every two seconds) and from what this node saw since. A newcomer's
place follows from fairness: before them go all jobs of a more urgent priority, and of each other user at most as many
as the newcomer's own waiting jobs plus one.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable

from attrs import define, field, frozen

from engine.errors import UserError
from engine.jobs.config import QueueConfig
from engine.jobs.fairness import ahead
from engine.jobs.ports import Waiting

_WINDOW = 150
"""The mean service time is that of about so many jobs, or of twice as many as there are slots."""

_GAPS = 50
"""The latest so many changes of hands decide how long one takes."""

_STARTED = 4
"""Rounds of the slots after which it does not matter any more that the short jobs were the first to end."""

_OUT_OF_DATE = 4.0
"""When what runs has run for so many times the mean, jobs have become longer."""

_LONGEST_ADVICE = 300.0
"""Seconds; no Retry-After asks for more."""

_ADMISSION_HOLDS = 10.0
"""Seconds after which a job that was let in and got no row is no longer reckoned with."""

_MOST_STEPS = 50_000
"""Counts come every two seconds; while the database is away no more than so many steps are remembered."""


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

    def add_crowd(self, users: int, jobs: int) -> None:
        """So many users that they are not named, taken to wait with equally many jobs each."""
        self.total += jobs
        waiting = min(users, jobs)
        if waiting:
            self._count(round(jobs / waiting), waiting)

    def _count(self, size: int, change: int) -> None:
        if size:
            self.sizes[size] += change
            if not self.sizes[size]:
                del self.sizes[size]

    def ahead(self, user: str) -> int:
        mine = self.users.get(user, 0)
        others = ((size, users - (size == mine)) for size, users in self.sizes.items())
        return ahead(mine, others)


Key = tuple[int, str]
"""Priority and user."""


@frozen
class _Step:
    """Something that happened here after the last counts were taken, and what it did to them."""

    at: float
    key: Key
    waiting: int
    unfinished: int


@define
class Line:
    """Who waits in one queue, over all nodes, and how many unfinished jobs each user has.

    Counts of the database are the truth at the moment they are taken (`reset`); what happened here since is added.
    Who was let in but has no row yet counts at once, so that many who come together see each other.
    """

    clock: Callable[[], float] = time.monotonic
    unfinished: Counter[str] = field(factory=Counter)
    _ranks: defaultdict[int, _Rank] = field(factory=lambda: defaultdict(_Rank))
    _steps: deque[_Step] = field(factory=deque)
    _admitted: defaultdict[Key, deque[float]] = field(factory=lambda: defaultdict(deque))

    @property
    def total(self) -> int:
        return sum(rank.total for rank in self._ranks.values())

    def ahead(self, priority: int, user: str | None) -> int:
        """How many jobs start before a new one."""
        urgent = sum(rank.total for level, rank in self._ranks.items() if level < priority)
        return urgent + self._ranks[priority].ahead(user or "")

    def reset(self, waiting: Iterable[Waiting], taken_at: float) -> None:
        """Takes the database's counts, which it was asked for at `taken_at`, for the truth of that time."""
        self._ranks.clear()
        self.unfinished.clear()
        for entry in waiting:
            if entry.users > 1:
                self._ranks[entry.priority].add_crowd(entry.users, entry.jobs)
            else:
                self._shift((entry.priority, entry.user), entry.jobs, entry.unfinished)
        while self._steps and self._steps[0].at < taken_at:
            self._steps.popleft()
        for step in self._steps:
            self._shift(step.key, step.waiting, step.unfinished)
        self._recount_admitted()

    def _recount_admitted(self) -> None:
        oldest = self.clock() - _ADMISSION_HOLDS
        for key, times in list(self._admitted.items()):
            while times and times[0] < oldest:
                times.popleft()
            self._shift(key, len(times), len(times))
            if not times:
                del self._admitted[key]

    def admit(self, priority: int, user: str | None) -> None:
        """A job was let in; its row is about to be written."""
        key = (priority, user or "")
        self._admitted[key].append(self.clock())
        self._shift(key, 1, 1)

    def join(self, priority: int, user: str | None) -> None:
        """A job stands in line."""
        self._arrive(priority, user, waiting=1)

    def start_at_once(self, priority: int, user: str | None) -> None:
        """A job got a slot without standing in line."""
        self._arrive(priority, user, waiting=0)

    def _arrive(self, priority: int, user: str | None, waiting: int) -> None:
        self.refuse(priority, user)
        self._step(priority, user, waiting, 1)

    def refuse(self, priority: int, user: str | None) -> None:
        """A job that was let in will have no row, or has it now."""
        key = (priority, user or "")
        if times := self._admitted.get(key):
            times.popleft()
            self._shift(key, -1, -1)

    def leave(self, priority: int, user: str | None) -> None:
        """A job left the line for a slot."""
        self._step(priority, user, -1, 0)

    def end(self, priority: int, user: str | None) -> None:
        """A job left its slot."""
        self._step(priority, user, 0, -1)

    def _step(self, priority: int, user: str | None, waiting: int, unfinished: int) -> None:
        key = (priority, user or "")
        self._steps.append(_Step(self.clock(), key, waiting, unfinished))
        if len(self._steps) > _MOST_STEPS:
            self._steps.popleft()
        self._shift(key, waiting, unfinished)

    def _shift(self, key: Key, waiting: int, unfinished: int) -> None:
        priority, user = key
        if waiting:
            self._ranks[priority].add(user, waiting)
        if unfinished:
            self.unfinished[user] = max(0, self.unfinished[user] + unfinished)


@define
class Pace:
    """How long jobs hold their slots, in seconds: the mean of the latest ones, and a guess before the first has ended.

    The first to end are the short ones. So, at first, what runs counts with its age: the estimator is the total time
    on test over the number that ended (Epstein, Sobel, "Life Testing", 1953).
    """

    guess: float
    slots: int = 1
    _seconds: float = 0.0
    _jobs: float = 0.0
    _ended: int = 0
    _gap: float = 0.0

    def observe_gap(self, seconds: float) -> None:
        """A slot was empty for so long although somebody waited: until the next job was claimed and started."""
        self._gap += (seconds - self._gap) / _GAPS

    def observe(self, seconds: float) -> None:
        """A job has left its slot."""
        keep = 1.0 - 1.0 / max(_WINDOW, 2 * self.slots)
        self._seconds = self._seconds * keep + seconds
        self._jobs = self._jobs * keep + 1.0
        self._ended += 1

    def seconds(self, running: int = 0, ages: float = 0.0) -> float:
        """The mean, with the change of hands; `running` jobs have been in their slots for `ages` seconds in all."""
        age = ages / running if running else 0.0
        if not self._ended:
            return max(self.guess, age)
        young = max(0.0, 1.0 - self._ended / (_STARTED * max(self.slots, 1)))
        mean = (self._seconds + young * ages) / self._jobs
        return age if age > _OUT_OF_DATE * mean else mean + self._gap


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
