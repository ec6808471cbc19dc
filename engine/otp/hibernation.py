"""Hibernation: an idle server gives up its task and most of its memory; the next message gives them back.

Asleep, a process is one flat tuple. Links, monitors, names and introspection do not notice, since it keeps its pid
and whatever it has of them. Flat means: numbers, strings and bytes as far as the server's own state allows
(`GenServer.pack`), because the garbage collector stops looking at tuples of such, and it is the collector's pauses
rather than the bytes that bound how many processes can be asleep.

`Dormitory` holds who is asleep; `Sweeper` finds who has been idle for long. The node owns both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from engine.otp.pid import Namespace, Pid, Via
from engine.otp.process import Blueprint, Process

if TYPE_CHECKING:
    from engine.otp.node import Node

Record = tuple[Any, ...]
"""(blueprint, state, time of start, messages handled, microseconds busy), then, if it has a single name, (namespace,
key), then, if it has anything that most have not, a dict of that, or only its server object if that has attributes
and there is nothing else. Blueprint and namespace are numbers on the shelf."""

_BLUEPRINT, _STATE, _STARTED, _HANDLED, _BUSY, _NAMESPACE, _KEY = range(7)


def _has_name(record: Record) -> bool:
    return len(record) >= _KEY + 1


def _extra_of(record: Record) -> dict[str, Any]:
    if len(record) % 2:
        return {}
    extra = record[-1]
    return extra if type(extra) is dict else {"behaviour": extra}


class Shelf:
    """Objects that many records share, by small number. A number is free again when its last user has gone."""

    def __init__(self) -> None:
        self._objects: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}
        self._users: dict[int, int] = {}
        self._next = 0

    def put(self, thing: object) -> int:
        number = self._numbers.get(id(thing))
        if number is None:
            number = self._next
            self._next += 1
            self._numbers[id(thing)] = number
            self._objects[number] = thing
            self._users[number] = 0
        self._users[number] += 1
        return number

    def get(self, number: int) -> Any:
        return self._objects[number]

    def drop(self, number: int) -> None:
        self._users[number] -= 1
        if not self._users[number]:
            del self._numbers[id(self._objects[number])], self._users[number], self._objects[number]


class Dormitory:
    """Who is asleep, as flat records."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._asleep: dict[Pid, Record] = {}
        self._shelf = Shelf()

    def __len__(self) -> int:
        return len(self._asleep)

    def __contains__(self, pid: object) -> bool:
        return pid in self._asleep

    def pids(self) -> list[Pid]:
        return list(self._asleep)

    def lay_down(self, process: Process) -> None:
        """Takes an idle process whose task is ending."""
        self._asleep[process.pid] = self._record(process)

    def take(self, pid: Pid) -> Process | None:
        """The process with this pid, no longer asleep and without a task yet; None when it does not sleep here."""
        record = self._asleep.pop(pid, None)
        if record is None:
            return None
        process = self._process(pid, record)
        self._shelf.drop(record[_BLUEPRINT])
        if _has_name(record):
            self._shelf.drop(record[_NAMESPACE])
        return process

    def look(self, pid: Pid) -> Process | None:
        """A likeness of a sleeper, to read from; it sleeps on."""
        record = self._asleep.get(pid)
        return None if record is None else self._process(pid, record)

    def blueprint(self, pid: Pid) -> Blueprint | None:
        """What sort of process sleeps under this pid."""
        record = self._asleep.get(pid)
        return None if record is None else self._shelf.get(record[_BLUEPRINT])

    def ages(self, kinds: Collection[str]) -> Iterator[tuple[Pid, str, float]]:
        """The sleepers of these kinds, each with the time of its start."""
        for pid, record in self._asleep.items():
            kind = self._shelf.get(record[_BLUEPRINT]).kind
            if kind in kinds:
                yield pid, kind, record[_STARTED]

    def is_plain(self, pid: Pid) -> bool:
        """Whether the sleeper ends on an exit signal without anything of its own to do."""
        record = self._asleep.get(pid)
        if record is None:
            return False
        extra = _extra_of(record)
        if "trap_exit" in extra or "tied" in extra:
            return False
        return not self._shelf.get(record[_BLUEPRINT]).trap_exit

    def _record(self, process: Process) -> Record:
        names = process.names
        single = len(names) == 1 and names[0].value is None
        extra = _extra(process, names_too=not single)
        base = (
            self._shelf.put(process.blueprint),
            process.behaviour.pack(process.state),
            process.started_at,
            process.handled,
            int(process.busy * 1e6),
        )
        name = (self._shelf.put(names[0].registry), names[0].key) if single else ()
        return base + name if extra is None else (*base, *name, extra)

    def _process(self, pid: Pid, record: Record) -> Process:
        blueprint: Blueprint = self._shelf.get(record[_BLUEPRINT])
        process = Process(self._node, pid, blueprint, (), None)
        process.started_at, process.handled = record[_STARTED], record[_HANDLED]
        process.busy = record[_BUSY] / 1e6
        for name, value in _extra_of(record).items():
            setattr(process, name, value)
        if _has_name(record):
            registry: Namespace = self._shelf.get(record[_NAMESPACE])
            process.names = [Via(registry, record[_KEY])]
        if process.behaviour is None:
            process.behaviour = blueprint.subject()
        process.state = process.behaviour.unpack(record[_STATE])
        return process


def _extra(process: Process, names_too: bool) -> Any:
    """What few processes have; None for the many."""
    found: dict[str, Any] = {}
    for name in ("links", "watchers", "monitoring", "refused"):
        value = getattr(process, name)
        if value:
            found[name] = value
    if names_too and process.names:
        found["names"] = process.names
    if process.trap_exit is not process.blueprint.trap_exit:
        found["trap_exit"] = process.trap_exit
    if process.tied is not process.blueprint.linked:
        found["tied"] = process.tied
    if process.peak > 1:
        found["peak"] = process.peak
    if not getattr(process.behaviour, "__dict__", None):
        return found or None
    found["behaviour"] = process.behaviour
    return found if len(found) > 1 else process.behaviour


class Sweeper:
    """Finds servers that nothing has happened to for `seconds`, and asks them to hibernate.

    A second chance in the place of a clock reading with each message: who has handled nothing since the sweep before
    is idle. So a server sleeps after at least one period of idleness, and at most two.
    """

    STEP = 500
    """Processes looked at before others may run."""

    def __init__(self, node: Node, seconds: float) -> None:
        self._node = node
        self._seconds = seconds
        self._seen: dict[Pid, int] = {}
        self._due: list[Pid] = []
        node.timers.after(seconds, self._sweep)

    def add(self, pid: Pid) -> None:
        self._seen[pid] = -1

    def _sweep(self) -> None:
        self._due = list(self._seen)
        self._step()

    def _step(self) -> None:
        for pid in self._due[-self.STEP :]:
            self._look(pid)
        del self._due[-self.STEP :]
        self._node.timers.after(0.0 if self._due else self._seconds, self._step if self._due else self._sweep)

    def _look(self, pid: Pid) -> None:
        process = self._node.table.get(pid)
        if process is None:
            del self._seen[pid]
        elif process.sleeper is not None and self._seen[pid] == process.handled:
            process.hibernate()
        else:
            self._seen[pid] = process.handled
