"""What of a task's outputs may be shown now: links that work, and none to what is gone.

The link in a task's log is of the day on which the output was stored. It ends before the output does, so it is signed
anew for who reads later; and an output whose time is over, or whose attempt was void, has none at all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from attrs import define, evolve, field

from engine.ports import ArtifactStore, StoreFailed
from engine.tasks.events import Output, OutputStored, TaskEvent
from engine.tasks.state import TaskState

REMEMBERED = 10_000


@define(eq=False)
class Links:
    """Links of `store` that work for `seconds`."""

    store: ArtifactStore
    seconds: float
    _signed: OrderedDict[str, tuple[float, str]] = field(init=False, factory=OrderedDict)

    async def task(self, task: TaskState, now: float) -> TaskState:
        """The task with its outputs as they can be had at `now` (Unix time)."""
        if not task.outputs:
            return task
        since = task.completed_at or now
        return evolve(task, outputs=tuple([await self._shown(output, since, now) for output in task.outputs]))

    async def events(self, task: TaskState, events: Iterable[TaskEvent], now: float) -> tuple[TaskEvent, ...]:
        """Events of the task's log, likewise. An output that the task has not, was stored by an attempt that failed."""
        mine = {output.object_name for output in task.outputs}
        return tuple([await self._event(event, mine, now) for event in events])

    async def _event(self, event: TaskEvent, mine: set[str], now: float) -> TaskEvent:
        if not isinstance(event.body, OutputStored):
            return event
        output = event.body.output
        shown = await self._shown(output, event.at, now) if output.object_name in mine else without_link(output)
        return evolve(event, body=OutputStored(shown))

    async def _shown(self, output: Output, stored_at: float, now: float) -> Output:
        if output.expires_at is not None and output.expires_at <= now:
            return without_link(output)
        if now - stored_at < self.seconds / 2 or not output.object_name:
            return output
        left = self.seconds if output.expires_at is None else min(self.seconds, output.expires_at - now)
        return evolve(output, content_url=await self._link(output, left, now))

    async def _link(self, output: Output, seconds: float, now: float) -> str:
        signed_at, url = self._signed.get(output.object_name, (0.0, ""))
        if not url or now - signed_at > self.seconds / 2:
            try:
                url = await self.store.url(output.object_name, seconds)
            except StoreFailed:
                return output.content_url
            self._signed[output.object_name] = (now, url)
            while len(self._signed) > REMEMBERED:
                self._signed.popitem(last=False)
        return url


def without_link(output: Output) -> Output:
    """The output, when its file is gone."""
    return evolve(output, content_url="", temporary_url=None)
