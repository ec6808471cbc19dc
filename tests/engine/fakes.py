"""The engine's ports in memory, with the faults that the real ones have: slowness, outage, refusal, a full buffer.

For tests of the engine alone; the same tests' scenarios run against PostgreSQL in tests/real.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import trio
from attrs import define, evolve, field, frozen

from engine.jobs.job import (
    Fence,
    Hold,
    Job,
    JobChange,
    JobOutcome,
    NewJob,
    Recorded,
    Retry,
    Snooze,
)
from engine.models import Models
from engine.otp import DUPLICATE, Node, Pid, Registry, Supervisor, self_, spawn
from engine.outputs import Outputs
from engine.ports import (
    Buffered,
    Committed,
    Duplicate,
    Entry,
    JournalFull,
    JournalHealth,
    Model,
    Notify,
    Page,
    PredictionChange,
    Receipt,
    Refused,
    StorageDown,
)
from engine.providers.protocol import Provider
from engine.providers.simulate import Simulate
from engine.runtime import Runtime
from engine.tasks import recovery, runner
from engine.tasks.events import TaskEvent
from engine.tasks.homes import Alone, Homes
from engine.tasks.patience import Patience
from engine.tasks.state import TaskState, fold


@define
class MemoryStorage:
    """Journal, store and snapshots over dictionaries.

    `hold()` keeps receipts back; `down` makes the database go away; `full` makes the journal refuse.
    """

    logs: dict[UUID, list[TaskEvent]] = field(factory=lambda: defaultdict(list))
    tasks: dict[UUID, TaskState] = field(factory=dict)
    snapshots: dict[UUID, TaskState] = field(factory=dict)
    keys: dict[tuple[str, str], UUID] = field(factory=dict)
    predictions: dict[UUID, PredictionChange] = field(factory=dict)
    entries: list[Entry] = field(factory=list)
    outcomes: list[JobChange] = field(factory=list)
    jobs: dict[UUID, NewJob] = field(factory=dict)
    on_entry: list[Any] = field(factory=list)
    down: bool = False
    full: float | None = None
    held: deque[tuple[Entry, Notify]] | None = None
    buffered: deque[tuple[Entry, Notify]] = field(factory=deque)
    refuse_next: Receipt | None = None

    # --- Journal

    def submit(self, entry: Entry, notify: Notify) -> None:
        if self.full is not None:
            raise JournalFull(self.full)
        self.entries.append(entry)
        if self.held is not None:
            self.held.append((entry, notify))
        elif self.down:
            self.buffered.append((entry, notify))
            notify(Buffered())
            self._tell_queue(entry, Buffered())
        else:
            self._commit(entry, notify)

    async def write(self, entry: Entry) -> Receipt:
        receipts: list[Receipt] = []
        heard = trio.Event()
        self.submit(entry, lambda receipt: (receipts.append(receipt), heard.set()))  # type: ignore[func-returns-value]
        await heard.wait()
        return receipts[0]

    def health(self) -> JournalHealth:
        return JournalHealth(not self.down, 0.0, len(self.buffered), 100)

    def hold(self) -> None:
        self.held = deque()

    def let_go(self) -> None:
        held, self.held = self.held or deque(), None
        for entry, notify in held:
            if self.down:
                self.buffered.append((entry, notify))
                notify(Buffered())
            else:
                self._commit(entry, notify)

    def back(self) -> None:
        """The database is there again: what was buffered is flushed in order."""
        self.down = False
        while self.buffered:
            self._commit(*self.buffered.popleft())

    def _commit(self, entry: Entry, notify: Notify) -> None:
        receipt = self.refuse_next or self._verdict(entry)
        self.refuse_next = None
        if isinstance(receipt, Committed):
            self._write(entry)
        notify(receipt)
        self._tell_queue(entry, receipt)

    def _verdict(self, entry: Entry) -> Receipt:
        task = entry.task
        log = self.logs.get(task.id, [])
        if task.idempotency_key and entry.events and entry.events[0].seq == 1:
            owner = self.keys.get((task.user, task.idempotency_key))
            if owner is not None:
                return Duplicate(owner)
        if entry.events and entry.events[0].seq != len(log) + 1:
            return Refused("conflict")
        return Committed()

    def _write(self, entry: Entry) -> None:
        task = entry.task
        self.logs[task.id].extend(entry.events)
        self.tasks[task.id] = task
        if task.idempotency_key:
            self.keys[task.user, task.idempotency_key] = task.id
        for prediction in entry.predictions:
            before = self.predictions.get(prediction.id)
            first = ("attempt", "started_at", "held_since") if before else ()
            kept = {name: getattr(before, name) for name in first if getattr(before, name) is not None}
            changed = {k: v for k, v in _fields(prediction).items() if v is not None} | kept
            self.predictions[prediction.id] = evolve(before, **changed) if before else prediction
        if entry.new_job:
            self.jobs[entry.new_job.id] = entry.new_job
        if entry.job and not isinstance(entry.job.outcome, Hold):
            self.outcomes.append(entry.job)

    def _tell_queue(self, entry: Entry, receipt: Receipt) -> None:
        for hook in self.on_entry:
            hook(entry, receipt)

    # --- TaskStore

    def _up(self) -> None:
        if self.down:
            raise StorageDown

    async def load(self, task_id: UUID) -> TaskState | None:
        self._up()
        await trio.lowlevel.checkpoint()
        state = self.snapshots.get(task_id)
        for event in self.logs.get(task_id, []):
            if state is None or event.seq > state.seq:
                state = fold(state, event)
        return state

    async def events(self, task_id: UUID, after: int = 0, limit: int = 500) -> tuple[TaskEvent, ...]:
        self._up()
        await trio.lowlevel.checkpoint()
        return tuple(event for event in self.logs.get(task_id, []) if event.seq > after)[:limit]

    async def history(self, user: str, **_: Any) -> Page:
        self._up()
        return Page(tuple(task for task in self.tasks.values() if task.user == user), None)

    async def by_idempotency_key(self, user: str, key: str) -> UUID | None:
        self._up()
        return self.keys.get((user, key))

    async def unfinished(self, after: tuple[int, float, UUID] | None, limit: int) -> tuple[TaskState, ...]:
        self._up()
        loaded = [await self.load(task_id) for task_id in self.tasks]
        tasks = [task for task in loaded if task is not None and not task.status.terminal]
        tasks.sort(key=_order)
        return tuple(task for task in tasks if after is None or _order(task) > after)[:limit]

    async def ahead(self, known: Mapping[UUID, int]) -> tuple[UUID, ...]:
        self._up()
        return tuple(id for id, seq in known.items() if len(self.logs.get(id, [])) > seq)

    async def open_prediction(self, task_id: UUID) -> PredictionChange | None:
        self._up()
        mine = [p for p in self.predictions.values() if p.task_id == task_id and p.completed_at is None]
        return max(mine, key=lambda p: p.attempt, default=None)

    async def open_attempts(self, attempts: Sequence[UUID]) -> frozenset[UUID]:
        self._up()
        return frozenset(id for id in attempts if id in self.predictions and not self.predictions[id].completed_at)


@define
class MemorySnapshots:
    """Keeps the newest state of each changed task; `save` writes them to the storage."""

    storage: MemoryStorage
    pending: dict[UUID, TaskState] = field(factory=dict)

    def dirty(self, state: TaskState) -> None:
        self.pending[state.id] = state

    def forget(self, task_id: UUID) -> None:
        self.pending.pop(task_id, None)

    def save(self) -> None:
        self.storage.snapshots.update(self.pending)
        self.pending.clear()


@define
class MemoryModels:
    """A ModelStore."""

    models: dict[UUID, Model] = field(factory=dict)
    down: bool = False

    async def all(self) -> tuple[Model, ...]:
        return tuple(self.models.values())

    async def put(self, model: Model) -> None:
        if self.down:
            raise StorageDown
        self.models[model.id] = model

    async def remove(self, model_id: UUID) -> bool:
        return self.models.pop(model_id, None) is not None


class NoUsers:
    async def preferences(self, user: str) -> dict[str, Any]:
        return {}

    async def put_preferences(self, user: str, preferences: dict[str, Any]) -> None:
        raise NotImplementedError


class NoArtifacts:
    async def put(self, name: str, source: Any, content_type: str) -> Any:
        raise NotImplementedError

    async def url(self, name: str, expires_in: float) -> str:
        raise NotImplementedError

    async def delete(self, name: str) -> None:
        raise NotImplementedError


@frozen
class Place:
    position: int = 0
    wait_seconds: float = 0.0


@define
class MiniQueue:
    """A queue of one node, in memory: runs each job at once, in a process of its own, and again when it is retried.

    `paused` keeps new jobs waiting until `go`.
    """

    run: Any = None
    paused: bool = False
    waiting: deque[tuple[NewJob, int, float]] = field(factory=deque)
    workers: dict[UUID, Pid] = field(factory=dict)
    outcomes: list[JobOutcome | Recorded] = field(factory=list)
    refusal: BaseException | None = None
    start: Any = None
    _jobs: dict[UUID, tuple[NewJob, int]] = field(factory=dict)

    def has(self, queue: str) -> bool:
        return queue != "elsewhere"

    def admit(self, queue: str, user: str | None, priority: int = 4, typical: float | None = None) -> Place:
        if self.refusal is not None:
            raise self.refusal
        return Place(len(self.waiting))

    def hear(self, entry: Entry, receipt: Receipt) -> None:
        if not isinstance(receipt, Committed | Buffered):
            return
        if entry.new_job is not None and entry.new_job.id not in self._jobs:
            self._jobs[entry.new_job.id] = (entry.new_job, 1)
            self._enqueue(entry.new_job, 1, 0.0)
        if entry.job is not None and isinstance(receipt, Committed):
            new, attempt = self._jobs[entry.job.job_id]
            match entry.job.outcome:
                case Retry(_, at):
                    self._enqueue(new, attempt + 1, at or 0.0)
                case Snooze(at, _):
                    self._enqueue(new, attempt, at)

    def _enqueue(self, job: NewJob, attempt: int, at: float) -> None:
        self._jobs[job.id] = (job, attempt)
        self.waiting.append((job, attempt, at))
        self.go()

    def go(self) -> None:
        while self.waiting and not self.paused and self.start is not None:
            self.start(*self.waiting.popleft())

    async def work(self, new: NewJob, attempt: int, delay: float) -> None:
        await trio.sleep(delay)
        self.workers[new.id] = self_()
        fence = Fence(new.id, attempt, uuid4())
        job = Job(
            fence, new.worker, new.queue, new.args, new.task_id, new.user, new.priority, attempt, new.max_attempts,
            0.0, 0.0, 0.0,
        )  # fmt: skip
        outcome = await self.run(job)
        self.outcomes.append(outcome)
        if isinstance(outcome, Snooze):
            self._enqueue(new, attempt, outcome.at)


@define(eq=False)
class Shared(Alone):
    """One server of several, all in this process. `where` says on which server a job's task lives; news that is told
    reaches all, unless `deaf`."""

    node: str = "one"
    alone: bool = False
    where: dict[UUID, str] = field(factory=dict)
    on_news: list[Callable[[str], None]] = field(factory=list)
    deaf: bool = False
    gone: trio.Event = field(factory=trio.Event)

    async def adopt(self, jobs: Sequence[UUID]) -> Collection[UUID]:
        for job in jobs:
            self.where.setdefault(job, self.node)
        return [job for job in jobs if self.where[job] == self.node]

    async def strayed(self, jobs: Sequence[UUID]) -> Collection[UUID]:
        return [job for job in jobs if self.where.get(job, self.node) != self.node]

    async def someone_gone(self) -> None:
        await self.gone.wait()
        self.gone = trio.Event()

    async def tell(self, words: Sequence[str]) -> None:
        for word in () if self.deaf else words:
            for heard in self.on_news:
                heard(word)


@define
class House:
    """A node with the engine's task room in it, over memory."""

    runtime: Runtime
    storage: MemoryStorage
    snapshots: MemorySnapshots
    queue: MiniQueue
    clock: FakeClock


