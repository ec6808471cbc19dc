"""The engine's peers doing the same work: triotp, pykka, asyncio queues, trio channels, a bare mailbox on trio.

Run by otp.py as `python _otp_peers.py PEER NAME`, each measurement in an OS process of its own; prints one number.
triotp and pykka have an environment of their own (triotp wants a trio of 2021), so this file imports nothing of ours,
and each peer only what it is made of.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

ROUNDS = 5
CALLS = 5_000
CASTS = 20_000
STARTS = 500
IDLE = 5_000
CRASHES = 1_000
ASLEEP = 1_000_000
MICRO = 1e6


def rss() -> int:
    """Resident memory of this OS process in bytes."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


class CpuTime:
    """CPU seconds between the begin and the end of a block, in `seconds`."""

    seconds = 0.0

    def __enter__(self) -> CpuTime:
        gc.collect()
        self._begun = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.process_time() - self._begun


async def median_of(rounds: Callable[[], Awaitable[float]]) -> float:
    return statistics.median([await rounds() for _ in range(ROUNDS)])


# --- triotp ---------------------------------------------------------------------------------------------


def triotp(name: str) -> float:
    import types

    import trio  # type: ignore[import-not-found,unused-ignore]
    from triotp import dynamic_supervisor, gen_server, mailbox, supervisor  # type: ignore[import-not-found]

    server = types.ModuleType("server")
    seen = 0
    reached = trio.Event()

    async def init(_: object) -> int:
        nonlocal seen
        seen += 1
        if seen >= server.goal:  # type: ignore[attr-defined]
            reached.set()
        return 0

    async def handle_call(message: object, _caller: object, state: int) -> Any:
        return gen_server.Reply(message), state

    async def handle_cast(message: object, state: int) -> Any:
        if message == "crash":
            raise RuntimeError("boom")
        if message == "last":
            reached.set()
        return gen_server.NoReply(), state

    async def terminate(_reason: object, _state: object) -> None:
        pass

    server.init, server.handle_call, server.handle_cast = init, handle_call, handle_cast  # type: ignore[attr-defined]
    server.terminate, server.goal = terminate, 10**9  # type: ignore[attr-defined]

    async def start(count: int) -> None:
        options = supervisor.options(max_restarts=10**6)
        nursery.start_soon(dynamic_supervisor.start, options, "supervisor")
        await trio.testing.wait_all_tasks_blocked()
        for n in range(count):
            spec = supervisor.child_spec(str(n), gen_server.start, [server, None, f"server {n}"])
            await dynamic_supervisor.start_child("supervisor", spec)
        await trio.testing.wait_all_tasks_blocked()

    async def calls() -> float:
        with CpuTime() as cpu:
            for n in range(CALLS):
                await gen_server.call("server 0", n)
        return cpu.seconds / CALLS * MICRO

    async def casts() -> float:
        nonlocal reached
        reached = trio.Event()
        with CpuTime() as cpu:
            for _ in range(CASTS):
                await gen_server.cast("server 0", None)
            await gen_server.cast("server 0", "last")
            await reached.wait()
        return cpu.seconds / CASTS * MICRO

    async def work() -> float:
        nonlocal seen, reached
        if name == "call_us":
            await start(1)
            return await median_of(calls)
        if name == "cast_us":
            await start(1)
            return await median_of(casts)
        if name == "start_us":
            with CpuTime() as cpu:
                await start(STARTS)
            return cpu.seconds / STARTS * MICRO
        if name == "live_bytes":
            before = rss()
            await start(IDLE)
            return (rss() - before) / IDLE
        await start(CRASHES)
        seen, reached, server.goal = 0, trio.Event(), CRASHES  # type: ignore[attr-defined]
        with CpuTime() as cpu:
            for n in range(CRASHES):
                await gen_server.cast(f"server {n}", "crash")
            await reached.wait()
        return cpu.seconds * 1000

    async def main() -> float:
        nonlocal nursery
        mailbox._init()
        async with trio.open_nursery() as nursery:
            value = await work()
            nursery.cancel_scope.cancel()
        return value

    import logbook  # type: ignore[import-not-found]
    import trio.testing

    nursery: Any = None
    with logbook.NullHandler().applicationbound():
        return float(trio.run(main))


