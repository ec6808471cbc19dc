"""At which bytecode an exception may be thrown into running code from outside: a pure decision on a code object.

Lives here: `judge`, which looks at the instruction that a signal interrupted. May import: the standard library only.
Whose frame it is, and what else is on the stack, is `preempt_frames`; when to throw is `preempt`.

A signal handler runs between two instructions, and an exception raised in it looks to the interrupted code as if that
instruction had raised. Most code is written with the belief that a call may raise, and that nothing happens between
`__aexit__` having been called and its coroutine having been awaited. So the rule is narrow. It is safe to raise

* at a *backward jump*: a loop goes round, nothing is half done;
* at the *entry of a plain function*: to its caller, the call failed;
* at a *call whose result is not awaited*: the call failed. One that is awaited (`GET_AWAITABLE` follows) has made a
  coroutine, perhaps that of an `__aexit__`, which would then never run.

CPython has a bug of its own at the first of these (python/cpython issues 108214 and 130279): up to 3.12 the raised
exception is looked up in the exception table one unit before the jump's *target*, in 3.13 at the jump. At the edge of a
`try` body that is outside of it, and its `except` and `finally` are skipped. `judge` compares the handler that would be
found with the one that ought to be, and calls such a jump `SKIPS_HANDLER`: to be taken only if nothing better comes.

The opcodes differ between versions, so every version has its own table and its own tests. An unknown version has no
table: `SUPPORTED` is False there, and nothing is ever thrown.
"""

from __future__ import annotations

import enum
import inspect
import sys
from collections.abc import Iterator, Mapping
from dis import opmap
from types import CodeType
from typing import Final


class Point(enum.IntEnum):
    """How good a place an instruction is, best first."""

    SAFE = 0
    """Raising here is what a failing call or loop does anyway."""
    SKIPS_HANDLER = 1
    """Safe for everyone else, but the interpreter would step over a `try` of the code that is interrupted."""
    LAST_RESORT = 2
    """An operator or a `for` that works long in C, or the first line of a coroutine: it may raise, rarely does."""
    UNSAFE = 3


_VERSION: Final = sys.version_info[:2]
_BACKWARD_JUMPS: Final[Mapping[tuple[int, int], frozenset[str]]] = {
    (3, 11): frozenset(
        {"JUMP_BACKWARD"} | {f"POP_JUMP_BACKWARD_IF_{on}" for on in ("TRUE", "FALSE", "NONE", "NOT_NONE")}
    ),
    (3, 12): frozenset({"JUMP_BACKWARD"}),
    (3, 13): frozenset({"JUMP_BACKWARD"}),
}
_CALLS: Final[Mapping[tuple[int, int], frozenset[str]]] = {
    (3, 11): frozenset({"PRECALL", "CALL", "CALL_FUNCTION_EX"}),
    (3, 12): frozenset({"CALL", "CALL_FUNCTION_EX"}),
    (3, 13): frozenset({"CALL", "CALL_KW", "CALL_FUNCTION_EX"}),
}
_LONG_IN_C: Final = frozenset({"BINARY_OP", "COMPARE_OP", "CONTAINS_OP", "FOR_ITER"})
# Where the interpreter's answer to "which `except` catches this?" comes from, at a backward jump.
_LOOKS_BEFORE_TARGET: Final = _VERSION < (3, 13)

SUPPORTED: Final = sys.implementation.name == "cpython" and _VERSION in _CALLS
"""Whether this interpreter's bytecode is known; where it is not, stalls are reported and nothing is interrupted."""


def _codes(names: frozenset[str]) -> frozenset[int]:
    return frozenset(opmap[name] for name in names if name in opmap)


_JUMPS: Final = _codes(_BACKWARD_JUMPS.get(_VERSION, frozenset()))
_CALL_CODES: Final = _codes(_CALLS.get(_VERSION, frozenset()))
_C_CODES: Final = _codes(_LONG_IN_C)
_CALL: Final = opmap.get("CALL", -1)
_PRECALL: Final = opmap.get("PRECALL", -1)
_RESUME: Final = opmap.get("RESUME", -1)
_EXTENDED_ARG: Final = opmap["EXTENDED_ARG"]
_GET_AWAITABLE: Final = opmap["GET_AWAITABLE"]
_END_SEND: Final = opmap.get("END_SEND", -1)
_CACHE: Final = opmap.get("CACHE", 0)
_COROUTINE_LIKE: Final = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_UNIT: Final = 2  # bytes of a code unit


