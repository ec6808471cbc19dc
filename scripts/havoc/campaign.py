"""One whole run: the server is started (and killed in its first starts), loaded, broken, left to rest, and judged."""

from __future__ import annotations

import random
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import UUID

import trio
from attrs import define, field, frozen

from scripts.havoc import table
from scripts.havoc.disk import LIMIT_WRITES, DiskFaults, Quota, quota
from scripts.havoc.faults import LONG, PLAIN, Fault
from scripts.havoc.load import Load
from scripts.havoc.moments import MOMENTS, first_starts
from scripts.havoc.readiness import EVERY, Readiness
from scripts.havoc.reckoning import Reckoning
from scripts.havoc.record import percentile
from scripts.havoc.victim import ENVIRONMENT, ServerFailed, Victim
from scripts.havoc.watch import AT_ONCE, Watchers
from tests.engine.providers import fake_replicate

CHECK_WITHIN = 1200.0
"""Seconds for reading everything back."""
WATCHERS_WITHIN = 60.0
"""Seconds in which every watcher has heard the end, once all has come to rest: more than a handshake may take."""
TAKEN_AWAY = 60
"""Tasks that are taken at least in a minute without PostgreSQL."""
IN_SYNC_WITHIN = 180.0
"""Seconds in which all that was taken is stored when PostgreSQL is back; it takes a few on a machine of its own."""
WELL_WITHIN = 10.0
"""Seconds that are given to it to be well again; then the next fault comes anyway."""
SAID_WITHIN = 5.0
"""Seconds in which /readyz says that nothing can be written."""
KILLS_A_LONG_FAULT = 100
MANY = 50
"""Kills from which on a run is no short one."""


@frozen
class Options:
    """See `scripts/chaos --help`."""

    kills: int
    seconds: float
    settle: float
    pause: float
    posters: int
    seed: int
    only: frozenset[str] = frozenset()


