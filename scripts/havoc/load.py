"""The load: clients that create tasks and insist until they are acknowledged; some ask again later, some cancel.

Every answer is put down to the life of the server that gave it. What may not be answered at all (a 500, a refusal that
nothing explains) is a complaint at once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx
import trio
from attrs import define, evolve, field

from scripts.havoc import judge
from scripts.havoc.record import Ack, Order, Said
from scripts.havoc.victim import Life, Victim
from scripts.havoc.wishes import wish

AGAIN = frozenset({429, 500, 502, 503})
"""Answers after which a client tries again."""
PATIENCE = 15.0
"""Seconds that a client waits for an answer. A server that lives answers a POST in little more than two."""


@define(eq=False)
class Load:
    """`orders` is what came of it. `under_way`: the fault of the moment."""

    victim: Victim
    chance: random.Random
    complain: Callable[[str], None]
    files: bool
    on_accept: Callable[[UUID], None] = lambda task_id: None
    orders: list[Order] = field(factory=list)
    answers: Counter[str] = field(factory=Counter)
    seconds: list[float] = field(factory=list)
    """What each 202 took."""
    under_way: str = ""
    over: bool = False

    async def post_tasks(self, nursery: trio.Nursery) -> None:
        """One client, until the load is over."""
        async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
            while not self.over:
                order = Order(wish(self.chance, self.files))
                if await self.insist(client, order):
                    self.orders.append(order)
                    self.on_accept(order.task_id)
                    self._later(nursery, order)
                await trio.sleep(self.chance.uniform(0.0, 0.15))

    def _later(self, nursery: trio.Nursery, order: Order) -> None:
        match self.chance.random():
            case dice if dice < 0.08:
                order.wish = evolve(order.wish, ends=order.wish.ends | {"cancelled"})
                nursery.start_soon(self._cancel, order)
            case dice if dice < 0.20:
                nursery.start_soon(self._repeat, order)

    # --- creating ---------------------------------------------------------------------------------------

    async def insist(self, client: httpx.AsyncClient, order: Order) -> bool:
        """Sends the order until it is acknowledged; False: the load was over before, or it was refused for good."""
        while not self.over:
            life = await self.victim.life()
            if (answer := await self._post(client, life, "/api/tasks", order)) is not None:
                if answer.status_code == 202:
                    self._acknowledged(order, answer.json(), life)
                    return True
                self._refused(order, answer)
                if answer.status_code not in AGAIN:
                    return False
            await trio.sleep(self.chance.uniform(0.05, 0.3))
        return False

    async def _post(self, client: httpx.AsyncClient, life: Life, path: str, order: Order) -> httpx.Response | None:
        began = trio.current_time()
        headers = {"Idempotency-Key": order.wish.key}
        try:
            answer = await client.post(life.url + path, json=order.wish.body, headers=headers)
        except httpx.TransportError as problem:
            self.answers[type(problem).__name__] += 1
            if isinstance(problem, httpx.TimeoutException) and not self.under_way.startswith("stop_server"):
                self.complain(f"a POST got no answer in {PATIENCE:.0f} s ({self.under_way or 'no fault'})")
            return None
        self.answers[str(answer.status_code)] += 1
        if answer.status_code == 202:
            self.seconds.append(trio.current_time() - began)
        return answer

    def _acknowledged(self, order: Order, answer: dict[str, Any], life: Life) -> None:
        said = Said(life.number, trio.current_time(), answer["durability"] == "durable")
        order.acks.append(Ack(UUID(answer["task_id"]), said))
        if self.victim.lives_still(life):
            self.victim.accepted()

    def _refused(self, order: Order, answer: httpx.Response) -> None:
        code = answer.json().get("code", "") if "json" in answer.headers.get("content-type", "") else ""
        self.answers[f"{answer.status_code} {code}"] += 1
        if not judge.fair(answer.status_code, code, bool(order.acks), self.under_way):
            self.complain(
                f"POST was answered {answer.status_code} during {self.under_way or 'no fault'}: {answer.text[:300]}"
            )

    # --- afterwards -------------------------------------------------------------------------------------

    async def _repeat(self, order: Order) -> None:
        """The same order again, as a client does that forgot what it was answered."""
        await trio.sleep(self.chance.choice((0.0, 0.5, 5.0, 20.0)) * self.chance.random())
        async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
            await self.insist(client, order)

    async def _cancel(self, order: Order) -> None:
        """Cancels the task, and asks again when no answer comes: it is idempotent."""
        await trio.sleep(self.chance.uniform(0.0, 1.5))
        async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
            while not self.over:
                life = await self.victim.life()
                try:
                    answer = await client.post(f"{life.url}/api/tasks/{order.task_id}/cancel")
                except httpx.TransportError:
                    answer = None
                if answer is not None and answer.status_code in (200, 404):
                    if answer.status_code == 200 and answer.json()["status"] == "cancelled":
                        durable = answer.json().get("durability") != "memory"
                        order.cancelled.append(Said(life.number, trio.current_time(), durable))
                    return
                await trio.sleep(self.chance.uniform(0.05, 0.3))
