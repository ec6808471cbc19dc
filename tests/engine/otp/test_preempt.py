"""A process that holds the loop is interrupted, dies alone, and is reported; nobody else is touched."""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from engine.otp import (
    Crash,
    GenServer,
    Node,
    NoReply,
    Ok,
    Pid,
    Reason,
    cast,
    current_node,
    preempt_points,
    spawn,
)
from engine.otp.preempt import STRIKES, Point, Spell, Verdict, Watchdog, decide
from engine.otp.preempt_points import SUPPORTED
from engine.otp.preempt_reports import EXIT_WEDGED, Preempted, Stalled
from engine.otp.reports import CrashReport
from engine.otp.slot import Slot
from engine.otp.trace import attach

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="the bytecode of this interpreter is not known")

BUDGET = 0.1
Runaway = Callable[[], Awaitable[object]]


# --- runaways -------------------------------------------------------------------------------------------


async def endless_loop() -> None:
    n = 0
    while True:
        n += 1


async def deep_recursion() -> None:
    def fib(n: int) -> int:
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    fib(80)


async def recursion_in_coroutines() -> None:
    async def fib(n: int) -> int:
        return n if n < 2 else await fib(n - 1) + await fib(n - 2)

    await fib(80)


async def comprehension() -> None:
    [n + 1 for n in iter(int, 1)]


async def sum_of_generator() -> None:
    sum(n for n in iter(int, 1))


async def loop_that_catches_exceptions() -> None:
    while True:
        try:
            raise ValueError
        except Exception:  # noqa: BLE001
            pass


async def blocking_sleep() -> None:
    time.sleep(60)  # noqa: ASYNC251


async def catastrophic_pattern() -> None:
    re.compile("(a+)+$").match("a" * 60 + "b")


async def catastrophic_search() -> None:
    for _ in re.finditer("(a+)+$", "a" * 60 + "b"):
        pass


async def generator_that_never_ends() -> None:
    async def numbers() -> AsyncIterator[int]:
        while True:
            yield 1

    async for _ in numbers():
        pass


async def child_task() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(endless_loop)
        nursery.start_soon(trio.sleep_forever)


RUNAWAYS: list[Runaway] = [
    endless_loop,
    deep_recursion,
    recursion_in_coroutines,
    comprehension,
    sum_of_generator,
    loop_that_catches_exceptions,
    blocking_sleep,
    catastrophic_pattern,
    catastrophic_search,
    generator_that_never_ends,
    child_task,
]


# --- the stage ------------------------------------------------------------------------------------------


class Watched:
    """What the tests look at after a runaway ran beside a healthy process."""

    def __init__(self) -> None:
        self.stalls: list[Stalled] = []
        self.crashes: list[CrashReport] = []
        self.beats = 0

    def report(self, report: object) -> None:
        if isinstance(report, CrashReport):
            self.crashes.append(report)

    async def end_of(self, function: Runaway, **options: Any) -> Reason:
        """Runs `function` as a process; answers the reason it ended with, as its monitor heard it."""
        return await end_of(await spawn(function, **options))


async def end_of(pid: Pid) -> Reason:
    """Waits until the process has ended; answers the reason that its monitors hear."""
    process = current_node().awaken(pid)
    assert process is not None
    ended = Slot()
    process.watch(ended, ended.resolve)
    return await ended.wait()


class Stuck(BaseException):
    """Nobody interrupted a runaway: the test fails, instead of the suite standing still."""


@pytest.fixture(autouse=True)
def _not_for_ever() -> Iterator[None]:
    def give_up(_signum: int, _frame: object) -> None:
        raise Stuck

    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, 10, 1)  # seconds of CPU time
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.fixture
def watched() -> Watched:
    return Watched()


@contextlib.asynccontextmanager
async def stage(watched: Watched, budget: float = BUDGET, **options: Any) -> AsyncIterator[Watchdog]:
    async with Node.open(report=watched.report):
        detach = attach(watched.stalls.append, [Stalled])
        with Watchdog(budget=budget, **options) as watchdog:
            yield watchdog
        await trio.lowlevel.checkpoint()  # the last reports are given out by the loop
        detach()


