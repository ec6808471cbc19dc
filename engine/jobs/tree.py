"""The processes of the queue and their order: supervisor "jobs".

rest_for_one: workers first, then what serves them; the drain stands last, so that at shutdown it acts first, while
everything it needs still runs. What a lost connection may crash stands one_for_one below it, and drains nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from engine.jobs import metrics
from engine.jobs.acknowledger import acknowledge
from engine.jobs.clockwork import due_slots, every, next_slot_in
from engine.jobs.dispatcher import STOP_GRACE, WORKERS, Dispatcher, claim_jobs
from engine.jobs.lane import Running
from engine.jobs.notifier import listen
from engine.otp import (
    ONE_FOR_ONE,
    PERMANENT,
    REST_FOR_ONE,
    TRANSIENT,
    ChildSpec,
    DynamicSupervisor,
    GenServer,
    Ok,
    Reason,
    Restart,
    Start,
    Supervisor,
    init_ack,
    worker,
)
from engine.ports import StorageDown

if TYPE_CHECKING:
    from engine.jobs.queues import Queues

log = logging.getLogger(__name__)

Body = Callable[..., Awaitable[None]]

STAGE_AT_ONCE = 5_000
RESCUE_AT_ONCE = 500
BEATS_AT_ONCE = 500
PRUNE_AT_ONCE = 10_000
DEAF_BEAT = 1.0
"""Seconds between heartbeats while notifications do not arrive: by a heartbeat a server learns that it is to stop what
it runs."""
FLUSH_WITHIN = 5.0
"""Seconds for the last outcomes to be written at shutdown."""


def jobs_spec(queues: Queues) -> ChildSpec:
    """The whole subtree."""
    children = [
        DynamicSupervisor.spec(id="workers", name=WORKERS),
        _process("acknowledger", acknowledge, queues.outbox, queues.store),
        _process("recovery", recover, queues, restart=TRANSIENT),
        Supervisor.spec(_queue_specs(queues), strategy=ONE_FOR_ONE, id="queues", name="jobs.queues"),
        Supervisor.spec(_clockwork(queues), strategy=ONE_FOR_ONE, id="clockwork", name="jobs.clockwork"),
        worker(
            Drain, queues, id="drain", name="jobs.drain", shutdown=queues.timing.drain + STOP_GRACE + 2 * FLUSH_WITHIN
        ),
    ]
    return Supervisor.spec(children, strategy=REST_FOR_ONE, id="jobs", name="jobs")


def _process(child_id: str, body: Body, *args: object, restart: Restart = PERMANENT) -> ChildSpec:
    return ChildSpec(id=child_id, start=Start.process(body, *args, name=f"jobs.{child_id}"), restart=restart)


def _queue_specs(queues: Queues) -> list[ChildSpec]:
    specs = []
    for name, lane in queues.lanes.items():
        bell, claims = queues.bells[name], queues.claims[name]
        start = Start.server(Dispatcher, lane, queues.handlers, bell, claims, name=bell.name)
        specs.append(ChildSpec(id=name, start=start))
        specs.append(_process(f"claims:{name}", claim_jobs, claims))
    return specs


def _clockwork(queues: Queues) -> list[ChildSpec]:
    timing, clock = queues.timing, Clockwork(queues)
    return [
        _process("notifier", hear, queues),
        _process("settings", follow_settings, queues),
        _process("heart", every, timing.heartbeat, clock.beat, True),
        _process("poll", every, timing.poll, clock.poll),
        _process("stager", every, timing.stage, clock.stage, True),
        _process("rescuer", every, timing.rescue, clock.rescue),
        _process("pruner", every, timing.prune, clock.prune),
        _process("counter", every, timing.count, clock.count, True),
        _process("cron", every, 60.0, clock.cron, True),
    ]


async def recover(queues: Queues) -> None:
    """Gives back what an earlier life of this node held, and takes over the operators' settings; then ends.

    The queues start after the first try. If the database is away then, this goes on trying.
    """
    recovered = await _recover(queues)
    init_ack()
    while not recovered:
        await trio.sleep(1.0)
        recovered = await _recover(queues)


async def _recover(queues: Queues) -> bool:
    try:
        queues.apply(await queues.store.settings())
        given = await queues.store.recover(queues.node, queues.boot)
        queues.learn(await queues.store.paces())
    except StorageDown as problem:
        log.warning("jobs cannot be recovered yet: %s", problem)
        return False
    log.info("%d interrupted jobs go back in line", given)
    queues.wake()
    return True


async def hear(queues: Queues) -> None:
    await listen(queues.store, queues.hearing, queues.on_notice, queues.timing.ping)


async def follow_settings(queues: Queues) -> None:
    """Takes over what operators set on any node, when a notification says so and at each poll."""
    init_ack()
    while True:
        await queues.settings_changed.wait()
        queues.settings_changed = trio.Event()
        try:
            queues.apply(await queues.store.settings())
        except StorageDown as problem:
            log.debug("the queues' settings are read at the next poll: %s", problem)


class Clockwork:
    """The steps of the periodic processes (see `clockwork.every`)."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._made: dict[str, float] = {}

    async def beat(self) -> float | None:
        queues = self._queues
        await queues.heart.beat(self._extend)
        await queues.servers.beat(queues.timing.lease, queues.slots(), queues.heart.may_rescue)
        queues.count_others()
        return None if queues.hearing.push else DEAF_BEAT

    async def _extend(self) -> None:
        """Extends the leases of all that lives here; what the database no longer grants is stopped."""
        queues = self._queues
        leases = [lease for lane in queues.lanes.values() for lease in lane.leases()]
        some_lane = next(iter(queues.lanes.values()))
        unwritten = [some_lane.identity.hold(fence) for fence in queues.outbox.fences()]
        leases += unwritten
        for first in range(0, max(len(leases), 1), BEATS_AT_ONCE):
            for job_id in await queues.store.heartbeat(leases[first : first + BEATS_AT_ONCE]):
                for lane in queues.lanes.values():
                    metrics.LOST.labels(lane.name).inc(lane.lost(job_id))

    async def poll(self) -> float | None:
        self._queues.wake()
        self._queues.settings_changed.set()
        return None if self._queues.hearing.push else 1.0

    async def stage(self) -> float | None:
        staged = await self._queues.store.stage(STAGE_AT_ONCE)
        self._queues.wake(staged.queues)
        return 0.0 if staged.moved == STAGE_AT_ONCE else staged.next_in

    async def rescue(self) -> float | None:
        queues = self._queues
        allowed = queues.heart.may_rescue
        metrics.RESCUE_PAUSED.set(not allowed)
        if not allowed:
            return None
        await queues.servers.look_around(sure=True)
        queues.count_others()
        held = {job_id for lane in queues.lanes.values() for job_id in lane.holding()}
        held |= {fence.job_id for fence in queues.outbox.fences()}
        for rescued in await queues.store.rescue(list(held), RESCUE_AT_ONCE):
            metrics.RESCUES.labels(rescued.queue).inc()
            log.warning("job %s is taken back from node %s, now %s", rescued.job_id, rescued.node, rescued.state)
            queues.wake({rescued.queue})
        return None

    async def prune(self) -> float | None:
        deleted = await self._queues.store.prune(self._queues.retention, PRUNE_AT_ONCE)
        return 1.0 if deleted == PRUNE_AT_ONCE else None

    async def count(self) -> float | None:
        taken_at = self._queues.monotonic()
        self._queues.count(await self._queues.store.counts(), taken_at)
        return None

    async def cron(self) -> float | None:
        queues = self._queues
        if not queues.crons:
            return None
        now = await queues.store.now()
        if slots := due_slots(queues.crons, now, self._made):
            await queues.store.make_for(slots)
            queues.wake({slot.job.queue for slot in slots})
            self._made |= {slot.name: slot.at for slot in slots}
        return next_slot_in(queues.crons, now)


