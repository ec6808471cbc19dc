"""One child of a supervisor: its record, and how it is ended."""

from __future__ import annotations

from typing import Any

from attrs import define

from engine.otp.child_spec import BRUTAL_KILL, INFINITY, PERMANENT, BrutalKill, ChildSpec, Deadline
from engine.otp.management import ChildInfo
from engine.otp.messages import ExitSignal
from engine.otp.pid import Pid
from engine.otp.process import Process
from engine.otp.reasons import KILLED, NOPROC, NORMAL, RESTARTING, SHUTDOWN, Reason, Shutdown
from engine.otp.reports import SupervisorReport
from engine.otp.slot import Slot


@define(eq=False)
class Child:
    """A child as its supervisor keeps it. `attempt` numbers the restarts that are due later; `done`: it has ended by
    itself, as it was to."""

    spec: ChildSpec
    pid: Pid | None = None
    last_pid: Pid | None = None
    restarting: bool = False
    waiting: bool = False
    done: bool = False
    attempt: int = 0
    restarts: int = 0
    failures: int = 0
    started_at: float = 0.0

    def up(self, pid: Pid, now: float) -> None:
        self.pid = self.last_pid = pid
        self.started_at = now
        self.restarting = self.waiting = self.done = False

    def down(self) -> None:
        """Not running and not to be: a restart that is still due is off."""
        self.pid = None
        self.restarting = self.waiting = self.done = False

    def retry(self, waiting: bool) -> int:
        """Notes that a restart is due later; `waiting`: after a back-off that has been counted. Answers its number."""
        self.restarting, self.waiting = True, waiting
        self.attempt += 1
        return self.attempt

    @property
    def info(self) -> ChildInfo:
        pid = RESTARTING if self.restarting else self.pid
        return ChildInfo(self.spec.id, pid, self.spec.type, self.spec.start.subject)


def report(me: Process, what: str, child: Any, pid: Pid | None, reason: Reason) -> None:
    """A supervisor report; kinds in `SupervisorReport`."""
    names = tuple(via.key for via in me.names)
    me.node.report(SupervisorReport(me.pid, names, what, child, pid, reason))


def taken_exit(me: Process, pid: Pid) -> Reason:
    """Removes the exit signal of `pid` from the mailbox and answers its reason; NOPROC when there was none."""
    found: list[Reason] = []

    def mine(entry: object) -> bool:
        if isinstance(entry, ExitSignal) and entry.pid == pid:
            found.append(entry.reason)
            return True
        return False

    me.discard(mine)
    return found[0] if found else NOPROC


async def end_child(me: Process, spec: ChildSpec, pid: Pid) -> None:
    """Ends a child as its spec says and waits until it has ended; a reason that was not asked for is reported.

    The wait does not depend on the link, so a child that has unlinked itself cannot hang its supervisor. A child that
    is dead already leaves its exit signal in the mailbox: it is taken out, so it will not count as a crash.
    """
    reason = await _ended(me, spec.deadline, pid)
    if not ended_as_asked(spec, reason):
        report(me, "shutdown_error", spec.id, pid, reason)


async def _ended(me: Process, deadline: Deadline, pid: Pid) -> Reason:
    target = me.node.awaken(pid)
    me.unlink(pid)
    if target is None:
        return taken_exit(me, pid)
    ended = Slot()
    target.unlink(me.pid)
    target.watch(ended, ended.resolve)
    timer = None
    if isinstance(deadline, BrutalKill):
        target.kill()
    else:
        target.signal(me.pid, SHUTDOWN)
        timer = None if deadline == INFINITY else me.node.timers.after(deadline, target.kill)
    try:
        return await ended.wait()
    finally:
        if timer is not None:
            timer.cancel()


def ended_as_asked(spec: ChildSpec, reason: Reason) -> bool:
    """Whether a child that was told to end did so for no other reason."""
    if spec.deadline is BRUTAL_KILL:
        return reason is KILLED
    if reason is SHUTDOWN or isinstance(reason, Shutdown):
        return True
    return reason is NORMAL and spec.restart is not PERMANENT