# --- pykka ----------------------------------------------------------------------------------------------


def pykka(name: str) -> float:
    import threading

    import pykka as library  # type: ignore[import-not-found]

    done = threading.Event()

    class Actor(library.ThreadingActor):  # type: ignore[misc]
        def on_receive(self, message: Any) -> Any:
            if message == "last":
                done.set()
            return message

    def calls(actor: Any) -> float:
        with CpuTime() as cpu:
            for n in range(CALLS):
                actor.ask(n)
        return cpu.seconds / CALLS * MICRO

    def casts(actor: Any) -> float:
        done.clear()
        with CpuTime() as cpu:
            for _ in range(CASTS):
                actor.tell(None)
            actor.tell("last")
            done.wait()
        return cpu.seconds / CASTS * MICRO

    try:
        if name == "live_bytes":
            before = rss()
            actors = [Actor.start() for _ in range(1000)]
            return (rss() - before) / len(actors)
        actor = Actor.start()
        measure = calls if name == "call_us" else casts
        return statistics.median(measure(actor) for _ in range(ROUNDS))
    finally:
        library.ActorRegistry.stop_all()


# --- asyncio queues -------------------------------------------------------------------------------------


def asyncio_queues(name: str) -> float:
    import asyncio

    async def answer(box: asyncio.Queue[Any]) -> None:
        while True:
            message, back = await box.get()
            if back is not None:
                back.put_nowait(message)

    async def calls() -> float:
        box: asyncio.Queue[Any] = asyncio.Queue()
        task = asyncio.create_task(answer(box))
        with CpuTime() as cpu:
            for n in range(CALLS):
                back: asyncio.Queue[Any] = asyncio.Queue()
                box.put_nowait((n, back))
                await back.get()
        task.cancel()
        return cpu.seconds / CALLS * MICRO

    async def casts() -> float:
        box: asyncio.Queue[Any] = asyncio.Queue()
        task = asyncio.create_task(answer(box))
        back: asyncio.Queue[Any] = asyncio.Queue()
        with CpuTime() as cpu:
            for n in range(CASTS):
                box.put_nowait((n, None))
            box.put_nowait((None, back))
            await back.get()
        task.cancel()
        return cpu.seconds / CASTS * MICRO

    async def live() -> float:
        before = rss()
        tasks = [asyncio.create_task(answer(asyncio.Queue())) for _ in range(IDLE)]
        await asyncio.sleep(0.1)
        size = (rss() - before) / IDLE
        for task in tasks:
            task.cancel()
        return size

    if name == "live_bytes":
        return asyncio.run(live())
    return asyncio.run(median_of(calls if name == "call_us" else casts))  # type: ignore[arg-type]


# --- bare trio ------------------------------------------------------------------------------------------


def trio_channels(name: str) -> float:
    import trio
    from trio.testing import wait_all_tasks_blocked

    async def answer(box: Any) -> None:
        async for message, back in box:
            if back is not None:
                await back.send(message)

    async def calls() -> float:
        async with trio.open_nursery() as nursery:
            send, take = trio.open_memory_channel[Any](100)
            nursery.start_soon(answer, take)
            with CpuTime() as cpu:
                for n in range(CALLS):
                    back, back_take = trio.open_memory_channel[Any](1)
                    await send.send((n, back))
                    await back_take.receive()
            nursery.cancel_scope.cancel()
        return cpu.seconds / CALLS * MICRO

    async def casts() -> float:
        async with trio.open_nursery() as nursery:
            send, take = trio.open_memory_channel[Any](10**9)
            back, back_take = trio.open_memory_channel[Any](1)
            nursery.start_soon(answer, take)
            with CpuTime() as cpu:
                for n in range(CASTS):
                    send.send_nowait((n, None))
                send.send_nowait((None, back))
                await back_take.receive()
            nursery.cancel_scope.cancel()
        return cpu.seconds / CASTS * MICRO

    async def live() -> float:
        before = rss()
        async with trio.open_nursery() as nursery:
            kept = []
            for _ in range(IDLE):
                send, take = trio.open_memory_channel[Any](100)
                kept.append(send)
                nursery.start_soon(answer, take)
            await wait_all_tasks_blocked()
            size = (rss() - before) / IDLE
            nursery.cancel_scope.cancel()
        return size

    if name == "live_bytes":
        return trio.run(live)
    return float(trio.run(median_of, calls if name == "call_us" else casts))


