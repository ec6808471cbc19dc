"""The two processes of a queue: the dispatcher starts and stops workers, the claimer asks the database for jobs.

The dispatcher never waits for the database, so that a job inserted here starts at once even while a claim is under
way. Both act on the queue's Lane; all that may not be lost in a crash stands there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import trio
from attrs import define, field, frozen

from engine.jobs.lane import Lane, Running
from engine.jobs.ports import Claim, JobStore
from engine.jobs.worker import JobHandler, after_death, work
from engine.otp import (
    TEMPORARY,
    ChildSpec,
    Down,
    GenServer,
    NoReply,
    Ok,
    Pid,
    Reason,
    Shutdown,
    Start,
    Timer,
    cast,
    exit,
    init_ack,
    monitor,
    self_,
    send_after,
    start_child,
)
from engine.ports import StorageDown

log = logging.getLogger(__name__)

WORKERS = "workers"
"""The DynamicSupervisor of all workers."""

OUTAGE_PAUSE = 0.5
"""Seconds until a claim is tried again while the database is away."""

STOP_GRACE = 5.0
"""Seconds that a stopped worker has to clean up."""


@frozen
class Look:
    """There may be something to start, to stop or to claim."""


_LOOK = Look()


@define(eq=False)
class Bell:
    """Wakes the dispatcher of one queue, and no more often than it looks."""

    name: str
    rung: bool = False

    def __call__(self) -> None:
        if not self.rung:
            self.rung = True
            cast(self.name, _LOOK)


@define(eq=False)
class Desk:
    """What a dispatcher works with, and its state: the workers it monitors, and its alarm clock."""

    lane: Lane
    handlers: Mapping[str, JobHandler]
    bell: Bell
    claims: Claims
    alarm: Timer | None = None
    watched: set[Pid] = field(factory=set)


class Dispatcher(GenServer[Desk]):
    """Starts what the lane says, stops what it says, settles what died."""

    async def init(self, lane: Lane, handlers: Mapping[str, JobHandler], bell: Bell, claims: Claims) -> Ok[Desk]:
        desk = Desk(lane, handlers, bell, claims)
        for worker in lane.workers:
            _watch(desk, worker)
        bell.rung = False
        bell()
        return Ok(desk)

    async def handle_cast(self, message: object, state: Desk) -> NoReply[Desk]:
        state.bell.rung = False
        await _act(state)
        return NoReply(state)

    async def handle_info(self, message: object, state: Desk) -> NoReply[Desk]:
        if isinstance(message, Down) and message.pid is not None:
            state.watched.discard(message.pid)
            _bury(state, message.pid, message.reason)
        await _act(state)
        return NoReply(state)


async def _act(desk: Desk) -> None:
    lane = desk.lane
    while lane.stopping:
        _stop(*lane.stopping.popleft())
    if len(lane.memory):
        lane.start_from_memory()
    while lane.starting:
        _watch(desk, await _hire(desk))
    if lane.demand:
        desk.claims.ask()
    _set_alarm(desk)


async def _hire(desk: Desk) -> Pid:
    start = Start.process(work, desk.lane, desk.handlers)
    spec = ChildSpec(id="worker", start=start, restart=TEMPORARY, shutdown=STOP_GRACE)
    return await start_child(WORKERS, spec)


def _watch(desk: Desk, pid: Pid) -> None:
    if pid not in desk.watched:
        desk.watched.add(pid)
        monitor(pid)


def _stop(held: Running, reason: str) -> None:
    """Stops the worker if it still has this job."""
    if held.worker is not None:
        exit(held.worker, Shutdown(reason))


def _bury(desk: Desk, pid: Pid, reason: Reason) -> None:
    if (held := desk.lane.workers.get(pid)) is not None:
        after_death(desk.lane, held, reason)


def _set_alarm(desk: Desk) -> None:
    if desk.alarm is not None:
        desk.alarm.cancel()
    seconds = desk.lane.next_in
    desk.alarm = None if seconds is None else send_after(seconds, self_(), _LOOK)


# --- claims -----------------------------------------------------------------------------------------------


@define(eq=False)
class Claims:
    """Claims for one lane, one at a time, made by the claimer process."""

    lane: Lane
    store: JobStore
    _asked: trio.Event = field(factory=trio.Event)

    def ask(self) -> None:
        """Has a claim made, unless one is under way."""
        self._asked.set()

    async def asked(self) -> None:
        await self._asked.wait()
        self._asked = trio.Event()

    async def make(self) -> None:
        """Claims as many jobs as there are free slots."""
        lane = self.lane
        demand, mark = lane.begin_claim()
        if not demand:
            return
        who, config = lane.identity, lane.config
        wish = Claim(lane.name, demand, who.node, who.boot, who.lease, config.global_limit, config.rate)
        try:
            claimed = await self.store.claim(wish)
        except StorageDown as problem:
            log.info("queue %s cannot claim: %s", lane.name, problem)
            lane.fail_claim(OUTAGE_PAUSE)
        else:
            lane.end_claim(claimed, mark)


async def claim_jobs(claims: Claims) -> None:
    """The body of a claimer process."""
    claims.lane.claiming = 0
    init_ack()
    claims.lane.kick()
    while True:
        await claims.asked()
        await claims.make()
