"""How fast and how small the engine is, beside its peers: one JSON object a line.

    scripts/bench otp                        everything (some four minutes)
    scripts/bench otp call_us cast_us        only these
    scripts/bench otp --no-peers             ours alone

Times are CPU time of the whole OS process, medians of several rounds; sizes are differences of resident memory. Each
figure is measured in a fresh OS process, ours and the peers' in turn, on the same machine in the same run. `ratios`
says how many times a peer's figure is ours. triotp and pykka are installed into an environment of their own beside
ours when they are missing; a peer that cannot be had is said so on stderr and left out.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

import trio
import trio.testing
from _otp_peers import CpuTime, median_of, rss
from _peers import peer_python
from attrs import frozen

from engine.otp import (
    HIBERNATE,
    PERMANENT,
    TEMPORARY,
    ChildSpec,
    DynamicSupervisor,
    From,
    GenServer,
    Node,
    NoReply,
    Ok,
    Registry,
    Reply,
    Request,
    Supervisor,
    Via,
    call,
    cast,
    spawn,
    start_child,
    worker,
)

CALLS = 20_000
CASTS = 50_000
STARTS = 5_000
LIVE = 20_000
HIBERNATED = 100_000
MILLION = 1_000_000
AWAKE = MILLION // 100
CRASHES = 1_000
ROUNDS = 5
MICRO = 1e6

PEERS: dict[str, tuple[str, ...]] = {
    "call_us": ("triotp", "pykka", "asyncio_queue", "trio_channel", "bare_trio"),
    "cast_us": ("triotp", "pykka", "asyncio_queue", "trio_channel", "bare_trio"),
    "start_us": ("triotp", "bare_trio"),
    "live_bytes": ("triotp", "pykka", "asyncio_queue", "trio_channel", "bare_trio"),
    "hibernated_bytes": (),
    "million_total_bytes": (),
    "million_create_s": (),
    "million_call_us": (),
    "restart_1000_ms": ("triotp",),
    "lookup_us": ("dict",),
    "gc_pause_ms": ("object_each",),
}
FOREIGN = {"triotp": "triotp==0.2.1", "pykka": "pykka>=4,<5"}
TOGETHER = ("million_total_bytes", "million_create_s", "million_call_us", "gc_pause_ms")
"""Measured in one process: making a million of them takes a while."""


# --- the servers ----------------------------------------------------------------------------------------


@frozen
class Echo(Request[int]):
    value: int


class Server(GenServer[int]):
    async def init(self, *_: object) -> Ok[int]:
        return Ok(0)

    async def handle_call(self, request: Echo, caller: From, state: int) -> Reply[int]:
        return Reply(request.value, state)

    async def handle_cast(self, message: object, state: int) -> NoReply[int]:
        if message == "crash":
            raise RuntimeError("boom")
        if isinstance(message, trio.Event):
            message.set()
        return NoReply(state + 1)


class Sleeper(Server):
    """As live servers here, with a number for a state; asleep from the start."""

    async def init(self, *_: object) -> Ok[int]:
        return Ok(0, HIBERNATE)


@frozen
class TaskFacts:
    """About what a task's server remembers: who asked, what for, how far it is."""

    id: str
    user: str
    status: str
    prompt: str
    attempt: int
    progress: float


class TaskServer(GenServer[TaskFacts]):
    """Sleeps from the start until somebody asks, and again after the answer."""

    async def init(self, id: str) -> Ok[TaskFacts]:
        prompt = f"Draw the harbour of {id} by night"
        return Ok(TaskFacts(id, f"user-{id[-3:]}", "queued", prompt, 0, 0.0), HIBERNATE)

    async def handle_call(self, request: Echo, caller: From, state: TaskFacts) -> Reply[TaskFacts]:
        return Reply(request.value, state, HIBERNATE)


def task(registry: Registry, n: int) -> ChildSpec:
    id = f"task-{n:07}"
    return worker(TaskServer, id, id=id, name=Via(registry, id), restart=TEMPORARY)


async def in_tree(body: Callable[[Registry], Awaitable[Any]]) -> NoReturn:
    """Runs `body` beside a registry and a dynamic supervisor named "children"; prints its answer and is gone."""
    registry: Registry = Registry(name="names")
    async with Node.open(report=lambda _: None):
        children = [registry.spec(), DynamicSupervisor.spec(name="children", intensity=10**9)]
        await Supervisor.start_link(children, intensity=10**9)
        print(json.dumps(await body(registry)), flush=True)
        os._exit(0)  # nobody waits until a million processes have ended in order


async def in_process(body: Callable[[], Awaitable[float]]) -> float:
    """Runs `body` as a process, as its callers mostly are; answers what it answers."""
    answers: list[float] = []
    done = trio.Event()

    async def run() -> None:
        answers.append(await body())
        done.set()

    await spawn(run)
    await done.wait()
    return answers[0]


# --- what is measured -----------------------------------------------------------------------------------


async def call_us(registry: Registry) -> float:
    server = await Server.start()

    async def calls() -> float:
        request = Echo(1)
        with CpuTime() as cpu:
            for _ in range(CALLS):
                await call(server, request)
        return cpu.seconds / CALLS * MICRO

    return await in_process(lambda: median_of(calls))


async def cast_us(registry: Registry) -> float:
    server = await Server.start()

    async def casts() -> float:
        handled = trio.Event()
        with CpuTime() as cpu:
            for _ in range(CASTS):
                cast(server, 1)
            cast(server, handled)
            await handled.wait()
        return cpu.seconds / CASTS * MICRO

    return await in_process(lambda: median_of(casts))