def bare_trio(name: str) -> float:
    """Nothing but a deque and a sleeping task: what any mailbox on trio costs at least."""
    import trio
    from trio.lowlevel import Abort, current_task, reschedule, wait_task_rescheduled
    from trio.testing import wait_all_tasks_blocked

    class Box:
        def __init__(self) -> None:
            self.queue: deque[Any] = deque()
            self.sleeper: Any = None

        def put(self, message: Any) -> None:
            self.queue.append(message)
            if self.sleeper is not None:
                sleeper, self.sleeper = self.sleeper, None
                reschedule(sleeper)

        async def get(self) -> Any:
            while not self.queue:
                self.sleeper = current_task()
                await wait_task_rescheduled(lambda _: Abort.SUCCEEDED)
            return self.queue.popleft()

    async def answer(box: Box) -> None:
        while True:
            message, back = await box.get()
            if back is not None:
                back.put(message)

    async def calls() -> float:
        async with trio.open_nursery() as nursery:
            box = Box()
            nursery.start_soon(answer, box)
            with CpuTime() as cpu:
                for n in range(CALLS):
                    back = Box()
                    box.put((n, back))
                    await back.get()
            nursery.cancel_scope.cancel()
        return cpu.seconds / CALLS * MICRO

    async def casts() -> float:
        async with trio.open_nursery() as nursery:
            box, back = Box(), Box()
            nursery.start_soon(answer, box)
            with CpuTime() as cpu:
                for n in range(CASTS):
                    box.put((n, None))
                box.put((None, back))
                await back.get()
            nursery.cancel_scope.cancel()
        return cpu.seconds / CASTS * MICRO

    async def starts() -> float:
        async with trio.open_nursery() as nursery:
            with CpuTime() as cpu:
                for _ in range(10 * STARTS):
                    nursery.start_soon(trio.sleep_forever)
                await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        return cpu.seconds / (10 * STARTS) * MICRO

    async def live() -> float:
        before = rss()
        async with trio.open_nursery() as nursery:
            for _ in range(IDLE):
                nursery.start_soon(trio.sleep_forever)
            await wait_all_tasks_blocked()
            size = (rss() - before) / IDLE
            nursery.cancel_scope.cancel()
        return size

    if name == "live_bytes":
        return trio.run(live)
    return float(trio.run(median_of, {"call_us": calls, "cast_us": casts, "start_us": starts}[name]))


# --- plain Python ---------------------------------------------------------------------------------------


def plain_dict(name: str) -> float:
    table = {f"key {n}": n for n in range(100_000)}
    keys = list(table)

    def look_up() -> Iterator[float]:
        for _ in range(ROUNDS):
            with CpuTime() as cpu:
                for key in keys:
                    table.get(key)
            yield cpu.seconds / len(keys) * MICRO

    return statistics.median(look_up())


class Sleeper:
    __slots__ = ("facts", "name")

    def __init__(self, n: int) -> None:
        self.name = f"task {n}"
        self.facts = {"state": (n, "asleep")}


def object_each(name: str) -> float:
    """A million processes kept as an object with a dict each."""
    kept = [Sleeper(n) for n in range(ASLEEP)]
    gc.collect()
    pauses = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        gc.collect()
        pauses.append((time.process_time() - begun) * 1000)
    assert len(kept) == ASLEEP
    return statistics.median(pauses)


PEERS: dict[str, Callable[[str], float]] = {
    "triotp": triotp,
    "pykka": pykka,
    "asyncio_queue": asyncio_queues,
    "trio_channel": trio_channels,
    "bare_trio": bare_trio,
    "dict": plain_dict,
    "object_each": object_each,
}

if __name__ == "__main__":
    print(PEERS[sys.argv[1]](sys.argv[2]))
