"""Breaks a server of its own at random under load, then checks that nothing acknowledged was lost.

Load: tasks of the model `simulate` are created over HTTP, each under an idempotency key that is repeated until an
answer comes; some are watched on sockets that resume by `last_seq`. Meanwhile the server and its PostgreSQL are
killed, stopped, cut off and refused writes. In the end every acknowledged id must be there with a gap-free log that
ends in one terminal event, and every watcher must have seen that log.

What was acknowledged as in memory only may be lost with the process, and is counted apart. Prints a table, and one
JSON object a line; exit status 1 when a promise was broken. Bounded in time and count.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import trio
from attrs import define, field

from scripts.chaos_faults import FAULTS, KILLS, OUTAGES, Victim, plan
from scripts.client import ChannelClosed, PhoenixSocket, Refused, connect
from scripts.server import ServerFailed

EXPLAIN_AFTER = 20.0
"""Seconds after the last fault, after which it is said what the unfinished tasks wait for."""
CHECK_WITHIN = 900.0
"""Seconds for reading all the logs."""
TERMINAL = {"completed": "task_completed", "failed": "error", "cancelled": "task_cancelled"}
AGAIN = frozenset({429, 500, 502, 503})
"""Answers after which a client tries again."""


@define
class Acknowledged:
    """A task as its client knows it. `life`: the life of the server in which the last 202 came."""

    task_id: UUID
    durable: bool
    life: int


@define
class Watched:
    """What one watcher saw: durable events by sequence number, in the order of arrival."""

    seqs: list[int] = field(factory=list)
    ended: str | None = None
    rewound: int = 0
    life: int = 0
    """The life of the server in which the last of them came."""


@define(eq=False)
class Run:
    """Everything that is known of one run."""

    victim: Victim
    chance: random.Random
    posters: int
    acknowledged: dict[str, Acknowledged] = field(factory=dict)
    watched: dict[UUID, Watched] = field(factory=dict)
    faults: Counter[str] = field(factory=Counter)
    answers: Counter[str] = field(factory=Counter)
    broken: list[str] = field(factory=list)
    outages: set[int] = field(factory=set)
    """Lives of the server in which the database was away: what was said then may have been in memory only."""
    accepting_after: list[float] = field(factory=list)
    """Seconds from each kill of the server to the next 202."""
    over: bool = False
    watchers: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(40))

    def violated(self, promise: str) -> None:
        self.broken.append(promise)
        print(f"BROKEN: {promise}", file=sys.stderr)


# --- load ---------------------------------------------------------------------------------------------------


def _body(chance: random.Random) -> dict[str, Any]:
    steps = chance.randint(1, 15)
    given: dict[str, Any] = {
        "steps": steps,
        "interval": round(chance.uniform(0.0, 0.2), 3),
        "text": chance.random() < 0.5,
    }
    if chance.random() < 0.1:
        given["crash_at"] = chance.randint(1, steps)
    elif chance.random() < 0.1:
        given["fail_at"] = chance.randint(1, steps)
    return {"prompt": f"chaos {chance.random()}", "model": "simulate", "input": given}


async def post_tasks(run: Run, nursery: trio.Nursery) -> None:
    """One client: creates a task, insists until it is acknowledged, and goes on."""
    async with httpx.AsyncClient(timeout=10.0) as client:
        while not run.over:
            key, body = str(uuid4()), _body(run.chance)
            task_id = await _insist(run, client, key, body)
            if task_id is not None and run.chance.random() < 0.25 and run.watchers.available_tokens:
                nursery.start_soon(watch, run, task_id)
            await trio.sleep(run.chance.uniform(0.0, 0.15))


async def _insist(run: Run, client: httpx.AsyncClient, key: str, body: dict[str, Any]) -> UUID | None:
    while not run.over:
        await run.victim.up()
        life = run.victim.lives
        try:
            url = f"{run.victim.url}/api/tasks"
            answer = await client.post(url, json=body, headers={"Idempotency-Key": key})
        except httpx.TransportError as problem:
            run.answers[type(problem).__name__] += 1
        else:
            run.answers[str(answer.status_code)] += 1
            if answer.status_code == 202:
                return _take(run, key, answer.json(), life)
            if answer.status_code not in AGAIN:
                run.violated(f"POST was answered {answer.status_code}: {answer.text[:300]}")
                return None
        await trio.sleep(run.chance.uniform(0.05, 0.3))
    return None


def _take(run: Run, key: str, answer: dict[str, Any], life: int) -> UUID:
    task_id, durable = UUID(answer["task_id"]), answer["durability"] == "durable"
    known = run.acknowledged.get(key)
    if known is not None and known.task_id != task_id and known.durable:
        run.violated(f"key {key} made two tasks: {known.task_id} and {task_id}")
    run.acknowledged[key] = Acknowledged(task_id, durable, life)
    if len(run.accepting_after) < len(run.victim.killed_at):
        run.accepting_after.append(trio.current_time() - run.victim.killed_at[-1])
    return task_id


async def watch(run: Run, task_id: UUID) -> None:
    """Follows one task over however many sockets it takes, resuming where it was."""
    seen = run.watched.setdefault(task_id, Watched())
    async with run.watchers:
        while seen.ended is None:
            await run.victim.up()
            try:
                async with connect(run.victim.url) as socket:
                    run.victim.sockets.add(socket)
                    try:
                        await _follow(run, socket, task_id, seen)
                    finally:
                        run.victim.sockets.discard(socket)
            except (OSError, trio.TooSlowError, ChannelClosed, Refused, ExceptionGroup, trio.BrokenResourceError):
                run.answers["socket lost"] += 1
            except Exception as problem:
                if "websocket" not in type(problem).__module__:
                    raise
                run.answers[type(problem).__name__] += 1
            await trio.sleep(run.chance.uniform(0.05, 0.3))


async def _follow(run: Run, socket: PhoenixSocket, task_id: UUID, seen: Watched) -> None:
    last = seen.seqs[-1] if seen.seqs else 0
    channel = await socket.join(f"task:{task_id}", {"last_seq": last})
    answer = channel.response
    if answer.get("task") is None:
        seen.ended = "gone"
        return
    if answer.get("reset"):
        seen.rewound += 1
        seen.seqs = list(range(1, answer["seq"] + 1))
        _note_end(seen, answer["task"]["status"])
    for missed in answer["events"]:
        _saw(run, task_id, seen, missed["event"], missed["payload"])
    _note_end(seen, answer["task"]["status"] if not answer.get("has_more") else "")
    async for message in channel:
        _saw(run, task_id, seen, message.event, message.payload)


def _note_end(seen: Watched, status: str) -> None:
    if status in TERMINAL:
        seen.ended = TERMINAL[status]


def _saw(run: Run, task_id: UUID, seen: Watched, event: str, payload: dict[str, Any]) -> None:
    if "seq" not in payload or event == "durable":
        return
    last = seen.seqs[-1] if seen.seqs else 0
    if payload["seq"] != last + 1:
        run.violated(f"a watcher of {task_id} got event {payload['seq']} after {last}")
    seen.seqs.append(payload["seq"])
    seen.life = run.victim.lives
    if event in TERMINAL.values() and not payload.get("will_retry_at"):
        seen.ended = event


# --- breaking -----------------------------------------------------------------------------------------------


async def break_things(run: Run, planned: list[str], pause: float) -> None:
    """One fault after the other, each after a pause in which work goes on, sometimes hardly any."""
    for number, name in enumerate(planned, 1):
        await trio.sleep(run.chance.choice([0.05, 0.5, 1.0]) * pause * run.chance.uniform(0.2, 1.8))
        print(f"[{number}/{len(planned)}] {name}  ({len(run.acknowledged)} acknowledged)", file=sys.stderr)
        fault, _ = FAULTS[name]
        run.faults[name] += 1
        if name in OUTAGES:
            run.outages.add(run.victim.lives)
        try:
            await fault(run.victim, run.chance)
        except ServerFailed as problem:
            run.violated(f"the server did not come back after {name}: {problem}")
        if not run.victim.alive:
            run.violated(f"the server is dead after {name}")
            await run.victim.start()


# --- the reckoning ------------------------------------------------------------------------------------------


@define
class Reckoning:
    """What became of the tasks."""

    statuses: Counter[str] = field(factory=Counter)
    lost_from_memory: int = 0
    seen_from_memory: int = 0
    settled_in: float = 0.0


async def come_to_rest(run: Run, within: float) -> float:
    """Waits until no task is unfinished, in the journal's memory or in the database; how many seconds that took."""
    began = trio.current_time()
    explained = False
    async with httpx.AsyncClient(base_url=run.victim.url, timeout=20.0) as client:
        while (spent := trio.current_time() - began) < within:
            journal = (await client.get("/readyz")).json()["journal"]
            late = await trio.to_thread.run_sync(_unfinished, run.victim) if journal["up"] else None
            if late == [] and not journal["buffered"]:
                return spent
            if late and spent > EXPLAIN_AFTER and not explained:
                explained = True
                print(*("late: " + str(row) for row in late[:10]), sep="\n", file=sys.stderr)
            await trio.sleep(0.25)
    run.violated(f"tasks had no end {within:.0f} s after the last fault")
    return within


