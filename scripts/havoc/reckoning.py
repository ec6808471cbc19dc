"""The reckoning: when all has come to rest, every task, log, output and row is read back and held against the record.

Reads through the HTTP API as a client does, and looks into the database for what no client sees.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any, LiteralString
from uuid import UUID

import httpx
import psycopg
import trio
from attrs import define, field

from scripts.havoc import judge
from scripts.havoc.disk import Quota
from scripts.havoc.record import TERMINAL, Order
from scripts.havoc.sight import Sight
from scripts.havoc.victim import Victim
from scripts.http_client import HttpClient, http_client

EXPLAIN_AFTER = 20.0
"""Seconds without rest, after which it is said what the unfinished tasks wait for."""
READERS = 16


@define(eq=False)
class Reckoning:
    """What became of the tasks."""

    victim: Victim
    complain: Callable[[str], None]
    quota: Quota | None
    sights: dict[UUID, Sight]
    statuses: Counter[str] = field(factory=Counter)
    attempts: int = 0
    outputs: int = 0
    lost_from_memory: int = 0
    interrupted: int = 0
    by_key: dict[str, UUID] = field(factory=dict)
    """The task of each idempotency key, as the database has it."""
    _files: httpx.AsyncClient = field(init=False)

    # --- rest -------------------------------------------------------------------------------------------

    async def come_to_rest(self, within: float) -> float:
        """Waits until no task is unfinished, in the journal's memory or in the database; how many seconds that took."""
        began = trio.current_time()
        explained = False
        async with httpx.AsyncClient(timeout=20.0, trust_env=False) as client:
            while (spent := trio.current_time() - began) < within:
                life = await self.victim.life()
                journal = (await client.get(f"{life.url}/readyz")).json()["journal"]
                late = await trio.to_thread.run_sync(_unfinished, self.victim) if journal["up"] else None
                if late == [] and not journal["buffered"]:
                    return spent
                if late and spent > EXPLAIN_AFTER and not explained:
                    explained = True
                    print(*(f"late: {row}" for row in late[:10]), sep="\n", flush=True)
                await trio.sleep(0.25)
        self.complain(f"tasks had no end {within:.0f} s after the last fault")
        return within

    # --- every order ------------------------------------------------------------------------------------

    async def read_all(self, orders: list[Order], within: float) -> None:
        """Reads every task that was ever acknowledged."""
        left = list(orders)
        self.by_key = await trio.to_thread.run_sync(_by_key, self.victim)
        with trio.move_on_after(within) as patience:
            async with httpx.AsyncClient(timeout=20.0, trust_env=False) as self._files, trio.open_nursery() as nursery:
                for _ in range(READERS):
                    nursery.start_soon(self._reader, left)
        if patience.cancelled_caught:
            self.complain(f"{len(left)} tasks could not be read within {within:.0f} s")

    async def _reader(self, left: list[Order]) -> None:
        life = await self.victim.life()
        async with http_client(life.url, 1) as client:
            while left:
                await self._check(client, left.pop())

    async def _check(self, client: HttpClient, order: Order) -> None:
        found: list[UUID] = []
        for task_id in order.ids():
            status, answer = await client.get(f"/api/tasks/{task_id}")
            if status == 200:
                found.append(task_id)
                await self._check_task(client, order, task_id, answer)
            elif status != 404:
                self.complain(f"task {task_id}: GET was answered {status}")
            elif (sight := self.sights.get(task_id)) is not None and not found:
                self._complain_all(task_id, judge.of_vanished(sight, self.victim.timeline))
        if not found:
            found = await self._under_its_key(client, order)
        self._complain_all(order.task_id, judge.of_acks(order, found, self.victim.timeline))
        self.lost_from_memory += not found
        if len(order.acks) > 1:
            await self._ask_again(client, order, found)

    async def _under_its_key(self, client: HttpClient, order: Order) -> list[UUID]:
        """The task that the order's key made before any that its client heard of: one whose 202 was lost in a crash,
        and which a later one, acknowledged in an outage, turned out to be (D8)."""
        task_id = self.by_key.get(order.wish.key)
        if task_id is None:
            return []
        await self._check_task(client, order, task_id, (await client.get(f"/api/tasks/{task_id}"))[1])
        return [task_id]

    async def _check_task(self, client: HttpClient, order: Order, task_id: UUID, task: dict[str, Any]) -> None:
        status, timeline = task["status"], self.victim.timeline
        if status not in TERMINAL:
            self.complain(f"task {task_id} is {status}")
            return
        log = (await client.get(f"/api/tasks/{task_id}/events"))[1]["events"]
        self.statuses[status] += 1
        self.attempts += sum(row["type"] == "started" for row in log)
        self.interrupted += sum(row["type"] == "reset" for row in log)
        store_failed = self.quota is not None and self.quota.was_full(task["created_at"], task["completed_at"])
        self._complain_all(task_id, judge.of_log(status, log))
        self._complain_all(task_id, judge.of_attempts(log))
        self._complain_all(task_id, judge.of_outcome(order.wish, task, store_failed))
        self._complain_all(task_id, judge.of_cancellation(order, status, timeline))
        if (sight := self.sights.get(task_id)) is not None:
            self._complain_all(task_id, judge.of_sight(sight, status, log, timeline))
        if status == "completed":
            for output in task["outputs"]:
                await self._check_output(task_id, output)

    async def _check_output(self, task_id: UUID, output: dict[str, Any]) -> None:
        """The file is there, byte by byte."""
        life = await self.victim.life()
        answer = await self._files.get(life.url + output["content_url"])
        self.outputs += 1
        if answer.status_code != 200 or hashlib.sha256(answer.content).hexdigest() != output["sha256"]:
            self.complain(f"task {task_id}: output {output['index']} is not what it was ({answer.status_code})")

    async def _ask_again(self, client: HttpClient, order: Order, found: list[UUID]) -> None:
        """The key of a task that is there answers that task."""
        if not found:
            return
        status, answer = await client.post("/api/tasks", {**order.wish.body, "idempotency_key": order.wish.key})
        if status != 202 or UUID(answer["task_id"]) not in found:
            self.complain(f"task {found[0]}: its key answers {status} {answer}")

    def _complain_all(self, task_id: UUID, problems: Any) -> None:
        for problem in problems:
            self.complain(f"task {task_id}: {problem}")

    # --- the database -----------------------------------------------------------------------------------

    def leftovers(self) -> list[str]:
        """Complaints on what is left half done once every task has ended. Blocking."""
        with psycopg.connect(self.victim.conninfo(), autocommit=True) as connection:
            rows = [(name, connection.execute(question).fetchone()) for name, question in LEFTOVERS.items()]
        return [f"{row[0]} {name} are in the database" for name, row in rows if row and row[0]]


