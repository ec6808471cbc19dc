"""Watchers: each follows one task over however many sockets it takes, and complains of what it is shown (`sight`)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from uuid import UUID

import trio
from attrs import define, field

from scripts.client import ChannelClosed, PhoenixSocket, Refused, connect
from scripts.havoc.record import Said
from scripts.havoc.sight import Sight
from scripts.havoc.victim import Life, Victim

AT_ONCE = 40
LOST = (OSError, trio.TooSlowError, ChannelClosed, Refused, ExceptionGroup, trio.BrokenResourceError)


@define(eq=False)
class Watchers:
    """`sights` is what they saw, by task."""

    victim: Victim
    chance: random.Random
    complain: Callable[[str], None]
    sights: dict[UUID, Sight] = field(factory=dict)
    lost: Counter[str] = field(factory=Counter)
    """Why sockets ended before their task."""
    watching: int = 0

    async def watch(self, task_id: UUID) -> None:
        """Until the task has ended durably, or the server says that it does not exist."""
        sight = self.sights.setdefault(task_id, Sight())
        self.watching += 1
        while not (sight.over or sight.gone):
            life = await self.victim.life()
            try:
                async with connect(life.url) as socket:
                    self.victim.sockets.add(socket)
                    try:
                        await self._follow(socket, life, task_id, sight)
                    finally:
                        self.victim.sockets.discard(socket)
            except (
                OSError,
                trio.TooSlowError,
                ChannelClosed,
                Refused,
                ExceptionGroup,
                trio.BrokenResourceError,
            ) as end:
                self.lost[type(end).__name__] += 1
            except Exception as problem:
                if "websocket" not in type(problem).__module__:
                    raise
                self.lost[type(problem).__name__] += 1
            await trio.sleep(self.chance.uniform(0.05, 0.3))
        self.watching -= 1

    async def _follow(self, socket: PhoenixSocket, life: Life, task_id: UUID, sight: Sight) -> None:
        timeline = self.victim.timeline
        channel = await socket.join(f"task:{task_id}", {"last_seq": sight.resume_from()})
        for problem in sight.joined(channel.response, self._said(life), timeline):
            self.complain(f"task {task_id}: {problem} (in the answer to a join)")
        if channel.response["task"] is None:
            return
        async for message in channel:
            for problem in sight.pushed(message.event, message.payload, self._said(life), timeline):
                self.complain(f"task {task_id}: {problem}")

    def _said(self, life: Life) -> Said:
        """When something was heard; how durable it is, the thing says itself."""
        return Said(life.number, trio.current_time(), False)

    def unfinished(self) -> list[tuple[UUID, Sight]]:
        return [(task_id, sight) for task_id, sight in self.sights.items() if not (sight.over or sight.gone)]