@define
class Plan:
    """Which fault comes next: any of `faults` by their weights, and each long one once in a hundred kills, somewhere.

    `due`: the long ones, and the number of kills after which each comes.
    """

    faults: Sequence[Fault]
    due: list[tuple[int, Fault]]

    @classmethod
    def of(cls, kills: int, faults: Sequence[Fault], long: Sequence[Fault], chance: random.Random) -> Plan:
        due = [(chance.randrange(kills), fault) for fault in long for _ in range(kills // KILLS_A_LONG_FAULT)]
        return cls(faults, sorted(due, key=lambda each: each[0]))

    def following(self, killed: int, chance: random.Random) -> Fault:
        """The next one, after so many processes were killed."""
        if self.due and self.due[0][0] <= killed:
            return self.due.pop(0)[1]
        return chance.choices(self.faults, [fault.weight for fault in self.faults])[0]


@define(eq=False)
class Campaign:
    """A run and what it found."""

    options: Options
    chance: random.Random
    victim: Victim
    quota: Quota | None
    service: fake_replicate.Service
    broken: list[str] = field(factory=list)
    faults: Counter[str] = field(factory=Counter)
    settled_in: float = 0.0
    minutes: int = 0
    taken_away: int = 0
    in_sync_after: list[float] = field(factory=list)
    began: float = field(factory=trio.current_time)
    load: Load = field(init=False)
    watchers: Watchers = field(init=False)
    readiness: Readiness = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.load = Load(self.victim, self.chance, self.complain, files=True)
        self.watchers = Watchers(self.victim, self.chance, self.complain)
        self.readiness = Readiness(self.victim)

    def complain(self, promise: str) -> None:
        self.broken.append(promise)
        self._say(f"BROKEN: {promise}")

    def _say(self, words: str) -> None:
        print(f"{trio.current_time() - self.began:7.1f} s  {words}", file=sys.stderr, flush=True)

    # --- the run ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        options = self.options
        if not options.only:
            firsts = 2 if options.kills < MANY else 6
            self.faults["kill_server_in_first_start"] = await first_starts(self.victim, self.chance, firsts)
        await self.victim.start()
        self._say("the first good start")
        async with trio.open_nursery() as nursery:
            self.load.on_accept = lambda task_id: self._maybe_watch(nursery, task_id)
            nursery.start_soon(self.readiness.watch)
            for _ in range(options.posters):
                nursery.start_soon(self.load.post_tasks, nursery)
            await self._break()
            await trio.sleep(1.0)
            self.load.over = True
            reckoning = await self._reckon()
            nursery.cancel_scope.cancel()
        for problem in await trio.to_thread.run_sync(reckoning.leftovers):
            self.complain(problem)
        self._check_readiness()
        status = await self.victim.terminate()
        if status != 0:
            self.complain(f"the server ended with exit status {status} after SIGTERM")
        table.show(self._rows(reckoning, trio.current_time() - self.began), self.broken)

    def _maybe_watch(self, nursery: trio.Nursery, task_id: UUID) -> None:
        if self.chance.random() < 0.25 and self.watchers.watching < AT_ONCE:
            nursery.start_soon(self.watchers.watch, task_id)

    async def _break(self) -> None:
        """One fault after the other, each after a pause in which work goes on, sometimes hardly any."""
        disk = DiskFaults(self.quota).all() if self.quota else ()
        faults = [*PLAIN, *MOMENTS, *disk, LIMIT_WRITES]
        long: Sequence[Fault] = LONG
        if self.options.only:
            faults, long = [fault for fault in (*faults, *LONG) if fault.name in self.options.only], ()
        plan = Plan.of(self.options.kills, faults, long, self.chance)
        with trio.move_on_after(self.options.seconds) as limit:
            while self.victim.kills < self.options.kills:
                await self._pause()
                fault = plan.following(self.victim.kills, self.chance)
                self._say(
                    f"[{self.victim.kills}/{self.options.kills}] {fault.name}  ({len(self.load.orders)} acknowledged)"
                )
                await self._commit(fault)
        if limit.cancelled_caught:
            print("the time is up; the faults that are left are not made", file=sys.stderr)
            if not self.victim.alive:
                await self.victim.start()

    async def _pause(self) -> None:
        """Half of the faults meet a server that is well, the others whatever the last one has left."""
        if self.chance.random() < 0.5:
            with trio.move_on_after(WELL_WITHIN):
                life, now = await self.victim.life(), trio.current_time()
                while self.victim.timeline.quiet.get(life.number, 0.0) < now:  # noqa: ASYNC110 - nobody tells
                    await trio.sleep(0.05)
        await trio.sleep(self.options.pause * self.chance.choice([0.05, 0.5, 1.0]) * self.chance.uniform(0.2, 1.8))

    async def _commit(self, fault: Fault) -> None:
        self.faults[fault.name] += 1
        before = len(self.load.orders)
        self.load.under_way = fault.name
        try:
            await fault.run(self.victim, self.chance)
        except (ServerFailed, trio.TooSlowError) as problem:
            self.complain(f"the server did not come back after {fault.name}: {problem}")
        self.load.under_way = ""
        if not self.victim.alive:
            self.complain(f"the server is dead after {fault.name}")
            await self.victim.start()
        if fault.name == "take_postgres_away":
            await self._back_in_sync(before)

    async def _back_in_sync(self, before: int) -> None:
        """After the minute without PostgreSQL: everything was taken meanwhile, and all of it is stored soon."""
        self.minutes += 1
        self.taken_away += len(self.load.orders) - before
        if len(self.load.orders) - before < TAKEN_AWAY:
            self.complain(f"only {len(self.load.orders) - before} tasks were taken in a minute without PostgreSQL")
        began, timeline, life = trio.current_time(), self.victim.timeline, await self.victim.life()
        with trio.move_on_after(IN_SYNC_WITHIN) as patience:
            while timeline.quiet.get(life.number, 0.0) < began:  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.05)
        self.in_sync_after.append(trio.current_time() - began)
        if patience.cancelled_caught:
            self.complain(f"the journal was not empty {IN_SYNC_WITHIN:.0f} s after PostgreSQL came back")

    async def _reckon(self) -> Reckoning:
        reckoning = Reckoning(self.victim, self.complain, self.quota, self.watchers.sights)
        self._say("the last fault is made")
        self.settled_in = await reckoning.come_to_rest(self.options.settle)
        await self._watchers_done()
        self._say("all is at rest")
        await reckoning.read_all(self.load.orders, CHECK_WITHIN)
        return reckoning

    async def _watchers_done(self) -> None:
        """Watchers of tasks that have ended hear so soon; one that does not has been forgotten."""
        with trio.move_on_after(WATCHERS_WITHIN) as patience:
            while self.watchers.unfinished():  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.1)
        if patience.cancelled_caught:
            waiting = self.watchers.unfinished()
            self.complain(f"{len(waiting)} watchers never heard the end, such as {waiting[0]}")

    def _check_readiness(self) -> None:
        """A PostgreSQL without room for its log is noticed and said."""
        for began, ended in self.quota.panics if self.quota else ():
            if ended - began > SAID_WITHIN and not self.readiness.was_degraded(began, ended):
                self.complain(f"the disk was full for {ended - began:.1f} s and /readyz did not say so")
        for words in self.readiness.errors:
            self._say(f"/readyz said: {words}")

    # --- what was found ---------------------------------------------------------------------------------

    def _rows(self, found: Reckoning, seconds: float) -> list[table.Row]:
        victim, orders = self.victim, self.load.orders
        acks = [ack for order in orders for ack in order.acks]
        sights = self.watchers.sights.values()
        return [
            ("seconds", round(seconds, 1)),
            ("seed", self.options.seed),
            *((f"fault {name}", number) for name, number in sorted(self.faults.items())),
            ("processes killed", victim.kills),
            ("lives of the server", victim.lives),
            ("tasks acknowledged", len(orders)),
            ("… as durable", sum(any(ack.said.durable for ack in order.acks) for order in orders)),
            ("acknowledgements asked for again", len(acks) - len(orders)),
            *((f"tasks {status}", number) for status, number in sorted(found.statuses.items())),
            ("tasks lost that were in memory only", found.lost_from_memory),
            ("attempts made", found.attempts),
            ("attempts cut off or undone", found.interrupted),
            ("files read back", found.outputs),
            ("predictions bought", self.service.creates()),
            ("tasks watched", len(sights)),
            ("joins of watchers", sum(sight.joins for sight in sights)),
            ("watchers rewound", sum(sight.rewound for sight in sights)),
            *((f"answer {name}", number) for name, number in sorted(self.load.answers.items())),
            *((f"socket lost: {name}", number) for name, number in sorted(self.watchers.lost.items())),
            ("times the disk was full", len(self.quota.full) if self.quota else 0),
            ("/readyz degraded, s", round(len(self.readiness.degraded) * EVERY, 1)),
            ("entries in memory at most", self.readiness.most_buffered),
            ("minutes without PostgreSQL", self.minutes),
            ("… tasks taken meanwhile", self.taken_away),
            ("… until all was stored, worst s", percentile(self.in_sync_after, 100)),
            ("POST to 202, p50 s", percentile(self.load.seconds, 50)),
            ("POST to 202, p99 s", percentile(self.load.seconds, 99)),
            ("POST to 202, worst s", percentile(self.load.seconds, 100)),
            ("kill -9 to the next 202, p50 s", percentile(victim.accepting_after, 50)),
            ("kill -9 to the next 202, worst s", percentile(victim.accepting_after, 100)),
            ("all settled after the last fault, s", round(self.settled_in, 2)),
            ("promises broken", len(self.broken)),
        ]


