"""Who is here: keys (mostly users) on topics, each with one meta for every process that stands for it.

    class Room(Channel):
        async def handle_info(self, message):
            if message is _JOINED:                                            # sent to itself by `join`
                self.push("presence_state", await presence.list(self.topic))
                await presence.track(self.topic, self.identity.user, {"device": "phone"})

One process keeps the table and watches those who are in it: whoever ends is gone from it, and everybody on the topic
is sent the difference. Clients put the state and the differences together whatever the order they come in.

May import `engine.otp` and `pubsub`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

from attrs import define, field, frozen

from engine.otp import (
    ChildSpec,
    Down,
    GenServer,
    NoReply,
    Ok,
    Pid,
    Ref,
    Reply,
    Request,
    call,
    demonitor,
    monitor,
    self_,
    worker,
)
from web.sockets.pubsub import PubSub

Meta = dict[str, Any]
State = dict[str, dict[str, list[Meta]]]
"""`{key: {"metas": [meta, …]}}`; every meta has a `phx_ref` that is unique under its key."""


@frozen
class _Track(Request[str]):
    pid: Pid
    topic: str
    key: str
    meta: Mapping[str, Any]


@frozen
class _Update(Request[bool]):
    pid: Pid
    topic: str
    key: str
    meta: Mapping[str, Any]


@frozen
class _Untrack(Request[bool]):
    pid: Pid
    topic: str
    key: str


@frozen
class _List(Request[State]):
    topic: str


class Presence:
    """The handle. Every method asks the presence process, and raises CallFailed when it does not answer."""

    def __init__(self, pubsub: PubSub, name: str = "presence") -> None:
        self.pubsub = pubsub
        self.name = name

    def spec(self) -> ChildSpec:
        return worker(PresenceServer, self.pubsub, id=self.name, name=self.name)

    async def track(self, topic: str, key: str, meta: Mapping[str, Any]) -> str:
        """The calling process stands for `key` on `topic` until it ends. Answers the meta's `phx_ref`."""
        return await call(self.name, _Track(self_(), topic, key, meta))

    async def update(self, topic: str, key: str, meta: Mapping[str, Any]) -> bool:
        """Replaces the calling process's meta; False when it does not stand for `key`."""
        return await call(self.name, _Update(self_(), topic, key, meta))

    async def untrack(self, topic: str, key: str) -> bool:
        """The calling process stands for `key` no more; False when it did not."""
        return await call(self.name, _Untrack(self_(), topic, key))

    async def list(self, topic: str) -> State:
        """Everybody on the topic, as the payload of `presence_state`."""
        return await call(self.name, _List(topic))


@define
class Table:
    """Metas by topic, key and process, and a monitor for each process. Changes answer the difference they made."""

    topics: dict[str, dict[str, dict[Pid, Meta]]] = field(factory=dict)
    places: dict[Pid, set[tuple[str, str]]] = field(factory=dict)
    monitors: dict[Pid, Ref] = field(factory=dict)
    serial: Any = field(factory=lambda: count(1))

    def put(self, pid: Pid, topic: str, key: str, meta: Mapping[str, Any]) -> tuple[Meta, Meta | None]:
        """Sets the meta of a process; answers it and the one it replaces."""
        metas = self.topics.setdefault(topic, {}).setdefault(key, {})
        old = metas.get(pid)
        new = dict(meta) | {"phx_ref": f"{next(self.serial):x}"}
        if old is not None:
            new["phx_ref_prev"] = old["phx_ref"]
        metas[pid] = new
        self.places.setdefault(pid, set()).add((topic, key))
        return new, old

    def has(self, pid: Pid, topic: str, key: str) -> bool:
        return pid in self.topics.get(topic, {}).get(key, {})

    def take(self, pid: Pid, topic: str, key: str) -> Meta | None:
        """Removes the meta of a process, and what is empty without it."""
        keys = self.topics.get(topic, {})
        meta = keys.get(key, {}).pop(pid, None)
        if key in keys and not keys[key]:
            del keys[key]
        if topic in self.topics and not keys:
            del self.topics[topic]
        places = self.places.get(pid, set())
        places.discard((topic, key))
        if not places:
            self.places.pop(pid, None)
        return meta

    def state(self, topic: str) -> State:
        return {key: {"metas": list(metas.values())} for key, metas in self.topics.get(topic, {}).items()}


class PresenceServer(GenServer[Table]):
    """Keeps the table. After a crash it begins empty: who is tracked tracks itself again when it joins again."""

    async def init(self, pubsub: PubSub) -> Ok[Table]:
        self.pubsub = pubsub
        return Ok(Table())

    async def handle_call(self, request: Any, caller: Any, state: Table) -> Reply[Table]:
        match request:
            case _List(topic):
                return Reply(state.state(topic), state)
            case _Track(pid, topic, key, meta):
                self._watch(pid, state)
                return Reply(self._put(state, pid, topic, key, meta), state)
            case _Update(pid, topic, key, meta):
                known = state.has(pid, topic, key)
                if known:
                    self._put(state, pid, topic, key, meta)
                return Reply(known, state)
            case _Untrack(pid, topic, key):
                gone = state.take(pid, topic, key)
                if gone is not None:
                    self._tell(topic, leaves={key: [gone]})
                    self._unwatch(pid, state)
                return Reply(gone is not None, state)
        raise NotImplementedError(f"presence does not know the request {request!r}")

    async def handle_info(self, message: object, state: Table) -> NoReply[Table]:
        if isinstance(message, Down) and message.pid is not None:
            state.monitors.pop(message.pid, None)
            for topic, key in sorted(state.places.get(message.pid, ())):
                meta = state.take(message.pid, topic, key)
                self._tell(topic, leaves={key: [meta] if meta else []})
        return NoReply(state)

    def _put(self, state: Table, pid: Pid, topic: str, key: str, meta: Mapping[str, Any]) -> str:
        new, old = state.put(pid, topic, key, meta)
        self._tell(topic, joins={key: [new]}, leaves={key: [old]} if old else {})
        ref: str = new["phx_ref"]
        return ref

    def _watch(self, pid: Pid, state: Table) -> None:
        if pid not in state.monitors:
            state.monitors[pid] = monitor(pid)

    def _unwatch(self, pid: Pid, state: Table) -> None:
        if pid not in state.places:
            demonitor(state.monitors.pop(pid), flush=True)

    def _tell(
        self, topic: str, joins: Mapping[str, list[Meta]] | None = None, leaves: Mapping[str, list[Meta]] | None = None
    ) -> None:
        diff = {"joins": _entries(joins or {}), "leaves": _entries(leaves or {})}
        self.pubsub.broadcast(topic, "presence_diff", diff)


def _entries(metas: Mapping[str, list[Meta]]) -> State:
    return {key: {"metas": entries} for key, entries in metas.items()}
