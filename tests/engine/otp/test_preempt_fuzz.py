"""Thousands of interruptions at random moments: no message lost, none doubled, trio unharmed.

Servers under a supervisor take numbered casts. Most handlers do something that uses trio, locks and context managers
and then spin past a tiny budget, so that the watchdog strikes at any moment of it. Some catch what strikes them, a few
times. In the end every message must be accounted for: handled, or being handled when its server was interrupted, or
waiting in the mailbox of one that was.

ELWIFT_FUZZ_INTERRUPTIONS sets how many interruptions to wait for (default 10,000, some seven seconds).
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import trio
import trio.lowlevel
import trio.testing
from attrs import define, field, frozen

from engine.otp import Crash, GenServer, Node, NoReply, Ok, Supervisor, cast, current_node, spawn, whereis, worker
from engine.otp.preempt import Watchdog
from engine.otp.preempt_points import SUPPORTED
from engine.otp.preempt_reports import Preempted
from engine.otp.reports import CrashReport

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="the bytecode of this interpreter is not known")

INTERRUPTIONS = int(os.environ.get("ELWIFT_FUZZ_INTERRUPTIONS", "10000"))
BUDGET = 0.0002
AT_MOST = 90 + INTERRUPTIONS / 100


# --- what handlers do -----------------------------------------------------------------------------------


@define
class AsyncRite:
    """An async context manager that never lets others in: between its `__aexit__` and the await lies the hazard."""

    open: int = 0

    async def __aenter__(self) -> None:
        self.open += 1

    async def __aexit__(self, *_: object) -> None:
        self.open -= 1


@contextlib.contextmanager
def guard() -> Iterator[None]:
    try:
        yield
    finally:
        sum(range(5))


@contextlib.asynccontextmanager
async def async_guard() -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack():
        yield


async def count_up() -> None:
    n = 0
    while True:
        n += 1


async def call_functions() -> None:
    def fib(n: int) -> int:
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    while True:
        fib(8)


async def call_coroutines() -> None:
    async def fib(n: int) -> int:
        return n if n < 2 else await fib(n - 1) + await fib(n - 2)

    while True:
        await fib(6)
        len([])


async def enter_and_leave() -> None:
    rite = AsyncRite()
    while True:
        async with rite:
            with guard():
                pass
        async with async_guard(), rite:
            for n in range(3):
                str(n)


async def fill_nurseries() -> None:
    async with trio.open_nursery() as nursery:
        while True:
            for _ in range(random.randrange(40)):
                nursery.start_soon(trio.lowlevel.checkpoint)
            with trio.CancelScope(), guard():  # noqa: ASYNC100
                sum(range(random.randrange(2000)))


async def nest_nurseries() -> None:
    while True:
        async with trio.open_nursery() as outer:
            outer.start_soon(spin_a_little)
            async with trio.open_nursery() as inner:
                inner.start_soon(spin_a_little)
                inner.start_soon(trio.sleep, 0)
                await spin_a_little()


async def spin_a_little() -> None:
    until = time.perf_counter() + random.random() * 4 * BUDGET
    while time.perf_counter() < until:
        with guard():
            pass


async def use_trios_toys() -> None:
    lock, event = trio.Lock(), trio.Event()
    send, take = trio.open_memory_channel[int](100)
    while True:
        lock.acquire_nowait()
        lock.release()
        event.set()
        send.send_nowait(1)
        take.receive_nowait()
        with trio.move_on_after(1), contextlib.suppress(ValueError):  # noqa: ASYNC100
            raise ValueError


async def clean_up_slowly() -> None:
    n = 0
    try:
        while True:
            n += 1
    finally:
        for _ in range(random.randrange(2000)):
            n -= 1


async def cross_steps() -> None:
    for _ in range(random.randrange(4)):
        await trio.lowlevel.checkpoint()
    while True:
        async with AsyncRite():
            await spin_a_little()
        await trio.lowlevel.cancel_shielded_checkpoint()
        await count_up()


async def iterate_generators() -> None:
    async def numbers() -> AsyncIterator[int]:
        while True:
            yield 1

    async for _ in numbers():
        next(iter([1]))


WILD: dict[Callable[[], Awaitable[None]], int] = {
    count_up: 20,
    call_functions: 20,
    call_coroutines: 1,
    enter_and_leave: 20,
    fill_nurseries: 1,
    nest_nurseries: 20,
    use_trios_toys: 1,
    clean_up_slowly: 20,
    cross_steps: 20,
    iterate_generators: 10,
}
"""What handlers do, and how often. Those that are mostly inside trio or await all the time offer few points to strike
at, so that each of them takes as long as twenty of the others."""


# --- the books ------------------------------------------------------------------------------------------


@frozen
class Work:
    number: int
    wild: Callable[[], Awaitable[None]] | None
    lives: int


@define
class Books:
    sent: int = 0
    begun: dict[str, list[int]] = field(factory=dict)
    handled: int = 0
    told: set[int] = field(factory=set)
    told_for_sure: set[int] = field(factory=set)
    heard: Counter[int] = field(factory=Counter)
    interrupted: int = 0
    interrupted_at_work: int = 0
    dropped: int = 0
    others: list[object] = field(factory=list)

    def report(self, report: object) -> None:
        if not isinstance(report, CrashReport):
            return
        if isinstance(report.reason, Crash) and only_preempted(report.reason.error):
            self.interrupted += 1
            self.dropped += report.mailbox
            self.interrupted_at_work += report.last_message.startswith("Work")
        else:
            self.others.append(report)


def only_preempted(error: BaseException) -> bool:
    """Whether nothing but interruptions ended a process; several of its tasks may have been interrupted."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(Preempted)[1] is None
    return isinstance(error, Preempted)


