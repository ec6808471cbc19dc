"""Typed events of a node's life, for telemetry. When nobody listens an event costs one test of a bool.

Emitted by the engine through `node.tracer`; users attach with `attach`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import TypeAlias

from attrs import frozen

from engine.otp.context import current_node
from engine.otp.pid import Pid
from engine.otp.preempt_reports import Stalled
from engine.otp.reasons import Reason


@frozen
class Spawned:
    pid: Pid
    kind: str
    parent: Pid


@frozen
class Exited:
    pid: Pid
    kind: str
    reason: Reason


@frozen
class Restarted:
    """A supervisor started a child again; `old` was the pid before."""

    supervisor: Pid
    id: object
    old: Pid | None
    pid: Pid


@frozen
class CallTimedOut:
    server: Pid
    request: str
    seconds: float


@frozen
class Hibernated:
    pid: Pid
    kind: str


@frozen
class Revived:
    pid: Pid
    kind: str


@frozen
class Refused:
    """A bounded mailbox was full."""

    pid: Pid
    kind: str


@frozen
class ZombieDeclared:
    pid: Pid
    kind: str


Event: TypeAlias = (
    Spawned | Exited | Restarted | CallTimedOut | Stalled | Hibernated | Revived | Refused | ZombieDeclared
)
Handler: TypeAlias = Callable[[Event], object]

logger = logging.getLogger(__name__)


class Tracer:
    """Handlers of one node, by kind of event. `on` is False while there is none: ask it before making an event."""

    def __init__(self) -> None:
        self.on = False
        self._handlers: dict[type, tuple[Handler, ...]] = {}

    def attach(self, handler: Handler, kinds: Collection[type[Event]]) -> Callable[[], None]:
        for kind in kinds:
            self._handlers[kind] = (*self._handlers.get(kind, ()), handler)
        self.on = True

        def detach() -> None:
            for kind in kinds:
                self._handlers[kind] = tuple(h for h in self._handlers.get(kind, ()) if h is not handler)
            self.on = any(self._handlers.values())

        return detach

    def emit(self, event: Event) -> None:
        for handler in self._handlers.get(type(event), ()):
            try:
                handler(event)
            except Exception:
                logger.exception("a trace handler failed on %r", event)


ALL_KINDS: tuple[type[Event], ...] = (
    Spawned, Exited, Restarted, CallTimedOut, Stalled, Hibernated, Revived, Refused, ZombieDeclared,
)  # fmt: skip


def attach(handler: Handler, kinds: Collection[type[Event]] = ALL_KINDS) -> Callable[[], None]:
    """Calls `handler` with each event of `kinds` on the current node; the answer detaches it."""
    return current_node().tracer.attach(handler, kinds)