def _unfinished(victim: Victim) -> list[tuple[Any, ...]] | None:
    """The tasks that have not ended, with what their jobs wait for; None while the database cannot be asked."""
    question = """
        SELECT t.id, t.status, j.state, j.attempt, j.rescues, j.lease_expires_at - now(), j.scheduled_at - now()
        FROM tasks t LEFT JOIN jobs j ON j.task_id = t.id WHERE t.status IN ('queued', 'processing')
    """
    try:
        with psycopg.connect(_application_database(victim), autocommit=True) as connection:
            return connection.execute(question).fetchall()
    except psycopg.OperationalError:
        return None


async def reckon(run: Run, found: Reckoning, within: float) -> None:
    """Reads the log of every acknowledged task."""
    limit = trio.CapacityLimiter(16)
    with trio.move_on_after(within) as patience:
        async with httpx.AsyncClient(base_url=run.victim.url, timeout=20.0) as client, trio.open_nursery() as nursery:
            for known in run.acknowledged.values():
                nursery.start_soon(_check_task, run, client, limit, known, found)
    if patience.cancelled_caught:
        done = sum(found.statuses.values()) + found.lost_from_memory
        run.violated(f"{len(run.acknowledged) - done} tasks could not be checked within {within:.0f} s")


async def _check_task(
    run: Run, client: httpx.AsyncClient, limit: trio.CapacityLimiter, known: Acknowledged, found: Reckoning
) -> None:
    while True:
        async with limit:
            answer = await client.get(f"/api/tasks/{known.task_id}")
            if answer.status_code == 404:
                _missing(run, known, found)
                return
            if answer.status_code == 200 and answer.json()["status"] in TERMINAL:
                status = answer.json()["status"]
                log = await _log(client, known.task_id)
                _check_log(run, known.task_id, status, log)
                _check_watcher(run, known.task_id, status, log, found)
                found.statuses[status] += 1
                return
        await trio.sleep(0.25)


