"""Whose code is running, and whether everything on the stack may be torn down: the walk over an interrupted stack.

Lives here: `survey`, which finds the user's call that holds the event loop. May import: trio's lowlevel names, attrs.
Which instruction may raise is `preempt_points`; when to raise is `preempt`.

An exception thrown from outside is only as safe as the least careful frame it passes. Trio's own bookkeeping, a lock's
`__enter__`, an import in progress or our message queues would be left half done, so a stack with such a frame on it is
left alone until that frame has returned. Our engine calls the code of its users through functions marked
`@preemptible`; what stands inward of such a frame is theirs, what stands outward of it is ours and never torn.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from functools import partial
from types import CodeType, FrameType
from typing import Any, Final, TypeVar

import trio
from attrs import frozen

_F = TypeVar("_F", bound=Callable[..., Any])

FRAGILE: Final = frozenset(
    {
        "_frozen_importlib",
        "_frozen_importlib_external",
        "_weakrefset",
        "attr",
        "attrs",
        "contextlib",
        "importlib",
        "linecache",
        "logging",
        "outcome",
        "threading",
        "traceback",
        "trio",
        "warnings",
        "weakref",
    }
)
"""Top-level modules whose functions are never interrupted, nor anything they call.

Some of them because something would be left half done, some because the interpreter calls them itself, at any moment
of any code, and swallows what they raise.
"""

RITES: Final = frozenset({"__enter__", "__exit__", "__aenter__", "__aexit__", "__del__"})
"""Functions that take or give back a resource: an exception in them would leak it, or be lost."""

_ENGINE: Final = __name__.rpartition(".")[0]
_PREEMPTIBLE: dict[int, CodeType] = {}  # by identity: code objects compare and hash by what is in them, slowly


def preemptible(function: _F) -> _F:
    """Marks a function through which the engine calls its users' code: an interrupt may come below it."""
    _PREEMPTIBLE[id(function.__code__)] = function.__code__
    return trio.lowlevel.disable_ki_protection(function)


@frozen
class Standing:
    """Who is at work on a stack. `holder`: the outermost frame of the user's code, which tells one callback from the
    next within one step of a task. `free`: nothing between it and the interrupted frame must be left half done."""

    holder: FrameType | None
    free: bool


def survey(frame: FrameType | None, root: FrameType | None, fragile: Collection[str] = FRAGILE) -> Standing:
    """Walks from the interrupted `frame` outward to `root`, the frame of the running task's coroutine.

    The innermost marked function decides whether the stack is free, as with trio's protection against Ctrl-C; a
    function that the engine calls back from within a callback is judged by itself.
    """
    holder, free, judged, hook = None, True, False, _unraisable_hook()
    while frame is not None:
        if id(frame.f_code) in _PREEMPTIBLE:
            holder, judged = frame, True
        elif not judged and (frame.f_code is hook or is_fragile(frame, fragile)):
            free, judged = False, True
        if frame is root:
            return Standing(holder or frame, free)
        frame = frame.f_back
    return Standing(None, False)


def _unraisable_hook() -> CodeType | None:
    """The code that is told of exceptions nobody can get; one of ours would be lost in it."""
    hook = sys.unraisablehook
    while isinstance(hook, partial):
        hook = hook.func
    return getattr(hook, "__code__", None)


def is_fragile(frame: FrameType, fragile: Collection[str] = FRAGILE) -> bool:
    """Whether an exception from outside could leave this function's work half done."""
    code = frame.f_code
    if code.co_name in RITES or code.co_filename.startswith("<attrs generated"):
        return True
    module = frame.f_globals.get("__name__")
    if not isinstance(module, str):
        return False
    return module.partition(".")[0] in fragile or module == _ENGINE or module.startswith(_ENGINE + ".")
