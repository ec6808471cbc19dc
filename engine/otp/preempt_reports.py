"""What is told about code that held the event loop: the event, the exception, and a stack written down.

Lives here: `Stalled` (for operators and telemetry), `Preempted` (for the one who is interrupted), `describe_stack`.
May import: pids. Nothing here keeps a frame alive: a stack is kept as lines of text.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

if TYPE_CHECKING:
    from engine.otp.pid import Pid

_MOST_LINES: Final = 40
EXIT_WEDGED: Final = 70
"""Exit status of an OS process that ended itself because its event loop could not be freed (sysexits: EX_SOFTWARE)."""


@frozen
class Stalled:
    """Something held the event loop: nothing else ran on this node meanwhile.

    `pid` is None where the holder is no process of the node (a plain trio task); `task` is the task's name. `seconds`
    is exact to a tick of the watchdog. `stack` has one line a frame, "file:line in function", the innermost last.
    `interrupted`: the holder was thrown a `Preempted`. `strikes`: how often, for some catch it and go on.
    """

    pid: Pid | None
    task: str
    seconds: float
    stack: tuple[str, ...] = field(repr=False)
    interrupted: bool = False
    strikes: int = 0

    @property
    def where(self) -> str:
        """The innermost line, the one that was running."""
        return self.stack[-1] if self.stack else "an unknown place"


class Preempted(BaseException):
    """Thrown into code that held the event loop for longer than its budget.

    Not an `Exception`: `except Exception` around a runaway loop must not keep it alive. A process that lets it pass
    ends with a crash report, alone.
    """

    def __init__(self, seconds: float, where: str) -> None:
        super().__init__(seconds, where)
        self.seconds = seconds
        self.where = where

    def __str__(self) -> str:
        return f"held the event loop for {self.seconds:.2f} s at {self.where}"


def describe_stack(frame: FrameType | None, root: FrameType | None = None) -> tuple[str, ...]:
    """The stack from `root` (or the thread's start) to `frame`, innermost last; of a deep one, the innermost part."""
    lines: list[str] = []
    while frame is not None and len(lines) < _MOST_LINES:
        lines.append(f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}")
        if frame is root:
            break
        frame = frame.f_back
    return tuple(reversed(lines))


def write_stderr(text: str) -> None:
    """Past all buffers: a signal handler may have come in the middle of a print."""
    with suppress(OSError):
        os.write(2, text.encode(errors="replace"))


def dump_stacks(stalled: Stalled) -> None:
    """The default for a loop that cannot be freed: says so on stderr, with the stacks of all threads. Goes on."""
    write_stderr(f"event loop wedged for {stalled.seconds:.1f} s by {stalled.task} at {stalled.where}\n")
    faulthandler.dump_traceback(all_threads=True, file=sys.__stderr__ or 2)


def end_os_process(stalled: Stalled) -> None:
    """For applications that run under a supervisor of OS processes: dump all stacks, then end at once, status 70.

    No cleanup runs, as after a power cut: whatever must survive is in the journal by then.
    """
    dump_stacks(stalled)
    os._exit(EXIT_WEDGED)
