"""At which instruction an exception from a signal handler does no harm, on the interpreter that runs the tests."""

from __future__ import annotations

import argparse
import ast
import dis
import inspect
import re
import signal
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import CodeType, FrameType

import pytest

from engine.otp import preempt_points
from engine.otp.preempt_points import SUPPORTED, Point, judge

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="the bytecode of this interpreter is not known")


class Alarm(BaseException):
    pass


@contextmanager
def alarms(handler: Callable[[int, FrameType | None], object], first: float = 0.0005) -> Iterator[None]:
    """`handler` is called once after `first` seconds, and again when it sets the timer again."""
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, first)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def points_seen(run: Callable[[], object], at_least: int = 60) -> Counter[Point]:
    """What `judge` says of the places where signals find `run`, which goes on for ever unless it is stopped."""
    seen: Counter[Point] = Counter()

    def look(_signum: int, frame: FrameType | None) -> None:
        assert frame is not None
        if frame.f_code.co_filename == __file__ and frame.f_code.co_name != "points_seen":
            seen[judge(frame.f_code, frame.f_lasti)] += 1
        if seen.total() >= at_least:
            raise Alarm
        signal.setitimer(signal.ITIMER_REAL, 5e-5)

    with alarms(look), pytest.raises(Alarm):
        run()
    return seen


def spin() -> None:
    n = 0
    while True:
        n += 1


def spin_in_calls() -> None:
    def fib(n: int) -> int:
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    while True:
        fib(12)


def spin_in_comprehension() -> None:
    [n + 1 for n in iter(int, 1)]


def sleep_long() -> None:
    while True:
        time.sleep(1)


def match_badly() -> None:
    while True:
        re.compile("(a+)+$").match("a" * 40 + "b")


def drive(coroutine: Callable[[], object]) -> None:
    with suppress(StopIteration):
        coroutine().send(None)  # type: ignore[attr-defined]


async def nothing() -> None:
    pass


async def spin_in_awaits() -> None:
    async def fib(n: int) -> int:
        return n if n < 2 else await fib(n - 1) + await fib(n - 2)

    while True:
        await fib(12)


def iterate_badly() -> None:
    for _ in re.finditer("(a+)+$", "a" * 40 + "b"):
        pass


@pytest.mark.parametrize("run", [spin, spin_in_calls, spin_in_comprehension, sleep_long, match_badly])
def test_a_spinning_function_offers_safe_points(run: Callable[[], None]) -> None:
    seen = points_seen(run)
    assert seen[Point.SAFE] > 0.9 * seen.total(), seen


def test_the_first_line_of_a_coroutine_is_a_last_resort() -> None:
    seen = points_seen(lambda: drive(spin_in_awaits))
    assert seen[Point.LAST_RESORT] > 0.5 * seen.total(), seen


def test_a_for_that_works_long_in_c_is_a_last_resort() -> None:
    seen = points_seen(iterate_badly)
    assert seen[Point.LAST_RESORT] > 0.9 * seen.total(), seen


def offsets(code: CodeType, *names: str) -> list[int]:
    return [each.offset for each in dis.get_instructions(code) if each.opname in names]


CALLS = ("PRECALL", "CALL", "CALL_KW", "CALL_FUNCTION_EX")


def test_a_call_that_is_awaited_is_unsafe() -> None:
    async def awaits() -> None:
        await nothing()
        await nothing(*())

    code = awaits.__code__
    assert {judge(code, at) for at in offsets(code, *CALLS)} == {Point.UNSAFE}


def test_a_call_that_is_not_awaited_is_safe() -> None:
    async def calls() -> None:
        print()
        print(end="")
        print(*())

    code = calls.__code__
    assert {judge(code, at) for at in offsets(code, *CALLS)} == {Point.SAFE}


def test_leaving_an_async_with_is_unsafe_until_its_coroutine_is_awaited() -> None:
    async def leaves(thing: nullcontext[None]) -> None:
        async with thing:
            pass

    code = leaves.__code__
    instructions = list(dis.get_instructions(code))
    awaited = [n for n, each in enumerate(instructions) if each.opname == "GET_AWAITABLE"]
    assert len(awaited) >= 3  # entering, leaving, leaving by an exception
    for n in awaited:
        assert judge(code, instructions[n].offset) is Point.UNSAFE
        assert judge(code, instructions[n - 1].offset) is Point.UNSAFE