@define
class FakeClock:
    """Unix time that runs with trio's clock, so that MockClock moves it too."""

    offset: float = 1_700_000_000.0

    def __call__(self) -> float:
        return round(self.offset + trio.current_time(), 6)


@asynccontextmanager
async def house(
    providers: Mapping[str, Provider] | None = None,
    storage: MemoryStorage | None = None,
    models: tuple[Model, ...] = (),
    recover: bool = False,
    homes: Homes | None = None,
    outputs: Outputs | None = None,
    patience: Patience | None = None,
) -> AsyncIterator[House]:
    """Opens a node with the tree of the task room and a queue that feeds it; closes it as a server's end would."""
    storage = storage or MemoryStorage()
    clock, queue, snapshots = FakeClock(), MiniQueue(), MemorySnapshots(storage)
    registry = Models(MemoryModels(), default="simulate")
    for model in models:
        await registry.put(model)
    runtime = Runtime(
        names=Registry(name="names"),
        channels=Registry(DUPLICATE, name="channels"),
        journal=storage,
        store=storage,
        snapshots=snapshots,
        queues=queue,
        models=registry,
        users=NoUsers(),
        artifacts=NoArtifacts(),
        providers=providers or {"simulate": Simulate()},
        outputs=outputs or Outputs(NoArtifacts(), {}, Path("/nonexistent")),
        clock=clock,
        homes=homes or Alone(),
    )
    if isinstance(homes, Shared):
        homes.on_news.append(runtime.relay.heard)
    queue.run = runner.handler(runtime, patience)
    tasks, recovery_spec = recovery.specs(runtime)
    children = [runtime.names.spec(), runtime.channels.spec(), tasks, *([recovery_spec] if recover else [])]
    made = House(runtime, storage, snapshots, queue, clock)
    async with Node.open():
        await _run(made, children)
        try:
            yield made
        finally:
            queue.start = None
            storage.on_entry.clear()


async def _run(made: House, children: list[Any]) -> None:
    queue, storage, clock = made.queue, made.storage, made.clock
    await Supervisor.start_link(children, name="house")
    starts, receive = trio.open_memory_channel[tuple[NewJob, int, float]](100_000)

    async def pump() -> None:
        async for new, attempt, at in receive:
            await spawn(queue.work, new, attempt, max(0.0, at - clock()))

    await spawn(pump)
    queue.start = lambda new, attempt, at: starts.send_nowait((new, attempt, at))
    storage.on_entry.append(queue.hear)


def _order(task: TaskState) -> tuple[int, float, UUID]:
    return (task.priority, task.created_at, task.id)


def _fields(prediction: PredictionChange) -> dict[str, Any]:
    names = [name for name in PredictionChange.__slots__ if name != "__weakref__"]
    return {name: getattr(prediction, name) for name in names}
