"""The watchdog: no process may hold the event loop longer than its budget.

Lives here: `Watchdog`, the timer and its signal handler, and `decide`, the rule by which it acts. May import: the
modules `preempt_*`, the process under the loop, the trace. Which place on a stack may be interrupted is decided in
`preempt_points` and `preempt_frames`.

Cooperative scheduling has one weakness: a loop without an `await` stops everybody. An interval timer's signal (SIGALRM)
comes some twenty times a second while the loop is awake, and its handler looks whether the task that it interrupts is
still in the same step as at the last tick. Nothing is counted, wrapped or hooked on the way of a healthy step. Once a
callback has held the loop for its budget, the handler waits for a point where an exception does no harm to anyone else
and throws `Preempted` there; the process ends with a crash report that names the line, and its supervisor goes on.

What it cannot do. A single call into C that keeps the interpreter to itself is seen only when it is over; see
`preempt_deadline` for the last resort. A lock or a file that the interrupted code held may stay held, as after any
exception from outside: processes share nothing, so that only the dead one minds. On an interpreter whose bytecode is
not known here, stalls are reported and nobody is interrupted. Only the main thread gets signals, so the loop has to run
there.
"""

from __future__ import annotations

import enum
import logging
import math
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection
from contextlib import ExitStack
from types import FrameType, TracebackType
from typing import Final, Self

import trio
from attrs import define, evolve, frozen

from engine.otp import preempt_points
from engine.otp.context import NoNode, current_node
from engine.otp.preempt_deadline import deadline_armed
from engine.otp.preempt_frames import FRAGILE, Standing, survey
from engine.otp.preempt_owner import owner
from engine.otp.preempt_points import Point
from engine.otp.preempt_reports import Preempted, Stalled, describe_stack, dump_stacks, write_stderr
from engine.otp.process import Process
from engine.otp.trace import Tracer

_log = logging.getLogger(__name__)

DEFAULT_BUDGET: Final = 1.0
STRIKES: Final = 10
"""So many `Preempted` may be swallowed by one callback before the loop counts as wedged."""
_LONGEST_TICK: Final = 0.05
_SHORTEST_TICK: Final = 0.0001
_FEWEST_SIGHTINGS: Final = 3
"""A machine that slept, or an OS process that was stopped, has lost time that no callback is to blame for."""
_ROOM: Final = 100
"""Levels of recursion that the handler may need."""
_LOOK_AGAIN: Final = (10e-6, 300e-6)
_LOOKS_FOR_A_HANDLER: Final = 64
_BUDGETS_TO_LAST_RESORT: Final = 2.0
_BUDGETS_TO_WEDGED: Final = 10.0


class Verdict(enum.Enum):
    """What to do about the one who holds the loop."""

    LATER = enum.auto()
    """Nothing: look at the next tick."""
    LOOK_AGAIN = enum.auto()
    """Its time is up, but not here: look again in a moment."""
    STRIKE = enum.auto()
    """Throw."""
    WEDGED = enum.auto()
    """Throwing does not help, or nothing can be thrown: tell the hook."""


@define
class Spell:
    """One callback's uninterrupted hold of the loop, as far as the ticks saw it. Times in seconds of `perf_counter`."""

    since: float
    last: float
    sightings: int = 1
    looks: int = 0
    strikes: int = 0
    struck_at: float = -math.inf
    wedged: bool = False
    report: Stalled | None = None


def decide(spell: Spell, now: float, budget: float, tick: float, point: Point) -> Verdict:
    """The rule. `point` is how good the interrupted place is, `Point.UNSAFE` where the stack forbids it."""
    held = now - spell.since
    if held < budget or spell.sightings < _FEWEST_SIGHTINGS or now - spell.struck_at < 2 * tick:
        return Verdict.LATER
    if not spell.wedged and (spell.strikes >= STRIKES or held > _BUDGETS_TO_WEDGED * budget + STRIKES * 2 * tick):
        return Verdict.WEDGED
    return Verdict.STRIKE if point <= _acceptable(spell, held, budget) else Verdict.LOOK_AGAIN


def _acceptable(spell: Spell, held: float, budget: float) -> Point:
    """A good point is worth a wait; none, for ever, is not."""
    if spell.looks < _LOOKS_FOR_A_HANDLER:
        return Point.SAFE
    return Point.LAST_RESORT if held > _BUDGETS_TO_LAST_RESORT * budget else Point.SKIPS_HANDLER