# --- who spins, dies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("runaway", RUNAWAYS)
async def test_a_runaway_is_interrupted_and_dies_alone_with_a_report_of_its_line(
    runaway: Runaway, watched: Watched
) -> None:
    async with stage(watched) as watchdog:
        neighbour = await spawn(trio.sleep_forever)
        reason = await watched.end_of(runaway)
        assert neighbour.alive
    assert watchdog.interruptions == 1
    assert isinstance(reason, Crash)
    assert isinstance(reason.error, Preempted)
    assert reason.error.seconds >= BUDGET
    [crash] = watched.crashes
    assert crash.reason is reason
    file, line = re.fullmatch(r"(.*):(\d+) in .*", reason.error.where).groups()  # type: ignore[union-attr]
    assert f'File "{file}", line {line}, in ' in reason.stack
    if file == __file__:
        source, first = inspect.getsourcelines(endless_loop if runaway is child_task else runaway)
        assert first <= int(line) < first + len(source)


async def test_the_stall_is_traced_with_who_how_long_and_where(watched: Watched) -> None:
    async with stage(watched):
        await watched.end_of(endless_loop)
    [stalled] = watched.stalls
    assert stalled.interrupted
    assert isinstance(stalled.pid, Pid)
    assert stalled.seconds >= BUDGET
    assert "endless_loop" in stalled.where
    assert "endless_loop" in stalled.task


async def test_the_others_run_while_runaways_come_and_go(watched: Watched) -> None:
    beats = 0

    async def heart() -> None:
        nonlocal beats
        while True:
            await trio.lowlevel.checkpoint()
            beats += 1

    async with stage(watched, budget=0.02):
        await spawn(heart)
        while not beats:
            await trio.lowlevel.checkpoint()
        for _ in range(5):
            before = beats
            await watched.end_of(endless_loop)
            assert beats > before


async def test_many_short_steps_are_nobodys_business(watched: Watched) -> None:
    async def busy() -> None:
        until = time.perf_counter() + 3 * BUDGET
        while time.perf_counter() < until:
            await trio.lowlevel.checkpoint()

    async with stage(watched) as watchdog:
        assert not isinstance(await watched.end_of(busy), Crash)
    assert watchdog.interruptions == 0


async def test_the_finally_of_an_interrupted_loop_runs(watched: Watched) -> None:
    ran = False

    async def careful() -> None:
        nonlocal ran
        n = 0
        try:
            while True:
                n += 1
        finally:
            ran = True

    async with stage(watched):
        await watched.end_of(careful)
    assert ran


async def test_context_managers_of_an_interrupted_loop_are_left(watched: Watched) -> None:
    lock = threading.Lock()

    async def careful() -> None:
        with lock:
            while True:
                pass

    async with stage(watched):
        await watched.end_of(careful)
    assert not lock.locked()


class Counter(GenServer[int]):
    """Counts casts; spins at a negative one."""

    last_words: tuple[object, int] | None = None

    async def init(self) -> Ok[int]:
        return Ok(0)

    async def handle_cast(self, message: int, state: int) -> NoReply[int]:
        while message < 0:
            pass
        return NoReply(state + message)

    async def terminate(self, reason: Reason, state: int) -> None:
        # More than what is left of the budget that handle_cast has used up, and less than one of its own.
        until = time.perf_counter() + BUDGET / 4
        while time.perf_counter() < until:
            pass
        type(self).last_words = (reason, state)


async def test_terminate_gets_the_last_good_state_and_a_budget_of_its_own(watched: Watched) -> None:
    async with stage(watched) as watchdog:
        server = await Counter.start()
        for message in (1, 2, -1, 4):
            cast(server, message)
        await end_of(server)
    assert Counter.last_words is not None
    reason, state = Counter.last_words
    assert isinstance(reason, Crash)
    assert isinstance(reason.error, Preempted)
    assert state == 3
    assert watchdog.interruptions == 1


# --- budgets --------------------------------------------------------------------------------------------


