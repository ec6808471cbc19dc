"""What the engine tells operators when something goes wrong: structured first, text on demand.

A node hands every report to one handler; the default writes to the standard library's logging.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeAlias

from attrs import frozen

from engine.otp.pid import Pid
from engine.otp.reasons import Crash, Reason


@frozen
class CrashReport:
    """A process ended for a reason that is not clean. `state` has passed the server's `format_status`."""

    pid: Pid
    names: tuple[object, ...]
    kind: str
    ancestors: tuple[Pid, ...]
    reason: Reason
    last_message: str
    state: str
    mailbox: int
    links: tuple[Pid, ...]
    client: Pid | None = None
    client_stack: str = ""

    def __str__(self) -> str:
        stack = self.reason.stack if isinstance(self.reason, Crash) else ""
        lines = [
            f"process {self.pid} ({self.kind}) {list(self.names) or ''} ended: {self.reason!r}",
            f"  ancestors {list(self.ancestors)}, links {list(self.links)}, {self.mailbox} messages waiting",
            f"  last message {self.last_message}",
            f"  state {self.state}",
        ]
        if self.client is not None or self.client_stack:
            lines.append(f"  called by {self.client}\n{self.client_stack}")
        return "\n".join([*lines, stack]).rstrip()


@frozen
class SupervisorReport:
    """`what` is child_terminated, start_error, shutdown_error or shutdown (the supervisor itself gives up)."""

    supervisor: Pid
    names: tuple[object, ...]
    what: str
    child: object
    child_pid: Pid | None
    reason: Reason

    def __str__(self) -> str:
        return (
            f"supervisor {self.supervisor} {list(self.names) or ''}: {self.what}, "
            f"child {self.child!r} {self.child_pid or ''}: {self.reason!r}"
        )


@frozen
class ProgressReport:
    """A child came up."""

    supervisor: Pid
    child: object
    child_pid: Pid

    def __str__(self) -> str:
        return f"supervisor {self.supervisor} started {self.child!r} as {self.child_pid}"


@frozen
class UnexpectedMessage:
    """A message that the receiver does not know; it was dropped."""

    pid: Pid
    kind: str
    message: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.kind}) dropped an unexpected message: {self.message}"


@frozen
class ZombieReport:
    """A killed process whose coroutine does not end. To everybody else it is dead; what it sends is refused."""

    pid: Pid
    kind: str
    seconds: float
    stack: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.kind}) did not end {self.seconds:g} s after its kill\n{self.stack}"


@frozen
class MemoryReport:
    """A watermark was passed: what was hibernated or ended for it."""

    used_bytes: int
    limit_bytes: int
    action: str
    kind: str
    count: int

    def __str__(self) -> str:
        return f"memory at {self.used_bytes} of {self.limit_bytes} bytes: {self.action} {self.count} of {self.kind}"


Report: TypeAlias = CrashReport | SupervisorReport | ProgressReport | UnexpectedMessage | ZombieReport | MemoryReport
ReportHandler: TypeAlias = Callable[[Report], object]

logger = logging.getLogger("engine.otp")

_LEVELS: dict[type, int] = {
    CrashReport: logging.ERROR,
    SupervisorReport: logging.ERROR,
    ZombieReport: logging.CRITICAL,
    ProgressReport: logging.DEBUG,
}


def log_report(report: Report) -> None:
    """The default handler: one record a report, the report itself as `extra["report"]`."""
    level = _LEVELS.get(type(report), logging.WARNING)
    if logger.isEnabledFor(level):
        logger.log(level, "%s", report, extra={"report": report})


def summary(value: object, limit: int = 500) -> str:
    """`repr` for a report: bounded, and never a reason to fail."""
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - a user's __repr__ may do anything, a report must go out
        text = f"<{type(value).__name__} whose repr failed: {error!r}>"
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"
