"""Everything that the application asks of the database, asked through its own code, with the plan of every statement.

`WatchedPool` lets PostgreSQL tell, by auto_explain, how it really ran each statement, those of foreign keys included.
`questions` are the calls: the journal's writes, the queue, history, recovery, housekeeping, the operators' questions.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString
from uuid import UUID, uuid4

import trio
from attrs import define, field, frozen

from engine.jobs.job import Complete, JobChange, JobState, NewJob
from engine.jobs.ports import Claim, Rate
from engine.jobs.ports import Retention as Kept
from engine.ports import Committed, Entry, PredictionChange
from engine.tasks.events import Actor, Completed, Created, EventBody, Output, Started, TaskEvent
from engine.tasks.state import Status, TaskState, fold
from persistence.bills import Bills
from persistence.connection import TrioConnection
from persistence.jobs.store import PostgresJobStore
from persistence.journal.journal import PostgresJournal
from persistence.pool import Pool
from persistence.removal import Removal
from persistence.retention import Retention
from persistence.snapshots import Snapshotter
from persistence.store import PostgresTaskStore
from persistence.usage import UsageStore
from persistence.users import PostgresUserStore
from persistence.webhooks import Delivery, WebhookStore

EXPLAIN: LiteralString = """
    LOAD 'auto_explain';
    SET auto_explain.log_min_duration = 0; SET auto_explain.log_analyze = on; SET auto_explain.log_buffers = on;
    SET auto_explain.log_timing = off; SET auto_explain.log_nested_statements = on; SET auto_explain.log_format = json;
    SET auto_explain.log_level = notice; SET auto_explain.log_triggers = off
