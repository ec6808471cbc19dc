"""What clients do wrong, logged: one line a connection, with the address and never a payload, and not too many.

A token bucket a kind of fault: a flood of one kind hides no other, and what was left out is counted. Imports nothing
of ours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio
from attrs import define, field

log = logging.getLogger("elwift.endpoint")

BURST = 20.0
RATE = 5.0
"""Lines a second, a kind, once the burst is used up."""


@define
class _Bucket:
    tokens: float
    filled_at: float
    left_out: int = 0

    def take(self, now: float) -> bool:
        self.tokens = min(BURST, self.tokens + (now - self.filled_at) * RATE)
        self.filled_at = now
        if self.tokens < 1:
            self.left_out += 1
            return False
        self.tokens -= 1
        return True


@define
class FaultLog:
    """`counts` has every fault, logged or not, by kind; metrics read it."""

    clock: Callable[[], float] = trio.current_time
    counts: dict[str, int] = field(factory=dict)
    _buckets: dict[str, _Bucket] = field(factory=dict, init=False)

    def client(self, kind: str, client: str, detail: str = "") -> None:
        """A fault of a client's: `kind` is one of a fixed set, `detail` our own words."""
        self._note(logging.WARNING, kind, client, detail, None)

    def ours(self, kind: str, client: str, error: BaseException) -> None:
        """A fault of our own, met while serving this client; with its traceback."""
        self._note(logging.ERROR, kind, client, repr(type(error).__name__), error)

    def _note(self, level: int, kind: str, client: str, detail: str, error: BaseException | None) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        now = self.clock()
        bucket = self._buckets.setdefault(kind, _Bucket(BURST, now))
        if not bucket.take(now):
            return
        left_out, bucket.left_out = bucket.left_out, 0
        also = f" ({left_out} more like it were not logged)" if left_out else ""
        log.log(level, "%s from %s: %s%s", kind, client or "?", detail, also, exc_info=error)