@frozen(eq=False)
class _Holder:
    """Which callback, in which step of which task: another one as soon as the loop or the engine moves on."""

    task: trio.lowlevel.Task
    step: int
    standing: Standing

    def same(self, other: _Holder | None) -> bool:
        return (
            other is not None
            and self.task is other.task
            and self.step == other.step
            and self.standing.holder is other.standing.holder
        )


class Watchdog(trio.abc.Instrument):
    """Interrupts callbacks that hold the event loop, and reports them. A context manager, inside `trio.run`:

        with Watchdog(budget=1.0):
            await serve()

    `budget`: seconds one callback may run without an `await` that lets others in; a process's own `budget` comes
    before it (`math.inf`: never interrupted). `report_after`: seconds from which a stall is reported although nobody is
    interrupted; a quarter of the budget unless said. `wedged`: called inside the signal handler, once for a holder who
    swallowed `STRIKES` interruptions or cannot be interrupted; `preempt_reports.end_os_process` ends the OS process.
    `deadline`: seconds after which a loop that does not turn at all, not even for signals, has all its stacks dumped
    and its OS process ended; None: never. `fragile`: further top-level modules that must not be torn.

    Raises RuntimeError outside the main thread and where SIGALRM is taken already.
    """

    def __init__(
        self,
        budget: float = DEFAULT_BUDGET,
        *,
        report_after: float | None = None,
        wedged: Callable[[Stalled], object] = dump_stacks,
        deadline: float | None = None,
        fragile: Collection[str] = (),
    ) -> None:
        if not budget > 0:
            raise ValueError("the budget is a positive number of seconds")
        self.budget = budget
        self.report_after = budget / 4 if report_after is None else report_after
        self.interruptions = 0
        self.stalls = 0
        self._wedged = wedged
        self._deadline = deadline
        self._fragile = FRAGILE | frozenset(fragile)
        self._tick = min(_LONGEST_TICK, max(_SHORTEST_TICK, min(budget, self.report_after) / 4))
        self._awake = False
        self._looking = False
        self._armed_at = 0.0
        self._holder: _Holder | None = None
        self._spell = Spell(0.0, 0.0)
        self._scope = ExitStack()

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("the watchdog works by signals, which only the main thread receives")
        if signal.getsignal(signal.SIGALRM) not in (signal.SIG_DFL, signal.SIG_IGN):
            raise RuntimeError("SIGALRM is in use already: one watchdog, and no other alarm, in an OS process")
        self._token = trio.lowlevel.current_trio_token()
        self._tracer = _tracer()
        with ExitStack() as scope:
            scope.callback(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, self._on_alarm))
            scope.callback(self._stop)
            trio.lowlevel.add_instrument(self)
            scope.callback(trio.lowlevel.remove_instrument, self)
            if self._deadline is not None:
                scope.enter_context(deadline_armed(self._deadline))
            self._scope = scope.pop_all()
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._scope.close()

    # The timer runs while the loop is awake: a tick during the wait would wake the loop for nothing.

    def before_io_wait(self, timeout: float) -> None:
        if timeout > 0:
            self._stop()

    def after_io_wait(self, timeout: float) -> None:
        if not self._awake:
            self._start()

    def _start(self) -> None:
        self._awake = True
        self._arm(self._tick)

    def _stop(self) -> None:
        self._awake = False
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        self._forget()

    def _arm(self, seconds: float) -> None:
        # With an interval, for a single signal may be lost: on a busy machine the kernel gives it to another thread, of
        # which CPython up to 3.12 does not tell the main thread while that one runs in a tight loop; or the handler
        # finds no room on a stack at its recursion limit.
        self._armed_at = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, seconds, self._tick)

    # The handler. It runs between two instructions of whatever the main thread is doing, its own code included.

    def _on_alarm(self, signum: int, frame: FrameType | None) -> None:
        if not self._awake or self._looking:
            return  # the signal of a timer that was stopped while it was on its way; or a tick within the handler
        self._looking = True
        try:
            # Room to look around, above code that recurses to the limit and stays there.
            _one_level()
            limit = sys.getrecursionlimit()
            sys.setrecursionlimit(limit + _ROOM)
            try:
                pause, shot = self._look(frame)
                self._arm(pause)
            finally:
                sys.setrecursionlimit(limit)
        except RecursionError:
            return  # not even room for that: the next tick may find some
        finally:
            self._looking = False
        if shot is not None:
            try:
                raise shot
            finally:
                del frame, shot  # the exception's traceback keeps this function's frame

    def _look(self, frame: FrameType | None) -> tuple[float, Preempted | None]:
        """Seconds until the next look, and what to throw."""
        holder = self._holding(frame)
        if holder is None or frame is None:
            self._forget()
            return self._tick, None
        return self._act(holder, self._sight(holder, time.perf_counter()), frame)

    def _holding(self, frame: FrameType | None) -> _Holder | None:
        try:
            task = trio.lowlevel.current_task()
        except RuntimeError:
            return None  # the loop itself, between two steps
        root = getattr(task.coro, "cr_frame", None)
        return _Holder(task, task._schedule_points, survey(frame, root, self._fragile))

    def _sight(self, holder: _Holder, now: float) -> Spell:
        """The holder's spell: the one of the last tick, or a new one, from now.

        A tick that comes late was held up by the holder itself, in one long call into C: it began with the tick.
        """
        if holder.same(self._holder):
            self._spell.sightings += 1
            self._spell.last = now
        else:
            late = now - self._armed_at > 2 * self._tick
            self._holder, self._spell = holder, Spell(self._armed_at if late else now, now)
        return self._spell

    def _forget(self) -> None:
        self._holder = None

    def _act(self, holder: _Holder, spell: Spell, frame: FrameType) -> tuple[float, Preempted | None]:
        """Does what `decide` says; answers as `_look`."""
        process = owner(holder.task)
        budget = self._budget_of(process)
        vulnerable = process is not None and preempt_points.SUPPORTED
        match decide(spell, spell.last, budget, self._tick, self._point(holder, frame) if vulnerable else Point.UNSAFE):
            case Verdict.LOOK_AGAIN if vulnerable:
                spell.looks += 1
                return random.uniform(*_LOOK_AGAIN), None
            case Verdict.WEDGED:
                spell.wedged = True
                self._give_up(self._stalled(holder, process, frame))
            case Verdict.STRIKE:
                return self._tick, self._strike(self._stalled(holder, process, frame))
            case _:
                if spell.last - spell.since >= self.report_after:
                    self._stalled(holder, process, frame)
        return self._tick, None

    def _budget_of(self, process: Process | None) -> float:
        own = None if process is None else process.budget
        return self.budget if own is None else own

    def _point(self, holder: _Holder, frame: FrameType) -> Point:
        if not holder.standing.free or trio.lowlevel.currently_ki_protected():
            return Point.UNSAFE
        return preempt_points.judge(frame.f_code, frame.f_lasti)

    def _strike(self, stalled: Stalled) -> Preempted:
        spell = self._spell
        spell.strikes, spell.struck_at, spell.looks = spell.strikes + 1, spell.last, 0
        spell.report = evolve(stalled, interrupted=True, strikes=spell.strikes)
        self.interruptions += 1
        return Preempted(stalled.seconds, stalled.where)

    def _stalled(self, holder: _Holder, process: Process | None, frame: FrameType) -> Stalled:
        """The report as of now. The loop gives out the last one as soon as it turns again: then its length is known."""
        spell = self._spell
        if spell.report is None:
            self.stalls += 1
            self._token.run_sync_soon(self._give_out, spell)
        spell.report = Stalled(
            pid=None if process is None else process.pid,
            task=holder.task.name,
            seconds=spell.last - spell.since,
            stack=describe_stack(frame, getattr(holder.task.coro, "cr_frame", None)),
            interrupted=spell.strikes > 0,
            strikes=spell.strikes,
        )
        return spell.report

    def _give_up(self, stalled: Stalled) -> None:
        try:
            self._wedged(stalled)
        except Exception:  # noqa: BLE001  the hook must not become a strike
            write_stderr(traceback.format_exc())

    def _give_out(self, spell: Spell) -> None:
        """Called by the loop, so that neither a log's lock nor a listener can meet itself in a signal handler."""
        stalled = spell.report
        if stalled is None:
            return
        who = stalled.task if stalled.pid is None else f"{stalled.pid} ({stalled.task})"
        _log.warning("event loop held for %.2f s by %s at %s", stalled.seconds, who, stalled.where)
        if self._tracer is not None and self._tracer.on:
            self._tracer.emit(stalled)


def _one_level() -> None:
    """Raises RecursionError where the limit could not be set back afterwards."""


def _tracer() -> Tracer | None:
    try:
        return current_node().tracer
    except NoNode:
        return None