async def survive(wild: Callable[[], Awaitable[None]]) -> None:
    """One who catches everything: the interruption is felt, and the server goes on."""
    try:
        await wild()
    except BaseException as error:
        if not only_preempted(error):
            raise


class Ledger(GenServer[Books]):
    """Hears of finished work; is never interrupted itself, however many who talk to it are."""

    async def init(self, books: Books) -> Ok[Books]:
        return Ok(books)

    async def handle_cast(self, message: int, state: Books) -> NoReply[Books]:
        state.heard[message] += 1
        return NoReply(state)


class Wild(GenServer[Books]):
    async def init(self, name: str, books: Books) -> Ok[Books]:
        self.begun = books.begun.setdefault(name, [])
        return Ok(books)

    async def handle_cast(self, message: Work, state: Books) -> NoReply[Books]:
        self.begun.append(message.number)
        state.told.add(message.number)
        cast("ledger", message.number)
        state.told_for_sure.add(message.number)
        if message.wild is not None:
            for _ in range(message.lives):
                await survive(message.wild)
            await message.wild()
        state.handled += 1
        return NoReply(state)

    def format_status(self, state: Books) -> None:
        """The books are long and would be written into every crash report."""


NAMES = [f"wild {n}" for n in range(8)]


async def send_work(books: Books, watchdog: Watchdog) -> None:
    """Numbered work to random servers, some of it harmless, until there were interruptions enough."""
    wild, weights = [None, *WILD], [10, *WILD.values()]
    with trio.fail_after(AT_MOST):
        while watchdog.interruptions < INTERRUPTIONS:
            for _ in range(random.randrange(8)):
                name = random.choice(NAMES)
                if whereis(name) is None:
                    continue  # between its end and its restart
                books.sent += 1
                cast(name, Work(books.sent, random.choices(wild, weights)[0], random.randrange(9)))
            await trio.lowlevel.checkpoint()


# A generator that is thrown away runs its `finally` where nobody gets an exception: the interpreter says so, no more.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_every_message_is_accounted_for_after_thousands_of_interruptions() -> None:
    logging.getLogger("engine.otp.preempt").setLevel(logging.ERROR)
    books = Books()
    try:
        async with Node.open(report=books.report):
            children = [worker(Wild, name, books, id=name, name=name) for name in NAMES]
            ledger = await Ledger.start(books, name="ledger")
            await Supervisor.start_link(children, intensity=10**9)
            idle = await spawn(trio.sleep_forever)
            with Watchdog(budget=BUDGET, report_after=60, wedged=lambda _: None) as watchdog:
                await send_work(books, watchdog)
                while any(not whereis_idle(name) for name in NAMES):  # noqa: ASYNC110
                    await trio.sleep(0.001)
            assert ledger.alive
            assert idle.alive
            await trio.testing.wait_all_tasks_blocked()
            check(books, watchdog)
    finally:
        logging.getLogger("engine.otp.preempt").setLevel(logging.NOTSET)


def whereis_idle(name: str) -> bool:
    """Whether the server is up with nothing to do."""
    process = current_node().awaken(name)
    return process is not None and process.sleeper is not None and not process.queue


def check(books: Books, watchdog: Watchdog) -> None:
    assert [each.reason.stack[-1500:] for each in books.others] == [], "something else than an interruption"
    assert watchdog.interruptions >= INTERRUPTIONS
    assert books.sent == books.handled + books.interrupted_at_work + books.dropped
    assert all(numbers == sorted(set(numbers)) for numbers in books.begun.values()), "out of order, or handled twice"
    assert set(books.heard.values()) == {1}, "a message came twice"
    assert books.told_for_sure <= books.heard.keys() <= books.told, "a message was lost, or came from nowhere"