def judge(code: CodeType, lasti: int) -> Point:
    """What may be thrown at the instruction at byte offset `lasti` (a frame's `f_lasti`) of `code`."""
    if not SUPPORTED or lasti < 0:
        return Point.UNSAFE
    return _judge(code, code.co_code, lasti)


def _judge(code: CodeType, raw: bytes, at: int) -> Point:
    op = raw[at]
    if op in _JUMPS:
        return _judge_jump(code, raw, at)
    if op in _CALL_CODES:
        return Point.UNSAFE if _is_awaited(raw, at) else Point.SAFE
    if op == _RESUME and raw[at + 1] == 0:
        return Point.LAST_RESORT if code.co_flags & _COROUTINE_LIKE else Point.SAFE
    return Point.LAST_RESORT if op in _C_CODES else Point.UNSAFE


def _end(raw: bytes, at: int) -> int:
    """Offset behind the instruction at `at` and its inline caches."""
    at += _UNIT
    while at < len(raw) and raw[at] == _CACHE:
        at += _UNIT
    return at


def _is_awaited(raw: bytes, at: int) -> bool:
    after = _end(raw, at)
    while after < len(raw) and (raw[after] == _EXTENDED_ARG or (raw[at] == _PRECALL and raw[after] == _CALL)):
        after = _end(raw, after)  # 3.11: a specialised PRECALL has done the work of the CALL behind it
    return after < len(raw) and raw[after] == _GET_AWAITABLE


def _judge_jump(code: CodeType, raw: bytes, at: int) -> Point:
    target = _end(raw, at) - _UNIT * _argument(raw, at)
    if raw[target] == _END_SEND:
        return Point.UNSAFE  # not a loop: 3.12 leaves an await this way that ended by a thrown exception
    return Point.SAFE if _keeps_handler(code, at, target) else Point.SKIPS_HANDLER


def _keeps_handler(code: CodeType, at: int, target: int) -> bool:
    """Whether an exception at the backward jump `at` meets the `try` that the jump stands in.

    The jump itself may be missing from the table. Up to 3.12 that can only make a good jump look bad; 3.13 goes by it,
    so there the loop's head is asked, which may stand in a `try` of its own. Either way the error costs a moment and
    no `finally`.
    """
    table = code.co_exceptiontable
    if not table:
        return True
    if _LOOKS_BEFORE_TARGET:
        return _handler(table, target - _UNIT) == _handler(table, at)
    return _handler(table, at) == _handler(table, target)


def _argument(raw: bytes, at: int) -> int:
    value, shift = raw[at + 1], 8
    while at >= _UNIT and raw[at - _UNIT] == _EXTENDED_ARG:
        at -= _UNIT
        value |= raw[at + 1] << shift
        shift += 8
    return value


def _handler(table: bytes, offset: int) -> int | None:
    """Where an exception raised at `offset` goes: the target's offset, or None if it leaves the function."""
    for start, end, target in _entries(table):
        if start <= offset < end:
            return target
    return None


def _entries(table: bytes) -> Iterator[tuple[int, int, int]]:
    """The rows (start, end, target), in bytes, of an exception table (CPython: Objects/exception_handling_notes)."""
    numbers = _varints(table)
    for start in numbers:
        length, target, _depth = next(numbers), next(numbers), next(numbers)
        yield start * _UNIT, (start + length) * _UNIT, target * _UNIT


def _varints(table: bytes) -> Iterator[int]:
    """Six bits a byte, the highest first; bit 6 says that more follow, bit 7 only marks the start of a row."""
    value = 0
    for byte in table:
        value = value << 6 | byte & 63
        if not byte & 64:
            yield value
            value = 0