async def spin_for(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


async def test_a_process_may_have_a_larger_budget(watched: Watched) -> None:
    async with stage(watched, budget=0.05):
        reason = await watched.end_of(lambda: spin_for(0.2), budget=math.inf)
    assert not isinstance(reason, Crash)
    [stalled] = watched.stalls
    assert not stalled.interrupted
    assert stalled.seconds >= 0.1


async def test_a_process_may_have_a_smaller_budget(watched: Watched) -> None:
    async with stage(watched, budget=60, report_after=0.02):
        reason = await watched.end_of(endless_loop, budget=0.05)
    assert isinstance(reason, Crash)


async def test_a_server_class_may_have_a_budget(watched: Watched) -> None:
    class Brief(Counter):
        budget = 0.05

        async def terminate(self, reason: Reason, state: int) -> None: ...

    async with stage(watched, budget=60, report_after=0.02) as watchdog:
        server = await Brief.start()
        cast(server, -1)
        await end_of(server)
    assert watchdog.interruptions == 1


# --- who is not to be shot ------------------------------------------------------------------------------


async def test_a_plain_task_is_reported_and_not_interrupted(watched: Watched) -> None:
    async with stage(watched, budget=0.05) as watchdog, trio.open_nursery() as nursery:
        nursery.start_soon(spin_for, 0.2, name="a handler")
    assert watchdog.interruptions == 0
    [stalled] = watched.stalls
    assert stalled.pid is None
    assert stalled.task == "a handler"


async def test_a_task_that_outlives_the_process_that_started_it_is_not_interrupted(watched: Watched) -> None:
    async with stage(watched, budget=0.05) as watchdog, trio.open_nursery() as elsewhere:

        async def starter() -> None:
            elsewhere.start_soon(spin_for, 0.2)

        await watched.end_of(starter)
    assert watchdog.interruptions == 0


async def test_a_task_in_a_foreign_nursery_does_not_pay_for_the_process_that_started_it(watched: Watched) -> None:
    async with stage(watched, budget=0.05) as watchdog, trio.open_nursery() as elsewhere:

        async def starter() -> None:
            elsewhere.start_soon(spin_for, 0.2)
            await trio.sleep(0.3)

        assert not isinstance(await watched.end_of(starter), Crash)
    assert watchdog.interruptions == 0


async def test_code_that_must_not_be_torn_is_left_to_finish(watched: Watched) -> None:
    left: list[str] = []

    class Slow:
        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            until = time.perf_counter() + 3 * BUDGET
            while time.perf_counter() < until:
                pass
            left.append("all of it")

    async def careful() -> None:
        with Slow():
            pass
        await endless_loop()

    async with stage(watched):
        reason = await watched.end_of(careful)
    assert left == ["all of it"]
    assert isinstance(reason, Crash)
    assert reason.error.seconds > 2 * BUDGET  # type: ignore[attr-defined]


async def test_the_log_is_not_interrupted(watched: Watched) -> None:
    written: list[str] = []

    class SlowHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            until = time.perf_counter() + 2 * BUDGET
            while time.perf_counter() < until:
                pass
            written.append(record.getMessage())

    log = logging.Logger("slow")
    log.addHandler(handler := SlowHandler())

    async def careful() -> None:
        log.warning("written")
        await endless_loop()

    async with stage(watched):
        await watched.end_of(careful)
    assert written == ["written"]
    assert handler.lock is not None
    assert handler.lock.acquire(blocking=False)


# --- who does not listen --------------------------------------------------------------------------------


async def test_one_who_swallows_a_few_interruptions_gets_away(watched: Watched) -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while swallowed < 3:
            n = 0
            try:
                while True:
                    n += 1
            except BaseException:  # noqa: BLE001
                swallowed += 1

    async with stage(watched) as watchdog:
        assert not isinstance(await watched.end_of(stubborn), Crash)
    assert watchdog.interruptions == 3


async def test_one_who_swallows_them_all_is_given_to_the_hook(watched: Watched) -> None:
    wedged: list[Stalled] = []

    async def deaf() -> None:
        while True:
            n = 0
            try:
                while True:
                    n += 1
                    if wedged:
                        return
            except BaseException:  # noqa: BLE001
                pass

    async with stage(watched, wedged=wedged.append):
        await watched.end_of(deaf)
    [stalled] = wedged
    assert stalled.strikes == STRIKES
    assert "deaf" in stalled.where


async def test_one_who_can_never_be_interrupted_is_given_to_the_hook(watched: Watched) -> None:
    wedged: list[Stalled] = []

    async def fragile() -> None:
        class Slow:
            def __enter__(self) -> None:
                while not wedged:
                    pass

            def __exit__(self, *_: object) -> None: ...

        with Slow():
            pass

    async with stage(watched, budget=0.02, wedged=wedged.append):
        await watched.end_of(fragile)
    assert [stalled.strikes for stalled in wedged] == [0]


async def test_a_failing_hook_does_no_harm(watched: Watched, capfd: pytest.CaptureFixture[str]) -> None:
    calls = 0

    def broken(_: Stalled) -> None:
        nonlocal calls
        calls += 1
        raise ValueError("a broken hook")

    async def fragile() -> None:
        class Slow:
            def __enter__(self) -> None:
                while not calls:
                    pass

            def __exit__(self, *_: object) -> None: ...

        with Slow():
            pass

    async with stage(watched, budget=0.02, wedged=broken):
        assert not isinstance(await watched.end_of(fragile), Crash)
    assert "a broken hook" in capfd.readouterr().err


# --- what cannot be interrupted -------------------------------------------------------------------------


async def test_a_call_into_c_that_keeps_the_interpreter_is_reported_afterwards(watched: Watched) -> None:
    took = 0.0

    async def heavy() -> None:
        nonlocal took
        began = time.perf_counter()
        sum(range(30_000_000))
        took = time.perf_counter() - began

    async with stage(watched, budget=0.2) as watchdog:
        assert not isinstance(await watched.end_of(heavy), Crash)
    assert watchdog.interruptions == 0
    [stalled] = watched.stalls
    assert stalled.seconds >= 0.9 * took
    assert "heavy" in stalled.where


async def test_on_an_unknown_interpreter_stalls_are_only_reported(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preempt_points, "SUPPORTED", False)
    async with stage(watched, budget=0.05) as watchdog:
        assert not isinstance(await watched.end_of(lambda: spin_for(0.2)), Crash)
    assert watchdog.interruptions == 0
    [stalled] = watched.stalls
    assert not stalled.interrupted


def run_script(body: str) -> subprocess.CompletedProcess[str]:
    prologue = """
        import trio
        from engine.otp import Node, spawn
        from engine.otp.preempt import Watchdog
        from engine.otp.preempt_reports import end_os_process
    """
    source = textwrap.dedent(prologue) + textwrap.dedent(body)
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False)


