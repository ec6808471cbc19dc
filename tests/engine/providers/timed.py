"""A response whose pieces come at their times, for tests on a clock of their own."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping
from typing import Any

import trio
from attrs import define, field

from engine.http.exchange import Overdue
from engine.http.transport import EXCHANGE


@define
class Reads:
    """What the transport gives a reader beside the body."""

    deadline: float = math.inf


@define
class Answer:
    """A response whose pieces come at their times: all that are due at once where it `gathers`, else one by one."""

    pieces: list[tuple[float, bytes]]
    gathers: bool = True
    reads: Reads = field(factory=Reads)
    status_code: int = 200
    headers: Mapping[str, str] = field(factory=dict)

    @property
    def extensions(self) -> Mapping[str, Any]:
        return {EXCHANGE: self.reads} if self.gathers else {}

    async def aiter_bytes(self) -> AsyncIterator[bytes]:
        while self.pieces:
            await trio.sleep_until(min(self.pieces[0][0], self.reads.deadline))
            if trio.current_time() < self.pieces[0][0]:
                raise Overdue
            due = [piece for at, piece in self.pieces if at <= trio.current_time()]
            del self.pieces[: len(due) if self.gathers else 1]
            yield b"".join(due if self.gathers else due[:1])

    async def aclose(self) -> None:
        return
