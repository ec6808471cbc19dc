"""The processes that act as time passes: heartbeat, rescue, staging, pruning, counting, cron, and the poll.

Each is a plain process: a step, a pause, again. A step that meets a lost database is tried again at its next time;
any other failure crashes the process, and the supervisor starts it anew.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from uuid import NAMESPACE_OID, uuid5

import trio
from attrs import define, evolve, field, frozen

from engine.jobs.config import Cron, Timing
from engine.jobs.job import NewJob
from engine.jobs.ports import Slot
from engine.otp import init_ack
from engine.ports import StorageDown

log = logging.getLogger(__name__)

Step = Callable[[], Awaitable[float | None]]
"""One step; it may answer in how many seconds it wants to be called again (None: as usual)."""

SPREAD = 0.1
"""The share of an interval by which pauses vary, so that nodes that started together do not stay in step."""


async def every(interval: float, step: Step, at_once: bool = False) -> None:
    """The body of a periodic process: `step` each `interval` seconds, give or take a tenth."""
    init_ack()
    pause = 0.0 if at_once else interval
    while True:
        await trio.sleep(pause * (1 + SPREAD * (2 * random.random() - 1)))
        pause = interval
        try:
            wish = await step()
        except StorageDown as problem:
            log.debug("a periodic step waits for the database: %s", problem)
        else:
            pause = interval if wish is None else min(interval, wish)


# --- is it safe to rescue? --------------------------------------------------------------------------------


@frozen
class Pulse:
    """How the heartbeats fare: when they last succeeded, since when without a gap, and how long the last one took.

    Times are on the monotonic clock; None while the database is away.
    """

    since: float | None = None
    last: float | None = None
    took: float = 0.0


def beaten(pulse: Pulse, began: float, ended: float, timing: Timing) -> Pulse:
    """The pulse after a heartbeat that succeeded. A gap longer than two intervals starts it anew."""
    unbroken = pulse.last is not None and ended - pulse.last <= 2 * timing.heartbeat
    return evolve(pulse, since=pulse.since if unbroken else ended, last=ended, took=ended - began)


def may_rescue(pulse: Pulse, now: float, timing: Timing) -> bool:
    """Whether an expired lease proves that its node is lost.

    It proves nothing while the database is away or slow, nor in the first lease after it came back or after this
    process itself was stopped: the living have not had the time to extend theirs.
    """
    if pulse.since is None or pulse.last is None:
        return False
    fresh = now - pulse.last <= 1.5 * timing.heartbeat
    settled = now - pulse.since >= timing.lease
    return fresh and settled and pulse.took <= timing.heartbeat / 4


@define
class Heart:
    """Keeps the pulse between the process that beats and the one that rescues."""

    timing: Timing
    pulse: Pulse = field(factory=Pulse)
    monotonic: Callable[[], float] = time.monotonic

    async def beat(self, extend: Callable[[], Awaitable[None]]) -> None:
        """One heartbeat. Raises StorageDown."""
        began = self.monotonic()
        try:
            await extend()
        except StorageDown:
            self.pulse = Pulse()
            raise
        self.pulse = beaten(self.pulse, began, self.monotonic(), self.timing)

    @property
    def may_rescue(self) -> bool:
        return may_rescue(self.pulse, self.monotonic(), self.timing)


# --- cron -------------------------------------------------------------------------------------------------


def due_slots(crons: Sequence[Cron], now: float, made: Mapping[str, float]) -> list[Slot]:
    """The crons' times that have come. `made` gives, by name, the last one for which this node saw to a job.

    The database sees to it that each time has one job, whatever nodes there are. Of the times that were missed while
    nothing ran, the last is made up for.
    """
    slots = []
    for cron in crons:
        at = cron.schedule.last(now)
        if made.get(cron.name) != at:
            job_id = uuid5(NAMESPACE_OID, f"elwift cron {cron.name} {at}")
            job = NewJob(
                job_id, cron.worker, cron.queue, cron.args, max_attempts=cron.max_attempts, unique_key=cron.name
            )
            slots.append(Slot(cron.name, at, job))
    return slots


def next_slot_in(crons: Sequence[Cron], now: float) -> float | None:
    """Seconds until the next time of any of them."""
    return min((cron.schedule.following(now) - now for cron in crons), default=None)