def test_past_the_deadline_the_os_process_ends_with_its_stacks_dumped() -> None:
    done = run_script("""
        async def heavy_call_into_c():
            sum(range(10 ** 12))

        async def main():
            async with Node.open():
                with Watchdog(deadline=0.5):
                    await spawn(heavy_call_into_c)
                    await trio.sleep_forever()

        trio.run(main)
    """)
    assert done.returncode == 1
    assert "heavy_call_into_c" in done.stderr


def test_a_loop_that_turns_never_meets_the_deadline() -> None:
    done = run_script("""
        async def main():
            with Watchdog(deadline=0.2):
                for _ in range(8):
                    await trio.sleep(0.1)
            with trio.CancelScope() as scope, Watchdog(deadline=0.05):
                scope.cancel()
            await trio.lowlevel.checkpoint()
            import time
            time.sleep(0.2)
            print("done")

        trio.run(main)
    """)
    assert done.stdout == "done\n", done.stderr


def test_the_os_process_may_be_ended_when_the_loop_is_wedged() -> None:
    done = run_script("""
        async def deaf():
            while True:
                n = 0
                try:
                    while True:
                        n += 1
                except BaseException:
                    pass

        async def main():
            async with Node.open():
                with Watchdog(budget=0.02, wedged=end_os_process):
                    await spawn(deaf)
                    await trio.sleep_forever()

        trio.run(main)
    """)
    assert done.returncode == EXIT_WEDGED
    assert "deaf" in done.stderr


# --- the timer ------------------------------------------------------------------------------------------


async def test_an_idle_loop_is_not_woken_by_the_timer(watched: Watched) -> None:
    async with stage(watched, budget=0.01) as watchdog:
        with trio.fail_after(5):
            await wait_all_tasks_blocked(cushion=0.1)  # would never come true if ticks woke the loop
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
        assert watchdog.stalls == 0