async def _stop_when_told(campaign: Campaign, scope: trio.CancelScope) -> None:
    """Ends the run in order: a server, its PostgreSQL and a mount would be left behind."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            campaign.complain("the run was stopped before its end")
            scope.cancel()


async def run_campaign(options: Options, folder: Path) -> Sequence[str]:
    """Runs in `folder`; the promises that were broken. Raises ServerFailed when the server never came up."""
    chance = random.Random(options.seed)
    async with AsyncExitStack() as stack:
        disk = stack.enter_context(quota(folder / "data"))
        service = await stack.enter_async_context(fake_replicate.serving())
        nursery = await stack.enter_async_context(trio.open_nursery())
        environment = ENVIRONMENT | {
            "ELWIFT_REPLICATE_API_TOKEN": fake_replicate.TOKEN,
            "ELWIFT_REPLICATE_BASE_URL": service.url,
        }
        victim = Victim(folder / "data", nursery, environment)
        campaign = Campaign(options, chance, victim, disk, service)
        print(disk.words if disk else "no file system may be mounted here: the disk is not filled", file=sys.stderr)
        nursery.start_soon(_stop_when_told, campaign, nursery.cancel_scope)
        try:
            await campaign.run()
        finally:
            with trio.CancelScope(shield=True):
                await victim.leave_nothing()
            nursery.cancel_scope.cancel()
    return campaign.broken
