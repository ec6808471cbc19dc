"""What the tests of tasks share: a watcher that subscribes as a Channel does and keeps what it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import trio
from attrs import define, field

from engine.otp import Down, Pid, receive, self_, spawn
from engine.runtime import Runtime
from engine.tasks import intake, lookup
from engine.tasks.events import EventBody
from engine.tasks.messages import Accepted, NewTask, TaskHappened, TaskNews, TaskProgress, TaskText, View

if TYPE_CHECKING:
    from tests.engine.fakes import House

T = TypeVar("T")
PATIENCE = 10.0


@define
class Watcher:
    """A subscriber in a process of its own; `news` is all that it was told, in order."""

    view: View | None = None
    news: list[TaskNews] = field(factory=list)
    pid: Pid | None = None
    _changed: trio.Event = field(factory=trio.Event)

    async def until(self, condition: Callable[[Watcher], object], patience: float = PATIENCE) -> None:
        """Waits until the condition holds; fails the test when it does not within `patience` seconds."""
        with trio.fail_after(patience):
            while not condition(self):
                await self._changed.wait()

    async def final(self, patience: float = PATIENCE) -> None:
        await self.until(lambda w: any(isinstance(n, TaskHappened) and n.final for n in w.news), patience)

    def bodies(self, kind: type[T]) -> list[T]:
        return [n.event.body for n in self.news if isinstance(n, TaskHappened) and isinstance(n.event.body, kind)]

    def told(self, kind: type[T]) -> list[T]:
        return [n for n in self.news if isinstance(n, kind)]

    @property
    def events(self) -> list[type[EventBody]]:
        return [type(n.event.body) for n in self.news if isinstance(n, TaskHappened)]

    @property
    def text(self) -> str:
        return "".join(n.text for n in self.news if isinstance(n, TaskText))

    def progress(self, attempt: int | None = None) -> list[float]:
        told = self.told(TaskProgress)
        return [n.progress for n in told if attempt is None or n.attempt == attempt]

    async def listen(self, runtime: Runtime, task_id: UUID, last_seq: int | None, joined: trio.Event) -> None:
        runtime.channels.register(("channel", task_id))
        self.pid = self_()
        self.view = await lookup.join(runtime, self.pid, task_id, last_seq)
        joined.set()
        while True:
            message: Any = await receive()
            if not isinstance(message, Down):
                self.news.append(message)
            self._changed.set()
            self._changed = trio.Event()


async def watch(runtime: Runtime, task_id: UUID, last_seq: int | None = 0) -> Watcher:
    """Joins a task, as a Channel does."""
    watcher, joined = Watcher(), trio.Event()
    await spawn(watcher.listen, runtime, task_id, last_seq, joined)
    with trio.fail_after(PATIENCE):
        await joined.wait()
    return watcher


async def begin(runtime: Runtime, **input: Any) -> Accepted:
    """Accepts a task of the model `simulate` with this input (by default two quick steps)."""
    return await intake.accept(runtime, NewTask("ada", {"steps": 2, "interval": 0.001, **input}))


async def begin_watched(house: House, **input: Any) -> tuple[Accepted, Watcher]:
    """As `begin`, with a watcher that is there before the first attempt begins."""
    house.queue.paused = True
    accepted = await begin(house.runtime, **input)
    watcher = await watch(house.runtime, accepted.task.id)
    house.queue.paused = False
    house.queue.go()
    return accepted, watcher


async def over(runtime: Runtime, task_id: UUID) -> None:
    """Waits until the task has left memory."""
    with trio.fail_after(PATIENCE):
        while task_id in runtime.stash:  # noqa: ASYNC110 - a table that is read without messages tells nobody
            await trio.sleep(0.001)