async def test_the_alarm_is_given_back_afterwards(watched: Watched) -> None:
    async with stage(watched):
        assert signal.getsignal(signal.SIGALRM) != signal.SIG_DFL
        await trio.lowlevel.checkpoint()
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


async def test_there_is_one_watchdog() -> None:
    with Watchdog(), pytest.raises(RuntimeError, match="SIGALRM"), Watchdog():
        pass
    with Watchdog():
        pass


def test_it_works_in_the_main_thread_only() -> None:
    complaint: list[str] = []

    async def main() -> None:
        with pytest.raises(RuntimeError) as caught, Watchdog():
            pass
        complaint.append(str(caught.value))

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    thread.join()
    assert "main thread" in complaint[0]


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_is_positive(budget: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        Watchdog(budget=budget)


# --- the rule, without a loop ---------------------------------------------------------------------------


def spell(**changes: float) -> Spell:
    values = {"since": 0.0, "last": 0.0, "sightings": 100, **changes}
    return Spell(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("now", "point", "state", "verdict"),
    [
        (0.9, Point.SAFE, spell(), Verdict.LATER),
        (1.0, Point.SAFE, spell(), Verdict.STRIKE),
        (9.0, Point.SAFE, spell(sightings=2), Verdict.LATER),  # the machine slept
        (1.0, Point.UNSAFE, spell(), Verdict.LOOK_AGAIN),
        (1.0, Point.SKIPS_HANDLER, spell(), Verdict.LOOK_AGAIN),
        (1.0, Point.SKIPS_HANDLER, spell(looks=100), Verdict.STRIKE),
        (1.5, Point.LAST_RESORT, spell(looks=100), Verdict.LOOK_AGAIN),
        (2.5, Point.LAST_RESORT, spell(looks=100), Verdict.STRIKE),
        (2.5, Point.UNSAFE, spell(looks=100), Verdict.LOOK_AGAIN),
        (1.5, Point.SAFE, spell(strikes=1, struck_at=1.45), Verdict.LATER),
        (1.6, Point.SAFE, spell(strikes=1, struck_at=1.45), Verdict.STRIKE),
        (3.0, Point.SAFE, spell(strikes=STRIKES, struck_at=2.0), Verdict.WEDGED),
        (3.0, Point.SAFE, spell(strikes=STRIKES, struck_at=2.0, wedged=True), Verdict.STRIKE),
        (99.0, Point.UNSAFE, spell(looks=9999), Verdict.WEDGED),
    ],
)
def test_the_rule(now: float, point: Point, state: Spell, verdict: Verdict) -> None:
    assert decide(state, now, budget=1.0, tick=0.05, point=point) is verdict


def test_nobody_with_an_endless_budget_is_ever_interrupted() -> None:
    assert decide(spell(), 1e9, budget=math.inf, tick=0.05, point=Point.SAFE) is Verdict.LATER


# --- signals that go astray -----------------------------------------------------------------------------


async def test_a_tick_that_is_lost_does_not_stop_the_watch(watched: Watched) -> None:
    async with stage(watched) as watchdog:
        told = watchdog._on_alarm
        signals = 0

        def lossy(signum: int, frame: object) -> None:
            nonlocal signals
            signals += 1
            if signals % 3:
                told(signum, frame)  # type: ignore[arg-type]

        signal.signal(signal.SIGALRM, lossy)
        assert isinstance(await watched.end_of(endless_loop), Crash)
    assert signals > 3


async def test_a_recursion_that_catches_its_own_limit_is_interrupted(watched: Watched) -> None:
    async def bottomless() -> None:
        def dive() -> None:
            try:  # noqa: SIM105  what suppress does would be spared
                dive()
            except RecursionError:
                pass
            dive()

        while True:
            with contextlib.suppress(RecursionError):
                dive()

    async with stage(watched):
        reason = await watched.end_of(bottomless)
    assert isinstance(reason, Crash)
    assert isinstance(reason.error, Preempted)


async def test_a_thread_that_takes_the_signal_does_not_stop_the_watch(watched: Watched) -> None:
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        async with stage(watched, budget=0.02):
            for _ in range(20):
                assert isinstance(await watched.end_of(endless_loop), Crash)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
