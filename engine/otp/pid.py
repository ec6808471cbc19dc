"""Addresses: process identifiers, references of monitors, and names that a registry resolves.

May import nothing but `context`; `node` says which living process an address means.
"""

from __future__ import annotations

import itertools
from typing import Any, Protocol, TypeAlias

from attrs import frozen

from engine.otp.context import current_node


class Pid(int):
    """The address of one process, never used again for another one.

    An integer underneath: it hashes and compares at C speed, and the garbage collector does not track it, which
    counts when a million of them are asleep.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<0.{int(self)}>"

    __str__ = __repr__
    __format__ = object.__format__

    @classmethod
    def parse(cls, text: str) -> Pid:
        """The pid that `str` showed as "<0.123>". Raises ValueError."""
        if not (text.startswith("<0.") and text.endswith(">")):
            raise ValueError(f"not a pid: {text!r}")
        return cls(text[3:-1])

    @property
    def alive(self) -> bool:
        """Whether the process lives (asleep counts as living) on the current node."""
        return current_node().is_alive(self)


ROOT = Pid(0)
"""Parent of processes that no process started; the sender when the node itself ends them."""


class Ref(int):
    """Names one monitor or one timer; unique in this operating system process."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"#Ref<{int(self)}>"


class Namespace(Protocol):
    """A table of names, as the engine sees it: the node's own, or a registry."""

    def claim(self, key: Any, pid: Pid, value: Any = None) -> Pid | None: ...

    def forget(self, key: Any, pid: Pid) -> object: ...

    def resolve(self, key: Any) -> Pid | None: ...


@frozen
class Via:
    """A name that `registry` keeps. With `value`, registering puts that value beside the key."""

    registry: Namespace
    key: Any
    value: Any = None


Address: TypeAlias = Pid | str | Via

_serials = itertools.count(1)


def new_pid() -> Pid:
    return Pid(next(_serials))


def new_ref() -> Ref:
    return Ref(next(_serials))