"""
GROWN = frozenset(
    {"tasks", "task_events", "task_snapshots", "predictions", "outputs", "webhook_events", "jobs", "users"}
)
"""Tables that grow with use: no statement may read one from end to end."""


# --- plans ------------------------------------------------------------------------------------------------


@frozen
class Plan:
    """How one statement was run: the tables it scanned whole, the indices it used, and how many pages it touched."""

    query: str
    whole: frozenset[str]
    indices: frozenset[str]
    pages: int


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for inner in node.get("Plans", ()):
        yield from _nodes(inner)


def read_plan(text: str) -> Plan:
    found = json.loads(text[text.index("{") :])
    nodes = list(_nodes(found["Plan"]))
    top = nodes[0]
    return Plan(
        " ".join(found["Query Text"].split()),
        frozenset(node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"),
        frozenset(node["Index Name"] for node in nodes if "Index Name" in node and node.get("Actual Loops", 1)),
        top.get("Shared Hit Blocks", 0) + top.get("Shared Read Blocks", 0),
    )


@define(eq=False)
class WatchedPool(Pool):
    """A pool whose connections, while `watching`, tell the plan of all that they run."""

    plans: list[Plan] = field(init=False, factory=list)
    watching: bool = field(init=False, default=False)
    _told: set[TrioConnection] = field(init=False, factory=set)

    @asynccontextmanager
    async def connection(self, timeout: float = 5.0) -> AsyncIterator[TrioConnection]:
        async with Pool.connection(self, timeout) as connection:
            if self.watching and connection not in self._told:
                self._told.add(connection)
                connection.add_notice_handler(lambda notice: self._hear(notice.message_primary or ""))
                await connection.execute(EXPLAIN)
            yield connection

    def _hear(self, words: str) -> None:
        if "plan:" in words:
            self.plans.append(read_plan(words))


# --- tasks as they are written ----------------------------------------------------------------------------


@define
class Tale:
    """A task that is written step by step."""

    task_id: UUID = field(factory=uuid4)
    job_id: UUID = field(factory=uuid4)
    state: TaskState | None = None

    def then(self, *bodies: EventBody, attempt: int = 1, **more: Any) -> Entry:
        events = []
        for body in bodies:
            seq = self.state.seq + 1 if self.state else 1
            events.append(TaskEvent(self.task_id, seq, round(time.time(), 6), attempt, Actor.SYSTEM, body))
            self.state = fold(self.state, events[-1])
        assert self.state
        return Entry(self.state, tuple(events), **more)

    def begin(self, user: str, key: str | None = None) -> Entry:
        created = Created(
            user=user, model_id=UUID(int=1), model="simulate", provider="simulate", input={}, idempotency_key=key
        )
        return self.then(created, attempt=0, new_job=NewJob(self.job_id, "task", task_id=self.task_id, user=user))

    def start(self) -> Entry:
        attempt = PredictionChange(uuid4(), self.task_id, 1, "simulate", "intent")
        return self.then(Started("simulate", "simulate"), predictions=(attempt,))

    def complete(self) -> Entry:
        output = Output(0, "image", "png", "https://x/y.png", "image/png", 3, "ab" * 32)
        return self.then(Completed(1.0), outputs=(output,), job=JobChange(self.job_id, Complete()))


# --- the questions ----------------------------------------------------------------------------------------


@define(eq=False)
class Asker:
    """Asks everything, again and again, of a database with these users; what is random comes from `dice`."""

    pool: Pool
    users: int
    dice: random.Random = field(factory=lambda: random.Random(7))
    ids: list[UUID] = field(factory=lambda: [uuid4()])
    """Tasks that are there."""
    names: list[str] = field(factory=lambda: ["nothing"])
    """Predictions' ids at their provider."""

    def __attrs_post_init__(self) -> None:
        pool = self.pool
        self.journal, self.store = PostgresJournal(pool), PostgresTaskStore(pool)
        self.snapshots, self.webhooks, self.jobs = Snapshotter(pool), WebhookStore(pool), PostgresJobStore(pool)
        self.node, self.boot = "asker", uuid4()
        self.tales: list[Tale] = []

    journal: PostgresJournal = field(init=False)
    store: PostgresTaskStore = field(init=False)
    snapshots: Snapshotter = field(init=False)
    webhooks: WebhookStore = field(init=False)
    jobs: PostgresJobStore = field(init=False)
    node: str = field(init=False)
    boot: UUID = field(init=False)
    tales: list[Tale] = field(init=False)

    async def look_round(self) -> None:
        """Learns what there is to ask for."""
        async with self.pool.connection() as connection:
            tasks = await connection.execute("SELECT id FROM tasks TABLESAMPLE SYSTEM (5) LIMIT 2000")
            self.ids = [row[0] for row in await tasks.fetchall()]
            names = await connection.execute("SELECT external_id FROM predictions TABLESAMPLE SYSTEM (5) LIMIT 500")
            self.names = [row[0] for row in await names.fetchall()]

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.journal.flush)
            nursery.start_soon(self.webhooks.run)
            yield
            nursery.cancel_scope.cancel()

    def user(self) -> str:
        return f"user-{self.dice.randrange(self.users)}"

    def some_ids(self, number: int) -> list[UUID]:
        return [self.dice.choice(self.ids) for _ in range(number)]

    async def _write(self, entries: list[Entry]) -> None:
        async with trio.open_nursery() as nursery:

            async def one(entry: Entry) -> None:
                receipt = await self.journal.write(entry)
                assert receipt == Committed(), receipt

            for entry in entries:
                nursery.start_soon(one, entry)

    async def create(self) -> None:
        self.tales = [Tale() for _ in range(20)]
        await self._write([tale.begin(self.user(), uuid4().hex) for tale in self.tales])

    async def begin(self) -> None:
        await self._write([tale.start() for tale in self.tales])

    async def snapshot(self) -> None:
        await self.snapshots.save([tale.state for tale in self.tales if tale.state])

    async def end(self) -> None:
        await self._write([tale.complete() for tale in self.tales])
        for tale in self.tales:
            self.snapshots.forget(tale.task_id)
        await self.snapshots.round()

    async def deliver(self) -> None:
        one = Delivery(uuid4().hex, self.dice.choice(self.ids), str(self.dice.choice(self.names)), "completed", {})
        await self.webhooks.add(one)
        self.webhooks.done(one, "replicate", uuid4() if self.dice.random() < 0.5 else None)

    async def claim(self, **limits: Any) -> None:
        claimed = await self.jobs.claim(Claim("default", 5, self.node, self.boot, 30.0, **limits))
        fences = [job.fence for job in claimed.jobs]
        await self.jobs.settle([JobChange(fence.job_id, Complete(), fence) for fence in fences[:3]])
        await self.jobs.release(fences[3:])

    async def insert_later(self) -> None:
        await self.jobs.insert([NewJob(uuid4(), "work", user=self.user(), scheduled_at=time.time() - 1)])

    async def unfinished(self) -> None:
        page = await self.store.unfinished(None, 500)
        if page:
            await self.store.unfinished((page[-1].priority, page[-1].created_at, page[-1].id), 500)

    async def history(self, user: str, **more: Any) -> None:
        page = await self.store.history(user, **more)
        if page.cursor:
            await self.store.history(user, cursor=page.cursor, **more)

    def questions(self) -> dict[str, Callable[[], Awaitable[object]]]:
        """All of them, by name, in an order in which each finds what it needs."""
        pool, pick, today = self.pool, self.dice.choice, datetime.now(UTC).date()
        retention, removal, usage, bills = Retention(pool), Removal(pool), UsageStore(pool), Bills(pool)
        heavy = "user-0"
        return {
            "journal: create 20": self.create,
            "journal: begin 20": self.begin,
            "snapshots of 20": self.snapshot,
            "journal: complete 20": self.end,
            "delivery": self.deliver,
            "history": lambda: self.history(self.user()),
            "history of a heavy user": lambda: self.history(heavy),
            "history, failed ones": lambda: self.history(heavy, status=Status.FAILED),
            "history, running ones": lambda: self.history(heavy, status=Status.PROCESSING),
            "history, of a model": lambda: self.history(heavy, model="model-29"),
            "history, of no model": lambda: self.history(heavy, model="nothing"),
            "history, failed of a model": lambda: self.history(heavy, model="model-3", status=Status.FAILED),
            "task": lambda: self.store.load(pick(self.ids)),
            "events": lambda: self.store.events(pick(self.ids)),
            "idempotency key": lambda: self.store.by_idempotency_key(self.user(), f"key-{self.dice.randrange(10**6)}"),
            "open prediction": lambda: self.store.open_prediction(pick(self.ids)),
            "open attempts": lambda: self.store.open_attempts(self.some_ids(200)),
            "known prediction": lambda: bills.known("replicate", str(pick(self.names)), uuid4()),
            "recovery: two pages": self.unfinished,
            "logs that go on, of 1000": lambda: self.store.ahead(dict.fromkeys(self.some_ids(1000), 2)),
            "jobs: claim, settle, release": self.claim,
            "jobs: claim with limits": lambda: self.claim(global_limit=10**6, rate=Rate(10**6)),
            "jobs: insert": self.insert_later,
            "jobs: stage": lambda: self.jobs.stage(500),
            "jobs: rescue": lambda: self.jobs.rescue([uuid4()], 100),
            "jobs: recover": lambda: self.jobs.recover(self.node, uuid4()),
            "jobs: prune": lambda: self.jobs.prune(Kept(completed=3e7, cancelled=3e7, discarded=3e7), 100),
            "jobs: adopt, strayed": lambda: self.jobs.strayed(self.node, self.some_ids(200)),
            "operators: a job": lambda: self.jobs.get(pick(self.ids)),
            "operators: dead letters": lambda: self.jobs.page("default", JobState.DISCARDED, uuid4(), 100),
            "operators: no dead letters": lambda: self.jobs.page("nothing", JobState.DISCARDED, None, 100),
            "operators: counts": self.jobs.counts,
            "operators: paces": self.jobs.paces,
            "usage of a day": lambda: usage.spent_on(self.user(), today),
            "usage of a month, heavy user": lambda: usage.since(heavy, today - timedelta(days=30)),
            "bill of a task": lambda: bills.of_task(pick(self.ids)),
            "bills in doubt": lambda: bills.in_doubt("replicate", 100),
            "preferences": lambda: PostgresUserStore(pool).preferences(self.user()),
            "housekeeping: archive": lambda: retention.archive(3.0e7, 100),
            "housekeeping: delete archived": lambda: removal.delete_archived(3600.0, 100),
            "housekeeping: deliveries": lambda: retention.forget_deliveries(4.9 * 86400, 100),
            "housekeeping: expired outputs": lambda: removal.expire(100),
            "delete a task": lambda: removal.delete(pick(self.ids)),
        }
