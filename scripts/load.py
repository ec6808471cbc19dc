"""Drives a server with many tasks at once and says how long they took.

Without --url it starts a server of its own on loopback and stops it at the end. Each task is created by POST, watched
on one of the sockets, and must show monotonic progress and exactly one terminal event. Bounded in time and count; only
loopback is driven. Prints one JSON object a line; exit status 1 when a task was lost or a rule broken.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import trio
from attrs import define, field

from scripts.client import ChannelClosed, PhoenixSocket, Refused, connect
from scripts.http_client import HttpClient, http_client
from scripts.server import serving

TERMINAL = {"task_completed", "task_cancelled"}
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@define
class Figures:
    """What was seen, in seconds from each POST."""

    accept: list[float] = field(factory=list)
    first_progress: list[float] = field(factory=list)
    completion: list[float] = field(factory=list)
    outcomes: Counter[str] = field(factory=Counter)
    faults: Counter[str] = field(factory=Counter)

    def rows(self, elapsed: float) -> list[dict[str, Any]]:
        rows = [_row("tasks_per_s", sum(self.outcomes.values()) / elapsed, "1/s")]
        for name in ("accept", "first_progress", "completion"):
            samples = sorted(getattr(self, name))
            rows += [_row(f"{name}_p{p}_ms", percentile(samples, p) * 1000, "ms") for p in (50, 90, 99) if samples]
        rows += [_row(f"outcome_{name}", n, "tasks") for name, n in sorted(self.outcomes.items())]
        return rows + [_row(f"fault_{name}", n, "tasks") for name, n in sorted(self.faults.items())]


def _row(name: str, value: float, unit: str) -> dict[str, Any]:
    return {"bench": "load", "name": name, "value": round(value, 3), "unit": unit, "peers": {}}


def percentile(samples: list[float], percent: int) -> float:
    return samples[min(len(samples) - 1, math.ceil(len(samples) * percent / 100) - 1)]


@define
class Load:
    """One run: what to create, where, and what was seen."""

    body: dict[str, Any]
    http: HttpClient
    sockets: list[PhoenixSocket]
    figures: Figures = field(factory=Figures)
    done: int = 0

    async def one(self, number: int) -> None:
        began = trio.current_time()
        task_id = await self._create()
        if task_id is None:
            return
        self.figures.accept.append(trio.current_time() - began)
        try:
            outcome = await self._watch(self.sockets[number % len(self.sockets)], task_id, began)
        except (ChannelClosed, Refused, trio.TooSlowError) as problem:
            outcome = f"lost_{type(problem).__name__}"
            self.figures.faults["lost"] += 1
        self.figures.outcomes[outcome] += 1
        self.done += 1

    async def _create(self) -> UUID | None:
        status, answer = await self.http.post("/api/tasks", self.body)
        if status == 202:
            return UUID(answer["task_id"])
        self.figures.outcomes[f"refused_{status}"] += 1
        self.done += 1
        return None

    async def _watch(self, socket: PhoenixSocket, task_id: UUID, began: float) -> str:
        channel = await socket.join(f"task:{task_id}", {"last_seq": 0}, timeout=30.0)
        watch = Watch(self.figures, began)
        for missed in channel.response["events"]:
            watch.saw(missed["event"], missed["payload"])
        async for message in channel:
            watch.saw(message.event, message.payload)
        return watch.outcome()


@define
class Watch:
    """The rules that one task's news must keep."""

    figures: Figures
    began: float
    seq: int = 0
    attempt: int = 0
    progress: float = -1.0
    terminal: list[str] = field(factory=list)

    def saw(self, event: str, payload: dict[str, Any]) -> None:
        if "seq" in payload and event != "durable":
            self._durable(event, payload)
        if event == "progress":
            self._progress(payload)

    def _durable(self, event: str, payload: dict[str, Any]) -> None:
        if payload["seq"] != self.seq + 1:
            self.figures.faults["seq_gap_or_double"] += 1
        self.seq = payload["seq"]
        if event in TERMINAL or (event == "error" and not payload.get("will_retry_at")):
            self.terminal.append(event)
            self.figures.completion.append(trio.current_time() - self.began)

    def _progress(self, payload: dict[str, Any]) -> None:
        if self.progress < 0:
            self.figures.first_progress.append(trio.current_time() - self.began)
        if payload["attempt"] == self.attempt and payload["progress"] < self.progress:
            self.figures.faults["progress_fell"] += 1
        self.attempt, self.progress = payload["attempt"], payload["progress"]

    def outcome(self) -> str:
        if len(self.terminal) != 1:
            self.figures.faults["not_one_terminal_event"] += 1
            return "unfinished"
        return self.terminal[0]


