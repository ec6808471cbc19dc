"""The application's channels over the engine's task room in memory; the clock is trio's and jumps when all wait."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio
from attrs import define, field

from engine.otp import DynamicSupervisor, Pid, Supervisor, current_node
from engine.tasks import intake, lookup
from engine.tasks.messages import NewTask
from tests.engine.fakes import House, house
from tests.web.sockets.lines import MemoryClient, MemoryLine
from web.auth import AuthSettings, Guard, OriginPolicy
from web.auth.settings import parse_tokens
from web.channels.house import ChannelHouse
from web.channels.routes import application_router
from web.sockets.door import Door
from web.sockets.pubsub import PubSub
from web.sockets.socket import Protocol

Event = tuple[str, dict[str, Any]]
TERMINAL = {"task_completed", "task_cancelled"}


class Refused(Exception):
    """The server's error reply."""

    def __init__(self, response: dict[str, Any]) -> None:
        super().__init__(response)
        self.response = response


@define(eq=False)
class Device:
    """A client of one user, with a connection of its own: joins, pushes, and keeps what it was sent."""

    client: MemoryClient
    refs: Any = field(factory=lambda: map(str, count(1)))
    news: list[tuple[str, str, dict[str, Any]]] = field(factory=list)
    join_refs: dict[str, str] = field(factory=dict)

    async def join(self, topic: str, **params: Any) -> dict[str, Any]:
        self.join_refs[topic] = next(self.refs)
        return await self._ask(topic, "phx_join", params, self.join_refs[topic])

    async def push(self, topic: str, event: str, payload: Any = None) -> Any:
        return await self._ask(topic, event, {} if payload is None else payload, next(self.refs))

    async def _ask(self, topic: str, event: str, payload: Any, ref: str) -> Any:
        await self.client.send([self.join_refs.get(topic), ref, topic, event, payload])
        while True:
            _, answered, about, kind, told = await self.client.receive()
            if kind == "phx_reply" and answered == ref:
                if told["status"] != "ok":
                    raise Refused(told["response"])
                return told["response"]
            self.news.append((about, kind, told))

    async def next(self, topic: str | None = None) -> Event:
        """The next event, of this topic or of any."""
        while True:
            for index, (about, kind, told) in enumerate(self.news):
                if topic in (None, about):
                    del self.news[index]
                    return kind, told
            _, _, about, kind, told = await self.client.receive()
            self.news.append((about, kind, told))

    async def until(self, name: str, topic: str | None = None) -> list[Event]:
        """All events up to and with the first of this name."""
        events = [await self.next(topic)]
        while events[-1][0] != name:
            events.append(await self.next(topic))
        return events


@define
class Place:
    """A house with doors."""

    house: House
    line: MemoryLine
    draining: bool = False

    @asynccontextmanager
    async def device(self, user: str = "ada") -> AsyncIterator[Device]:
        async with self.line.connect(f"vsn=2.0.0&token={user}") as client:
            yield Device(client)

    async def task(self, user: str = "ada", **given: Any) -> UUID:
        """A task of the model `simulate`."""
        wish = {"steps": 3, "interval": 1.0} | given
        return (await intake.accept(self.house.runtime, NewTask(user, wish))).task.id

    def server(self, task_id: UUID) -> Pid | None:
        return lookup.whereis(self.house.runtime, task_id)

    async def server_gone(self, task_id: UUID) -> None:
        pid = self.server(task_id)
        process = current_node().awaken(pid) if pid is not None else None
        if process is not None:
            ended = trio.Event()
            process.watch(ended, lambda reason: ended.set())
            await ended.wait()


@asynccontextmanager
async def open_place() -> AsyncIterator[Place]:
    async with house() as built:
        pubsub = PubSub()
        place = Place(built, MemoryLine(None))  # type: ignore[arg-type]
        channels = ChannelHouse(built.runtime, draining=lambda: place.draining)
        tokens = parse_tokens("ada=ada,bob=bob,op=op:operator")
        guard = Guard.open(AuthSettings(tokens=tokens))
        place.line.door = Door(Protocol(application_router(channels)), pubsub, guard, OriginPolicy())
        await Supervisor.start_link([pubsub.spec(), DynamicSupervisor.spec(id="sockets", name="sockets")])
        yield place


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with open_place() as opened:
        yield opened


@pytest.fixture
async def device(place: Place) -> AsyncIterator[Device]:
    async with place.device() as connected:
        yield connected


@pytest.fixture
def new_id() -> str:
    return str(uuid4())