LEFTOVERS: dict[str, LiteralString] = {
    "unfinished tasks": "SELECT count(*) FROM tasks WHERE status IN ('queued', 'processing')",
    "unfinished jobs of tasks": """
        SELECT count(*) FROM jobs
        WHERE task_id IS NOT NULL AND state NOT IN ('completed', 'cancelled', 'discarded')
    """,
    "jobs of tasks that are not there": """
        SELECT count(*) FROM jobs j
        WHERE task_id IS NOT NULL AND NOT EXISTS (SELECT FROM tasks t WHERE t.id = j.task_id)
    """,
    "jobs that ended otherwise than their task": """
        SELECT count(*) FROM jobs j JOIN tasks t ON t.id = j.task_id AND t.job_id = j.id
        WHERE (t.status, j.state) NOT IN
            (('completed', 'completed'), ('failed', 'discarded'), ('cancelled', 'cancelled'))
    """,
    "jobs with too many attempts": "SELECT count(*) FROM jobs WHERE attempt > max_attempts",
    "tasks whose row is not the end of their log": """
        SELECT count(*) FROM tasks t
        WHERE version IS DISTINCT FROM (SELECT max(seq) FROM task_events e WHERE e.task_id = t.id)
    """,
    "logs with gaps": """
        SELECT count(*) FROM (SELECT FROM task_events GROUP BY task_id HAVING count(*) <> max(seq)) AS gaps
    """,
    "snapshots ahead of their log": """
        SELECT count(*) FROM task_snapshots s
        WHERE seq > (SELECT coalesce(max(seq), 0) FROM task_events e WHERE e.task_id = s.task_id)
    """,
    "conflicts of rows": "SELECT count(*) FROM task_conflicts",
}


def _by_key(victim: Victim) -> dict[str, UUID]:
    with psycopg.connect(victim.conninfo(), autocommit=True) as connection:
        rows = connection.execute("SELECT idempotency_key, id FROM tasks WHERE idempotency_key IS NOT NULL").fetchall()
    return dict(rows)


def _unfinished(victim: Victim) -> list[tuple[Any, ...]] | None:
    """The tasks that have not ended, with what their jobs wait for; None while the database cannot be asked."""
    question = """
        SELECT t.id, t.status, j.state, j.attempt, j.rescues, j.lease_expires_at - now(), j.scheduled_at - now()
        FROM tasks t LEFT JOIN jobs j ON j.task_id = t.id WHERE t.status IN ('queued', 'processing')
    """
    try:
        with psycopg.connect(victim.conninfo(), autocommit=True) as connection:
            return connection.execute(question).fetchall()
    except psycopg.OperationalError:
        return None
