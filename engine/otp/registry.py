"""The registry: keys for processes, unique or shared, with values, metadata and listeners.

The handle is a plain object, made before the tree; its process, which `spec` puts into the tree, opens the table and
empties it when it ends. A key is gone before anybody hears that its owner ended.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterator
from enum import Enum
from functools import partial
from typing import Any

import trio
from attrs import frozen

from engine.otp.calls import fence
from engine.otp.child_spec import PERMANENT, WORKER, ChildSpec, Start
from engine.otp.context import current_node, current_process
from engine.otp.gen_server import GenServer, Ok
from engine.otp.names import DuplicateNames, UniqueNames
from engine.otp.node import Node
from engine.otp.pid import Pid, Via
from engine.otp.process import call_user
from engine.otp.reasons import Reason


class Keys(Enum):
    """Whether a key has one owner or many."""

    UNIQUE = "unique"
    DUPLICATE = "duplicate"


UNIQUE, DUPLICATE = Keys


class RegistryClosed(RuntimeError):
    """The registry's process is not running."""


class AlreadyRegistered(Exception):
    """A unique key has an owner already, `pid` (which may be the caller itself)."""

    def __init__(self, pid: Pid) -> None:
        super().__init__(pid)
        self.pid = pid


@frozen
class Registered:
    """To listeners: `pid` took the key."""

    registry: str
    key: Any
    pid: Pid
    value: Any


@frozen
class Unregistered:
    """To listeners: `pid` gave the key up. Not told when it ends: monitor it."""

    registry: str
    key: Any
    pid: Pid