async def _log(client: httpx.AsyncClient, task_id: UUID) -> list[dict[str, Any]]:
    """The stored log of a task that has ended; after an outage the journal may be a moment behind its memory."""
    while True:
        answer = await client.get(f"/api/tasks/{task_id}/events")
        if answer.status_code == 200:
            events: list[dict[str, Any]] = answer.json()["events"]
            if events and events[-1]["type"] in TERMINAL:
                return events
        await trio.sleep(0.25)


def _missing(run: Run, known: Acknowledged, found: Reckoning) -> None:
    if known.durable or known.life == run.victim.lives:
        run.violated(f"task {known.task_id} was acknowledged (durable: {known.durable}) and is gone")
    else:
        found.lost_from_memory += 1


def _check_log(run: Run, task_id: UUID, status: str, log: list[dict[str, Any]]) -> None:
    seqs, types = [event["seq"] for event in log], [event["type"] for event in log]
    if seqs != list(range(1, len(log) + 1)):
        run.violated(f"the log of {task_id} has gaps: {seqs}")
    if [kind for kind in types if kind in TERMINAL] != [status] or types[-1] != status:
        run.violated(f"the log of {task_id} ({status}) does not end in one terminal event: {types}")


def _check_watcher(run: Run, task_id: UUID, status: str, log: list[dict[str, Any]], found: Reckoning) -> None:
    """A watcher saw the log, unless it was told from memory during an outage and the server died before the flush."""
    seen = run.watched.get(task_id)
    if seen is None or seen.ended in (None, "gone"):
        return
    seqs = [event["seq"] for event in log]
    if seen.seqs == seqs and seen.ended == TERMINAL[status]:
        return
    if seen.life < run.victim.lives and seen.life in run.outages:
        found.seen_from_memory += 1
    else:
        run.violated(f"a watcher of {task_id} saw {seen.seqs} and {seen.ended}, the log has {seqs} and {status}")