def test_no_instruction_of_an_await_is_safe() -> None:
    async def awaits(thing: object) -> None:
        await thing  # type: ignore[misc]

    code = awaits.__code__
    body = [each.offset for each in dis.get_instructions(code) if each.opname not in ("RESUME", *CALLS)]
    assert {judge(code, at) for at in body} == {Point.UNSAFE}


def test_the_entry_of_a_plain_function_is_safe_and_a_generators_is_not() -> None:
    def plain() -> None: ...

    def generator() -> Iterator[int]:
        yield 1

    entry, *_ = offsets(plain.__code__, "RESUME")
    assert judge(plain.__code__, entry) is Point.SAFE
    first, after_yield = offsets(generator.__code__, "RESUME")
    assert judge(generator.__code__, first) is Point.LAST_RESORT
    assert judge(generator.__code__, after_yield) is Point.UNSAFE


def test_a_frame_that_has_not_begun_is_unsafe() -> None:
    assert judge(spin.__code__, -1) is Point.UNSAFE


# CPython steps over the handlers of some loops. Each of these says whether its own was found.


def bare_loop(found: list[str]) -> None:
    try:
        while True:
            pass
    finally:
        found.append("handler")


def loop_with_body(found: list[str]) -> None:
    try:
        n = 0
        while True:
            n += 1
    finally:
        found.append("handler")


def loop_with_try(found: list[str]) -> None:
    try:
        while True:
            try:
                n = 1
            finally:
                _ = n
    except Alarm:
        found.append("handler")
        raise


def for_loop(found: list[str]) -> None:
    for _ in [1]:
        try:
            for _ in iter(int, 1):
                pass
        finally:
            found.append("handler")


def loop_with_condition(found: list[str]) -> None:
    n = 0
    try:
        while n < 1e15:
            n += 1
    finally:
        found.append("handler")


def loop_in_with(found: list[str]) -> None:
    @contextmanager
    def guard() -> Iterator[None]:
        try:
            yield
        finally:
            found.append("handler")

    with guard():
        while True:
            pass


def loop_that_calls(found: list[str]) -> None:
    try:
        while True:
            len([])
    finally:
        found.append("handler")


@pytest.mark.parametrize(
    "run", [bare_loop, loop_with_body, loop_with_try, for_loop, loop_with_condition, loop_in_with, loop_that_calls]
)
def test_an_exception_at_a_safe_point_always_meets_the_handler_it_should(run: Callable[[list[str]], None]) -> None:
    for n in range(20):
        found: list[str] = []
        judged: list[Point] = []

        def strike(_signum: int, frame: FrameType | None, judged: list[Point] = judged) -> None:
            assert frame is not None
            if frame.f_code is not run.__code__:
                signal.setitimer(signal.ITIMER_REAL, 5e-5)
                return
            judged.append(judge(frame.f_code, frame.f_lasti))
            raise Alarm

        with alarms(strike, 0.0003 + n * 1e-5), pytest.raises(Alarm):
            run(found)
        assert judged[0] in (Point.SAFE, Point.SKIPS_HANDLER)
        assert found or judged[0] is not Point.SAFE, "a handler was skipped at a point called safe"


def codes_of(module: object) -> Iterator[CodeType]:
    todo = [compile(inspect.getsource(module), "module", "exec")]  # type: ignore[arg-type]
    while todo:
        code = todo.pop()
        todo += [each for each in code.co_consts if isinstance(each, CodeType)]
        yield code


@pytest.mark.parametrize("module", [argparse, ast, tarfile])
def test_jump_targets_and_exception_tables_are_read_as_dis_reads_them(module: object) -> None:
    for code in codes_of(module):
        entries = [(each.start, each.end, each.target) for each in dis.Bytecode(code).exception_entries]  # type: ignore[attr-defined]
        assert list(preempt_points._entries(code.co_exceptiontable)) == entries
        raw = code.co_code
        for each in dis.get_instructions(code):
            if each.opcode in preempt_points._JUMPS:
                assert (
                    preempt_points._end(raw, each.offset) - 2 * preempt_points._argument(raw, each.offset)
                    == each.argval
                )