async def start_us(registry: Registry) -> float:
    rounds = iter(range(100))

    async def starts() -> float:
        first = next(rounds) * STARTS
        with CpuTime() as cpu:
            for n in range(first, first + STARTS):
                name = Via(registry, f"server {n}")
                await start_child("children", worker(Server, id=n, name=name, restart=PERMANENT))
        return cpu.seconds / STARTS * MICRO

    return await in_process(lambda: median_of(starts))


async def size_of(count: int, spec: Callable[[int], ChildSpec]) -> float:
    gc.collect()
    before = rss()
    for n in range(count):
        await start_child("children", spec(n))
    await trio.testing.wait_all_tasks_blocked()
    gc.collect()
    return (rss() - before) / count


async def live_bytes(registry: Registry) -> float:
    return await size_of(LIVE, lambda n: worker(Server, id=n, name=Via(registry, n), restart=PERMANENT))


async def hibernated_bytes(registry: Registry) -> float:
    return await size_of(HIBERNATED, lambda n: worker(Sleeper, id=n, name=Via(registry, n), restart=TEMPORARY))


async def restart_1000_ms(registry: Registry) -> float:
    restarted = 0
    done = trio.Event()

    class Fragile(Server):
        async def init(self, *_: object) -> Ok[int]:
            nonlocal restarted
            restarted += 1
            if restarted == CRASHES:
                done.set()
            return Ok(0)

    for n in range(CRASHES):
        await start_child("children", worker(Fragile, id=n, name=Via(registry, n)))

    async def crashes() -> float:
        nonlocal restarted, done
        restarted, done = 0, trio.Event()
        await trio.testing.wait_all_tasks_blocked()
        with CpuTime() as cpu:
            for n in range(CRASHES):
                cast(Via(registry, n), "crash")
            await done.wait()
        return cpu.seconds * 1000

    return await median_of(crashes)


async def lookup_us(registry: Registry) -> float:
    keys = [f"key {n}" for n in range(LIVE)]
    for key in keys:
        await start_child("children", worker(Server, id=key, name=Via(registry, key)))

    async def look_up() -> float:
        with CpuTime() as cpu:
            for key in keys:
                registry.whereis(key)
        return cpu.seconds / LIVE * MICRO

    return await median_of(look_up)


async def million(registry: Registry) -> dict[str, float]:
    """A million task servers in one process, one in a hundred awake."""
    gc.collect()
    before = rss()
    begun = time.process_time()
    for n in range(MILLION):
        await start_child("children", task(registry, n))
    created = time.process_time() - begun
    for n in range(AWAKE):
        await start_child("children", worker(Server, id=n, name=Via(registry, n)))
    gc.collect()
    total = rss() - before

    async def calls() -> float:
        some = [f"task-{n:07}" for n in range(7, MILLION, MILLION // 2000)]
        with CpuTime() as cpu:
            for id in some:
                await call(Via(registry, id), Echo(1))
        await trio.testing.wait_all_tasks_blocked()
        return cpu.seconds / len(some) * MICRO

    async def pause() -> float:
        begun = time.process_time()
        gc.collect()
        return (time.process_time() - begun) * 1000

    return {
        "million_total_bytes": float(total),
        "million_create_s": created,
        "million_call_us": await in_process(lambda: median_of(calls)),
        "gc_pause_ms": await median_of(pause),
    }


MEASURES: dict[str, Callable[[Registry], Awaitable[Any]]] = {
    "call_us": call_us,
    "cast_us": cast_us,
    "start_us": start_us,
    "live_bytes": live_bytes,
    "hibernated_bytes": hibernated_bytes,
    "restart_1000_ms": restart_1000_ms,
    "lookup_us": lookup_us,
    "million": million,
}


# --- running it -----------------------------------------------------------------------------------------


def in_fresh_process(*command: str) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{' '.join(command[1:])} failed: {done.stderr[-2000:]}", file=sys.stderr)
        return None
    return done.stdout


def ours(measure: str) -> Any:
    printed = in_fresh_process(sys.executable, __file__, "--measure", measure)
    return None if printed is None else json.loads(printed)


def of_peer(peer: str, name: str, foreign: Path | None) -> float | None:
    python = foreign if peer in FOREIGN else Path(sys.executable)
    if python is None:
        return None
    printed = in_fresh_process(str(python), str(Path(__file__).with_name("_otp_peers.py")), peer, name)
    return None if printed is None else float(printed)


def line(name: str, value: float, peers: dict[str, float]) -> str:
    unit = {"us": "us", "s": "s", "ms": "ms", "bytes": "bytes"}[name.rpartition("_")[2]]
    ratios = {peer: round(theirs / value, 2) for peer, theirs in peers.items() if value}
    shown = {peer: round(theirs, 3) for peer, theirs in peers.items()}
    return json.dumps(
        {"bench": "otp", "name": name, "value": round(value, 3), "unit": unit, "peers": shown, "ratios": ratios}
    )


def compare(names: list[str], with_peers: bool) -> None:
    abroad = with_peers and any(set(PEERS[name]) & set(FOREIGN) for name in names)
    foreign = peer_python("otp", *FOREIGN.values()) if abroad else None
    together: dict[str, float] = {}
    for name in names:
        if name in TOGETHER:
            together = together or ours("million") or {}
            value = together.get(name)
        else:
            value = ours(name)
        if value is None:
            continue
        found = {peer: of_peer(peer, name, foreign) for peer in (PEERS[name] if with_peers else ())}
        print(line(name, value, {peer: theirs for peer, theirs in found.items() if theirs is not None}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(PEERS)}")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        trio.run(in_tree, MEASURES[options.measure])  # prints and ends the process
    unknown = set(options.names) - set(PEERS)
    if unknown:
        parser.error(f"no such figure: {', '.join(sorted(unknown))}")
    compare([name for name in PEERS if not options.names or name in options.names], not options.no_peers)


if __name__ == "__main__":
    main()