def look_for_leftovers(run: Run) -> None:
    """Nothing may be left half done in the database once every task has ended."""
    questions = {
        "unfinished tasks": "SELECT count(*) FROM tasks WHERE status IN ('queued', 'processing')",
        "unfinished jobs of tasks": "SELECT count(*) FROM jobs WHERE task_id IS NOT NULL AND state NOT IN "
        "('completed', 'cancelled', 'discarded')",
        "tasks without a log": "SELECT count(*) FROM tasks t WHERE NOT EXISTS "
        "(SELECT FROM task_events e WHERE e.task_id = t.id)",
    }
    with psycopg.connect(_application_database(run.victim), autocommit=True) as connection:
        for name, question in questions.items():
            row = connection.execute(question.encode()).fetchone()
            if row and row[0]:
                run.violated(f"{row[0]} {name} are left in the database")


def _application_database(victim: Victim) -> str:
    """How to connect to the database that has the tables of tasks."""
    with psycopg.connect(victim.conninfo(), autocommit=True) as connection:
        names = [row[0] for row in connection.execute("SELECT datname FROM pg_database WHERE NOT datistemplate")]
    for name in names:
        conninfo = victim.conninfo().replace("dbname=postgres", f"dbname={name}")
        with psycopg.connect(conninfo, autocommit=True) as connection:
            row = connection.execute("SELECT to_regclass('tasks')").fetchone()
            if row and row[0]:
                return conninfo
    raise LookupError("no database of the server has a table of tasks")


# --- the whole run ------------------------------------------------------------------------------------------


async def run_chaos(options: argparse.Namespace, folder: Path) -> int:
    chance = random.Random(options.seed)
    async with trio.open_nursery() as nursery:
        victim = Victim(folder / "data", nursery)
        run = Run(victim, chance, options.posters)
        try:
            await victim.start()
            await _run(run, plan(options.kills, chance), options)
        finally:
            with trio.CancelScope(shield=True):
                await victim.leave_nothing()
            nursery.cancel_scope.cancel()
    return 1 if run.broken else 0


