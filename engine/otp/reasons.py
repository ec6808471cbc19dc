"""Why a process ends: atoms, structured reasons, and the exceptions that carry them.

Pure data; imports nothing of ours. `process` turns what a body raised into a reason with `reason_of`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TypeAlias

import trio
from attrs import field, frozen

Reason = object


class Atom:
    """A named singleton: equal only to itself, even after pickling or copying."""

    __slots__ = ("name",)
    name: str
    _known: dict[str, Atom] = {}  # noqa: RUF012 - the table of atoms is what makes them singletons

    def __new__(cls, name: str) -> Atom:
        atom = cls._known.get(name)
        if atom is None:
            atom = super().__new__(cls)
            atom.name = name
            cls._known[name] = atom
        return atom

    def __reduce__(self) -> tuple[Callable[[str], Atom], tuple[str]]:
        return Atom, (self.name,)

    def __repr__(self) -> str:
        return self.name.upper()


NORMAL = Atom("normal")
SHUTDOWN = Atom("shutdown")
KILL = Atom("kill")
KILLED = Atom("killed")
NOPROC = Atom("noproc")
TIMEOUT = Atom("timeout")
CALLING_SELF = Atom("calling_self")
OVERLOADED = Atom("overloaded")
NOT_FOUND = Atom("not_found")
RUNNING = Atom("running")
RESTARTING = Atom("restarting")
MAX_CHILDREN = Atom("max_children")


@frozen
class Shutdown:
    """An orderly end with a detail; as clean as SHUTDOWN."""

    detail: object = None


Frames: TypeAlias = tuple[tuple[str, int, str], ...]
"""File, line number and function of each call, outermost first."""


@frozen(eq=False)
class Crash:
    """An exception nobody caught.

    `error` has lost its traceback, which would keep the frames of the dead process alive. `trail` is what is left of
    it: each error that led to this one, oldest first, with its frames.
    """

    error: BaseException
    trail: tuple[tuple[BaseException, Frames], ...] = field(default=(), repr=False)

    @property
    def stack(self) -> str:
        """The traceback as text; made on demand, since reading source lines is slow."""
        return "\n".join(_text(error, frames) for error, frames in self.trail)


def _text(error: BaseException, frames: Frames) -> str:
    summary = traceback.StackSummary.from_list(
        [traceback.FrameSummary(file, line, name, lookup_line=False) for file, line, name in frames]
    )
    return "".join(["Traceback (most recent call last):\n", *summary.format(), *traceback.format_exception_only(error)])


@frozen
class BadReturn:
    """A callback answered something that its behaviour does not know."""

    value: object


@frozen
class AlreadyStarted:
    """The name, or the child id, is taken by this living process."""

    pid: object


@frozen
class AlreadyPresent:
    """The supervisor has a child of this id that is not running: restart it or delete it."""

    id: object


@frozen
class FailedToStartChild:
    """Which child kept its supervisor from starting, and why."""

    id: object
    reason: Reason


class Exit(BaseException):
    """Ends the process that raises it, with `reason`. Not an Exception: `except Exception` must not stop an exit."""

    def __init__(self, reason: Reason = NORMAL) -> None:
        super().__init__(reason)
        self.reason = reason


class CallFailed(Exit):
    """A call got no answer: `reason` is NOPROC, TIMEOUT, CALLING_SELF, OVERLOADED or what the server ended with.

    Left uncaught in a process it ends that process with the reason `CallFailure`, which names the call.
    """

    def __init__(self, reason: Reason, server: object, request: object) -> None:
        super().__init__(reason)
        self.server = server
        self.request = request

    def __str__(self) -> str:
        return f"call of {self.server} with {type(self.request).__name__} failed: {self.reason!r}"


@frozen
class CallFailure:
    """A process ended because a call of its own failed and it did not catch that."""

    reason: Reason
    server: object
    request: object


class StartFailed(Exception):
    """A process did not come up; `reason` says why and nothing of it is left."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class Ignored(StartFailed):
    """The process's `init` answered IGNORE: it ended normally, at its own wish."""


def is_clean(reason: Reason) -> bool:
    """Whether a transient child stays down after it and no crash is reported: normal, shutdown, Shutdown(…)."""
    return reason is NORMAL or reason is SHUTDOWN or isinstance(reason, Shutdown)


def reason_of(error: BaseException) -> Reason:
    """The exit reason of a process whose body raised `error`.

    A group with a single leaf counts as that leaf, and Cancelled leaves never count: they are how it was stopped.
    """
    error = _single_leaf(error)
    if isinstance(error, CallFailed):
        return CallFailure(error.reason, error.server, error.request)
    if isinstance(error, Exit):
        return error.reason
    return Crash(error, tuple(_trail(error, set())))


def _single_leaf(error: BaseException) -> BaseException:
    if isinstance(error, BaseExceptionGroup):
        rest = error.split(trio.Cancelled)[1]
        if rest is None:
            return error
        while isinstance(rest, BaseExceptionGroup) and len(rest.exceptions) == 1:
            rest = rest.exceptions[0]
        return rest
    return error


def _trail(error: BaseException | None, seen: set[int]) -> Iterator[tuple[BaseException, Frames]]:
    """The error and all that led to it, each with its frames, and cuts the tracebacks off them."""
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    yield from _trail(error.__cause__ or (None if error.__suppress_context__ else error.__context__), seen)
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _trail(part, seen)
    yield error, tuple(_frames(error.__traceback__))
    error.__traceback__ = None


def _frames(step: TracebackType | None) -> Iterator[tuple[str, int, str]]:
    while step is not None:
        code = step.tb_frame.f_code
        yield code.co_filename, step.tb_lineno, code.co_name
        step = step.tb_next
