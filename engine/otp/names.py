"""Tables of names: who owns a key. `UniqueNames` gives a key to one process, `DuplicateNames` to any number.

Plain data structures; `node` keeps one for local names, `registry` puts its interface on top of them. A process
remembers its own keys and has them forgotten, in the step in which it ends, before anybody hears of its end.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

from engine.otp.pid import Pid

Entry = tuple[Hashable, Pid, Any]


class UniqueNames:
    """At most one owner a key."""

    def __init__(self) -> None:
        self._owner: dict[Hashable, Pid] = {}
        self._value: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return len(self._owner)

    def claim(self, key: Hashable, pid: Pid, value: Any = None) -> Pid | None:
        """Gives the key to `pid`; or answers who has it already."""
        holder = self._owner.get(key)
        if holder is not None:
            return holder
        self._owner[key] = pid
        if value is not None:
            self._value[key] = value
        return None

    def forget(self, key: Hashable, pid: Pid) -> bool:
        """Frees the key if `pid` owns it."""
        if self._owner.get(key) != pid:
            return False
        del self._owner[key]
        self._value.pop(key, None)
        return True

    def whereis(self, key: Hashable) -> Pid | None:
        return self._owner.get(key)

    resolve = whereis

    def lookup(self, key: Hashable) -> list[tuple[Pid, Any]]:
        pid = self._owner.get(key)
        return [] if pid is None else [(pid, self._value.get(key))]

    def update(self, key: Hashable, value: Any) -> None:
        """Replaces the value of a key that is owned."""
        self._value[key] = value

    def entries(self) -> Iterator[Entry]:
        for key, pid in self._owner.items():
            yield key, pid, self._value.get(key)

    def clear(self) -> None:
        self._owner.clear()
        self._value.clear()


class DuplicateNames:
    """Any number of entries a key, also several of one process, in the order in which they came."""

    def __init__(self) -> None:
        self._entries: dict[Hashable, list[tuple[Pid, Any]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def claim(self, key: Hashable, pid: Pid, value: Any = None) -> Pid | None:
        self._entries.setdefault(key, []).append((pid, value))
        self._count += 1
        return None

    def forget(self, key: Hashable, pid: Pid) -> bool:
        """Removes all entries of `pid` under the key."""
        return bool(self.forget_matching(key, pid, lambda _: True))

    def forget_matching(self, key: Hashable, pid: Pid, matches: Any) -> int:
        """Removes the entries of `pid` under the key whose value matches; answers how many they were."""
        before = self._entries.get(key, [])
        after = [entry for entry in before if entry[0] != pid or not matches(entry[1])]
        if after:
            self._entries[key] = after
        else:
            self._entries.pop(key, None)
        self._count -= len(before) - len(after)
        return len(before) - len(after)

    def lookup(self, key: Hashable) -> list[tuple[Pid, Any]]:
        return list(self._entries.get(key, ()))

    def entries(self) -> Iterator[Entry]:
        for key, found in self._entries.items():
            for pid, value in found:
                yield key, pid, value

    def clear(self) -> None:
        self._entries.clear()
        self._count = 0