async def _run(run: Run, planned: list[str], options: argparse.Namespace) -> None:
    began = trio.current_time()
    async with trio.open_nursery() as load:
        for _ in range(options.posters):
            load.start_soon(post_tasks, run, load)
        with trio.move_on_after(options.seconds) as limit:
            await break_things(run, planned, options.pause)
        if limit.cancelled_caught:
            print("the time is up; the faults that are left are not made", file=sys.stderr)
            if not run.victim.alive:
                await run.victim.start()
        await trio.sleep(1.0)
        run.over = True
        found = Reckoning(settled_in=await come_to_rest(run, options.settle))
        await reckon(run, found, CHECK_WITHIN)
        await _watchers_done(run)
        load.cancel_scope.cancel()
    await trio.to_thread.run_sync(look_for_leftovers, run)
    status = await run.victim.terminate()
    if status != 0:
        run.violated(f"the server ended with exit status {status} after SIGTERM")
    report(run, found, trio.current_time() - began, options)


async def _watchers_done(run: Run) -> None:
    """Watchers of tasks that have ended hear so soon; one that does not has been forgotten."""
    with trio.move_on_after(30.0) as patience:
        while not all(seen.ended for seen in run.watched.values()):  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.1)
    if patience.cancelled_caught:
        waiting = [(str(task_id), seen) for task_id, seen in run.watched.items() if seen.ended is None]
        busy = run.watchers.borrowed_tokens
        run.violated(f"{len(waiting)} watchers never heard the end ({busy} at it): {waiting[:5]}")


def report(run: Run, found: Reckoning, seconds: float, options: argparse.Namespace) -> None:
    recoveries = sorted(run.accepting_after)
    rows: list[tuple[str, float]] = [
        ("seconds", round(seconds, 1)),
        ("seed", options.seed),
        *((f"fault {name}", number) for name, number in sorted(run.faults.items())),
        ("kills", sum(number for name, number in run.faults.items() if name in KILLS)),
        ("lives of the server", run.victim.lives),
        ("tasks acknowledged", len(run.acknowledged)),
        ("… as durable", sum(known.durable for known in run.acknowledged.values())),
        *((f"tasks {status}", number) for status, number in sorted(found.statuses.items())),
        ("tasks lost that were in memory only", found.lost_from_memory),
        ("endings seen that were in memory only", found.seen_from_memory),
        ("tasks watched", len(run.watched)),
        ("watchers rewound", sum(seen.rewound for seen in run.watched.values())),
        *((f"answer {name}", number) for name, number in sorted(run.answers.items())),
        ("kill -9 to the next 202, p50 s", _percentile(recoveries, 50)),
        ("kill -9 to the next 202, worst s", _percentile(recoveries, 100)),
        ("all settled after the last fault, s", round(found.settled_in, 2)),
        ("promises broken", len(run.broken)),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value:>10}", file=sys.stderr)
    for name, value in rows:
        print(json.dumps({"bench": "chaos", "name": name, "value": value}))
    for promise in run.broken:
        print(json.dumps({"bench": "chaos", "name": "broken", "value": promise}))


def _percentile(ordered: list[float], percent: int) -> float:
    return round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 3) if ordered else 0.0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="how many kills, among other faults (at most 1,000)")
    parser.add_argument("--seconds", type=float, default=1800.0, help="seconds for the faults (at most 14,400)")
    parser.add_argument("--settle", type=float, default=120.0, help="seconds after the last fault to come to rest")
    parser.add_argument("--pause", type=float, default=1.5, help="about how many seconds pass between faults")
    parser.add_argument("--posters", type=int, default=6, help="clients that create tasks (at most 64)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of everything random here")
    parser.add_argument("--keep", action="store_true", help="keep the data folder, and say where it is")
    options = parser.parse_args(arguments)
    if options.kills > 1000 or options.seconds > 14_400 or options.posters > 64:
        parser.error("that is more than this script is willing to break; see --help")
    return options


def main() -> int:
    options = parse()
    folder = Path(tempfile.mkdtemp(prefix="elwift-chaos-"))
    os.chmod(folder, 0o755)  # PostgreSQL must reach it as another user when we are root
    try:
        status = trio.run(run_chaos, options, folder, strict_exception_groups=True)
    except ServerFailed as problem:
        print(f"the server did not come up: {problem}", file=sys.stderr)
        status = 2
    if options.keep or status:
        print(f"the data folder and the log are kept in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
