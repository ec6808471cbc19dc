"""An observer of /readyz: when nothing was in memory alone, when the database counted as away, and whether the word
was honest.

Its quiet moments take the excuse from what was said from memory before: see `record.Timeline`.
"""

from __future__ import annotations

import time
from typing import Any

import httpx
import trio
from attrs import define, field

from scripts.havoc.victim import Life, Victim

EVERY = 0.2


@define(eq=False)
class Readiness:
    """`degraded`: the Unix times at which the journal was said to keep entries in memory; `errors`: why, it said."""

    victim: Victim
    degraded: list[float] = field(factory=list)
    most_buffered: int = 0
    statuses: dict[str, int] = field(factory=dict)
    errors: list[str] = field(factory=list)

    def was_degraded(self, began: float, ended: float) -> bool:
        """Whether it was said between the two (Unix seconds)."""
        return any(began <= at <= ended for at in self.degraded)

    async def watch(self) -> None:
        """Until cancelled."""
        async with httpx.AsyncClient(timeout=5.0, trust_env=False) as client:
            while True:
                await self.look(client)
                await trio.sleep(EVERY)

    async def look(self, client: httpx.AsyncClient) -> dict[str, Any] | None:
        """The journal's state now; None: no answer."""
        life, at = await self.victim.life(), trio.current_time()
        try:
            answer = (await client.get(f"{life.url}/readyz")).json()
        except (httpx.TransportError, ValueError):
            return None
        self.note(life, at, answer)
        journal: dict[str, Any] = answer["journal"]
        return journal

    def note(self, life: Life, at: float, answer: dict[str, Any]) -> None:
        """Takes an answer to a question that was put at `at`."""
        journal = answer["journal"]
        self.statuses[answer["status"]] = self.statuses.get(answer["status"], 0) + 1
        self.most_buffered = max(self.most_buffered, journal["buffered"])
        if journal["up"] and not journal["buffered"]:
            self.victim.timeline.quiet[life.number] = at
        if not journal["up"]:
            self.degraded.append(time.time())
            words = (journal["last_error"] or "").partition("\n")[0][:100]
            if words not in self.errors:
                self.errors.append(words)
