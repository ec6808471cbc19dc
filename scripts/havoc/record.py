"""What was said in one run: data, and the one rule on what may be taken back.

A statement is durable or `memory`. What is durable stands for ever. What was said from memory may be undone by the
death of the process that said it, and by nothing else; and not even by that, once the same process has shown that
nothing waited in memory any more (`/readyz`: the journal is up and empty).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from attrs import define, field, frozen

TERMINAL = {"completed": "task_completed", "failed": "error", "cancelled": "task_cancelled"}
"""The statuses in which a task ends, and the event that tells each."""


@frozen
class Said:
    """A statement of the server in one of its lives. `at`: seconds on the run's clock."""

    life: int
    at: float
    durable: bool


@frozen
class Wish:
    """One thing that a client wants, and all that may come of it.

    `text`: what a completed task has generated. `outputs`: the SHA-256 of each file. `ends`: the statuses that are
    right. `failure`: the code of a failure that was asked for.
    """

    key: str
    body: Mapping[str, Any]
    ends: frozenset[str] = frozenset({"completed"})
    text: str = ""
    outputs: tuple[str, ...] = ()
    failure: str = ""


@frozen
class Ack:
    """A 202: the task's id, and how it was said."""

    task_id: UUID
    said: Said


@frozen
class Told:
    """A durable event as one client was told it."""

    seq: int
    event: str
    payload: Mapping[str, Any] = field(repr=False)
    said: Said

    def same(self, other: Told) -> bool:
        """Whether both tell the same, but for the word on durability."""
        return self.event == other.event and _content(self.payload) == _content(other.payload)


def _content(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Without the word on durability; times to the microsecond, links without their signature, which is renewed."""
    plain = {name: value for name, value in payload.items() if name != "durability"}
    return {name: _plain(value) for name, value in plain.items()}


def _plain(value: Any) -> Any:
    match value:
        case float():
            return round(value, 5)
        case str():
            return value.partition("?")[0]
        case dict():
            return {name: _plain(each) for name, each in value.items() if name != "expires_at"}
        case list():
            return [_plain(each) for each in value]
    return value


@define
class Timeline:
    """The lives of the server: when each ended, and when its journal was last seen to hold nothing."""

    ended: dict[int, float] = field(factory=dict)
    quiet: dict[int, float] = field(factory=dict)

    def holds(self, said: Said) -> bool:
        """Whether a statement must be true in the end."""
        if said.durable or said.life not in self.ended:
            return True
        return self.quiet.get(said.life, float("-inf")) > said.at


@define
class Order:
    """A wish on its way: what was answered to it. `cancelled` holds the answers that said so."""

    wish: Wish
    acks: list[Ack] = field(factory=list)
    cancelled: list[Said] = field(factory=list)

    @property
    def task_id(self) -> UUID:
        """The task of the last answer."""
        return self.acks[-1].task_id

    def ids(self) -> list[UUID]:
        return list(dict.fromkeys(ack.task_id for ack in self.acks))


def percentile(values: Iterable[float], percent: int) -> float:
    """0.0 when there are none."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 3) if ordered else 0.0