class Drain(GenServer[None]):
    """Stops the queue in good order when the tree is shut down; until then it does nothing."""

    trap_exit = True

    async def init(self, queues: Queues) -> Ok[None]:
        self._queues = queues
        for lane in queues.lanes.values():
            lane.draining = False
            lane.kick()
        return Ok(None)

    async def terminate(self, reason: Reason, state: None) -> None:
        await drain(self._queues)


async def drain(queues: Queues) -> None:
    """Starts nothing more, waits for what runs, and gives back, uncounted, what does not end in time."""
    for lane in queues.lanes.values():
        lane.draining = True
    with trio.move_on_after(queues.timing.drain):
        await _idle(queues)
    unfinished = [held for lane in queues.lanes.values() for held in lane.running.values() if not held.settled]
    _stop(queues, unfinished)
    with trio.move_on_after(STOP_GRACE):
        await _idle(queues)
    try:
        with trio.move_on_after(FLUSH_WITHIN):
            await queues.outbox.flush(queues.store)
        with trio.move_on_after(FLUSH_WITHIN):
            await queues.store.release([held.job.fence for held in unfinished if held.stored])
        with trio.move_on_after(FLUSH_WITHIN):
            await queues.servers.leave()
    except StorageDown as problem:
        log.warning("jobs could not be given back (the next start will do it): %s", problem)
    log.info("the job queue is drained; %d jobs were given back", len(unfinished))


def _stop(queues: Queues, unfinished: list[Running]) -> None:
    for held in unfinished:
        for lane in queues.lanes.values():
            lane.stop(held.job.id, "draining", held.job.fence.token)


async def _idle(queues: Queues) -> None:
    for lane in queues.lanes.values():
        await lane.idle()