async def run(options: argparse.Namespace) -> int:
    async with AsyncExitStack() as stack:
        url = options.url or await _own_server(stack)
        http = await stack.enter_async_context(http_client(url, min(options.concurrency, 64), options.token))
        sockets = [await stack.enter_async_context(connect(url, options.params)) for _ in range(options.sockets)]
        load = Load(_body(options), http, sockets)
        began = trio.current_time()
        with trio.move_on_after(options.timeout) as limit:
            async with trio.open_nursery() as nursery:
                if sys.stderr.isatty() or options.progress:
                    nursery.start_soon(_progress_bar, load, options.tasks)
                await drive(load, options.tasks, options.concurrency)
        elapsed = trio.current_time() - began
        if limit.cancelled_caught:
            load.figures.faults["not_done_in_time"] += options.tasks - load.done
    for row in load.figures.rows(elapsed):
        print(json.dumps(row))
    return 1 if load.figures.faults else 0


async def drive(load: Load, tasks: int, concurrency: int) -> None:
    """Creates and watches `tasks` tasks, at most `concurrency` of them at once."""
    limit = trio.CapacityLimiter(concurrency)

    async def one(number: int) -> None:
        async with limit:
            await load.one(number)

    async with trio.open_nursery() as nursery:
        for number in range(tasks):
            nursery.start_soon(one, number)


async def _progress_bar(load: Load, total: int) -> None:
    while True:
        filled = 40 * load.done // total
        print(f"\r[{'#' * filled}{'.' * (40 - filled)}] {load.done}/{total}", end="", file=sys.stderr, flush=True)
        if load.done >= total:
            print(file=sys.stderr)
            return
        await trio.sleep(0.1)


async def _own_server(stack: AsyncExitStack) -> str:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="elwift-load-")))
    os.chmod(folder, 0o755)  # PostgreSQL must reach it as another user when we are root
    server = await stack.enter_async_context(serving(folder / "data", environment={"ELWIFT_LOCAL_MODEL": "false"}))
    return server.url


def _body(options: argparse.Namespace) -> dict[str, Any]:
    prompt = f"A load test's prompt number {random.randrange(10**9)}"
    simulate = {"steps": options.steps, "interval": options.interval, "text": options.text}
    return {"prompt": prompt, "model": options.model, "input": simulate if options.model == "simulate" else {}}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running server on loopback; without it one is started")
    parser.add_argument("--token", default="", help="for a server that asks for one")
    parser.add_argument("--tasks", type=int, default=200, help="how many in all (at most 100,000)")
    parser.add_argument("--concurrency", type=int, default=200, help="how many at once")
    parser.add_argument("--sockets", type=int, default=20, help="over how many sockets (at most 5,000)")
    parser.add_argument("--model", default="simulate")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--interval", type=float, default=0.1, help="seconds between steps")
    parser.add_argument("--text", action="store_true", help="let simulate stream text too")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for the whole run (at most 3,600)")
    parser.add_argument("--progress", action="store_true", help="a progress bar, also when this is not a terminal")
    options = parser.parse_args(arguments)
    if options.url and urlsplit(options.url).hostname not in LOOPBACK:
        parser.error("only a server on loopback is driven")
    if options.tasks > 100_000 or options.sockets > 5_000 or options.timeout > 3_600:
        parser.error("that is more than this script is willing to drive; see --help")
    options.params = f"token={options.token}" if options.token else ""
    return options


if __name__ == "__main__":
    sys.exit(trio.run(run, parse()))