class Registry:
    """A table of keys. Functions that change it act on the running process's own entries."""

    def __init__(self, keys: Keys = UNIQUE, name: str = "registry", listeners: tuple[str, ...] = ()) -> None:
        self.name = name
        self.keys_are = keys
        self.listeners = listeners
        self._names: UniqueNames | DuplicateNames = UniqueNames() if keys is UNIQUE else DuplicateNames()
        self._open = False
        self._meta: dict[Hashable, Any] = {}
        self._locks: dict[Hashable, trio.Lock] = {}

    def __repr__(self) -> str:
        return f"<Registry {self.name} {self.keys_are.value} {len(self._names)}>"

    def spec(self, id: Any = None) -> ChildSpec:
        """The registry's process as a child; its id is by default the registry's name."""
        return ChildSpec(self.name if id is None else id, Start.server(_Owner, self), PERMANENT, None, WORKER)

    # --- reading, from anywhere ---------------------------------------------------------------------------

    def whereis(self, key: Hashable) -> Pid | None:
        """Who has a unique key; never a dead process. Raises ValueError on a registry of duplicate keys."""
        return self._unique().whereis(key)

    resolve = whereis

    def lookup(self, key: Hashable) -> list[tuple[Pid, Any]]:
        """All (pid, value) under a key, in the order of registration."""
        return self._names.lookup(key)

    def keys(self, pid: Pid) -> list[Hashable]:
        """The keys of any process, one for each entry."""
        process = current_node().peek(pid)
        return [] if process is None else [via.key for via in process.names if via.registry is self]

    def values(self, key: Hashable, pid: Pid) -> list[Any]:
        """The values of one process under a key."""
        return [value for owner, value in self.lookup(key) if owner == pid]

    def match(self, key: Hashable, matches: Callable[[Any], bool]) -> list[tuple[Pid, Any]]:
        """The (pid, value) under a key whose value matches."""
        return [(pid, value) for pid, value in self.lookup(key) if matches(value)]

    def select(self, matches: Callable[[Any, Pid, Any], bool]) -> list[tuple[Any, Pid, Any]]:
        """All (key, pid, value) for which `matches(key, pid, value)`. Reads the whole table."""
        return [entry for entry in self._names.entries() if matches(*entry)]

    def count(self) -> int:
        """How many entries there are."""
        return len(self._names)

    def __iter__(self) -> Iterator[tuple[Any, Pid, Any]]:
        return self._names.entries()

    async def dispatch(self, key: Hashable, function: Callable[[list[tuple[Pid, Any]]], Awaitable[None]]) -> None:
        """Runs `await function(entries)` in the caller; not at all when there are none."""
        entries = self.lookup(key)
        if entries:
            await call_user(function, entries)

    # --- own entries --------------------------------------------------------------------------------------

    def register(self, key: Hashable, value: Any = None) -> None:
        """Enters the running process under `key`.

        Raises:
            AlreadyRegistered: the unique key has an owner, be it the caller.
            RegistryClosed: the registry is not running.
        """
        process = current_process()
        fence(process)
        holder = self._enter(key, process.pid, value)
        if holder is not None:
            raise AlreadyRegistered(holder)
        process.names.append(Via(self, key))

    def unregister(self, key: Hashable) -> None:
        """Removes the running process's entries under `key`; nothing happens when it has none."""
        self._drop(key, lambda _: True)

    def unregister_match(self, key: Hashable, matches: Callable[[Any], bool]) -> None:
        """Removes those whose value matches."""
        self._drop(key, matches)

    def update_value(self, key: Hashable, change: Callable[[Any], Any]) -> Any:
        """Replaces the value of the running process's own unique key by `change(value)` and answers the new one.

        Raises:
            KeyError: the key is not the caller's.
        """
        process, names = current_process(), self._unique()
        fence(process)
        if names.whereis(key) != process.pid:
            raise KeyError(key)
        value = change(names.lookup(key)[0][1])
        names.update(key, value)
        return value

    # --- metadata and locks -------------------------------------------------------------------------------

    def put_meta(self, key: Hashable, value: Any) -> None:
        self._meta[key] = value

    def meta(self, key: Hashable, default: Any = None) -> Any:
        return self._meta.get(key, default)

    def delete_meta(self, key: Hashable) -> None:
        self._meta.pop(key, None)

    async def lock(self, key: Hashable, function: Callable[[], Awaitable[Any]]) -> Any:
        """`await function()` while nobody else holds the lock of this key."""
        lock = self._locks.setdefault(key, trio.Lock())
        try:
            async with lock:
                return await call_user(function)
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._locks.pop(key, None)

    # --- for the engine -----------------------------------------------------------------------------------

    def claim(self, key: Hashable, pid: Pid, value: Any = None) -> Pid | None:
        """Names a process that is being started; answers who has the name already.

        Raises:
            ValueError: keys are not unique here.
            RegistryClosed: the registry is not running.
        """
        self._unique()
        return self._enter(key, pid, value)

    def _enter(self, key: Hashable, pid: Pid, value: Any) -> Pid | None:
        if not self._open:
            raise RegistryClosed(f"registry {self.name!r} is not running")
        holder = self._names.claim(key, pid, value)
        if holder is None and self.listeners:
            self._tell(Registered(self.name, key, pid, value))
        return holder

    def forget(self, key: Hashable, pid: Pid) -> None:
        """Removes an ended process's entries."""
        self._names.forget(key, pid)

    def open(self) -> None:
        self._open = True

    def close(self, node: Node, pid: Pid, reason: Reason) -> None:
        """The registry's process `pid` ended: the table is empty, and its owners, who would go on without the keys
        that they are known by, get an exit signal as if they were linked to it."""
        owners = {owner for _, owner, _ in self._names.entries()}
        self._open = False
        self._names.clear()
        self._meta.clear()
        for owner in owners:
            process = None if node.end_sleeper(owner, reason) else node.awaken(owner)
            if process is not None:
                process.signal(pid, reason)

    def _unique(self) -> UniqueNames:
        if not isinstance(self._names, UniqueNames):
            raise ValueError(f"registry {self.name!r} has duplicate keys: a key does not name one process")
        return self._names

    def _drop(self, key: Hashable, matches: Callable[[Any], bool]) -> None:
        process = current_process()
        fence(process)
        if isinstance(self._names, UniqueNames):
            owned = self._names.whereis(key) == process.pid and matches(self._names.lookup(key)[0][1])
            dropped = int(owned and self._names.forget(key, process.pid))
        else:
            dropped = self._names.forget_matching(key, process.pid, matches)
        for _ in range(dropped):
            process.names.remove(Via(self, key))
        if dropped and self.listeners:
            self._tell(Unregistered(self.name, key, process.pid))

    def _tell(self, news: Registered | Unregistered) -> None:
        for name in self.listeners:
            listener = current_node().awaken(name)
            if listener is not None:
                listener.put(news)


class _Owner(GenServer[Registry]):
    """The process that a registry lives and dies with."""

    async def init(self, registry: Registry) -> Ok[Registry]:
        process = current_process()
        registry.open()
        # A watcher and not `terminate`, which a kill would pass over.
        process.watch(registry, partial(registry.close, process.node, process.pid))
        return Ok(registry)
