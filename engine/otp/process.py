"""The process: mailbox, links, monitors, exit signals, and the one path by which it ends.

Everything but `run` is synchronous, so a message is delivered, or an end announced, in one step that nobody
interrupts. May import data modules, `slot` and `reports`; the node that owns processes is known by type only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import trio
from attrs import frozen
from trio.lowlevel import Abort, RaiseCancelT, Task, current_task, enable_ki_protection, reschedule
from trio.lowlevel import wait_task_rescheduled as _sleep

from engine.otp import trace
from engine.otp.context import process_var
from engine.otp.messages import HIBERNATE, Call, Cast, Down, ExitSignal
from engine.otp.pid import ROOT, Pid, Ref, Via
from engine.otp.preempt_frames import preemptible
from engine.otp.reasons import KILLED, NORMAL, Atom, Reason, is_clean, reason_of
from engine.otp.reports import CrashReport, summary
from engine.otp.slot import Slot

if TYPE_CHECKING:
    from engine.otp.node import Node
    from engine.otp.timers import Timer

Body = Callable[["Process"], Awaitable[Reason]]
Watcher = Callable[[Reason], object]
R = TypeVar("R")


ASLEEP = Atom("asleep")
"""What a body answers that has not ended, but hibernates."""


class Throw(BaseException):
    """Raised anywhere below a callback, makes `value` what the callback returns."""

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.value = value


@preemptible
async def call_user(function: Callable[..., Awaitable[R]], *args: Any) -> R:
    """The only door from the engine into user code: what runs below it may be interrupted, the engine may not."""
    try:
        return await function(*args)
    except Throw as thrown:
        return thrown.value  # type: ignore[no-any-return]


@frozen(eq=False)
class Blueprint:
    """What processes of one sort under one parent have in common; one object for all of them.

    `kind` is the name shown to people; `body` runs the process; `subject` is the server class or the function.
    `max_mailbox` bounds waiting messages (None: no bound). `budget` is the longest step in seconds before the
    watchdog interrupts it (None: the watchdog's own). `linked` says that it starts linked to `parent`.
    """

    kind: str
    body: Body
    subject: Any
    parent: Pid = ROOT
    linked: bool = False
    trap_exit: bool = False
    max_mailbox: int | None = None
    budget: float | None = None
    hibernate_after: float | None = None


class Process:
    """A living process. Only its node makes one; others know its pid."""

    __slots__ = (
        "alarm",
        "args",
        "behaviour",
        "blueprint",
        "blueprints",
        "busy",
        "condemned",
        "dead",
        "doom",
        "exiting",
        "handled",
        "last",
        "life",
        "links",
        "monitoring",
        "names",
        "node",
        "peak",
        "pid",
        "queue",
        "refused",
        "sleeper",
        "started_at",
        "starter",
        "state",
        "task",
        "tied",
        "trap_exit",
        "verdict",
        "watchers",
    )

    def __init__(self, node: Node, pid: Pid, blueprint: Blueprint, args: tuple[Any, ...], starter: Slot | None) -> None:
        self.node = node
        self.pid = pid
        self.blueprint = blueprint
        self.args: tuple[Any, ...] = args
        self.starter = starter
        self.verdict: Reason = None
        self.behaviour: Any = None
        self.state: Any = None
        self.queue: deque[object] | None = None
        self.task: Task | None = None
        self.sleeper: Task | None = None
        self.life: trio.CancelScope | None = None
        self.exiting: Reason = None
        self.dead = False
        self.condemned = False
        self.doom: Timer | None = None
        self.alarm: Timer | None = None
        self.trap_exit = blueprint.trap_exit
        self.tied = blueprint.linked
        self.links: set[Pid] | None = None
        self.watchers: dict[object, Watcher] | None = None
        self.monitoring: dict[Ref, Pid] | None = None
        self.names: list[Via] = []
        self.blueprints: dict[object, Blueprint] | None = None
        self.started_at = trio.current_time()
        self.handled = 0
        self.refused = 0
        self.peak = 0
        self.busy = 0.0
        self.last: object = None

    def __repr__(self) -> str:
        return f"<Process {self.pid} {self.blueprint.kind}>"

    @property
    def budget(self) -> float | None:
        """Seconds that one step may take before the watchdog interrupts it; None: the watchdog's default."""
        return self.blueprint.budget

    def blueprint_of_child(self, kind: str, body: Body, subject: Any, linked: bool, *options: Any) -> Blueprint:
        """The blueprint of what this process starts: the same object for the same sort, for as long as it lives."""
        known = self.blueprints
        if known is None or len(known) > 64:
            known = self.blueprints = {}
        key = (subject, body, linked, options)
        found = known.get(key)
        if found is None:
            found = known[key] = Blueprint(kind, body, subject, self.pid, linked, *options)
        return found

    # --- mailbox ------------------------------------------------------------------------------------------

    def put(self, entry: object) -> None:
        """Appends to the mailbox and wakes the process. Never waits, never refuses."""
        queue = self.queue
        if queue is None:
            self.queue = queue = deque()
        queue.append(entry)
        sleeper = self.sleeper
        if sleeper is not None:
            self.sleeper = None
            reschedule(sleeper)

    def offer(self, entry: object) -> bool:
        """`put`, unless the mailbox is bounded and full: then False."""
        limit = self.blueprint.max_mailbox
        if limit is not None and self.queue is not None and len(self.queue) >= limit:
            self.refused += 1
            if self.node.tracer.on:
                self.node.tracer.emit(trace.Refused(self.pid, self.blueprint.kind))
            return False
        self.put(entry)
        return True

    async def sleep(self) -> None:
        """Waits for `put` or `wake`. An idle process keeps no queue: an empty deque alone weighs 600 bytes."""
        if not self.queue:
            self.queue = None
        self.sleeper = self.task
        await _sleep(self.stop_sleeping)

    def stop_sleeping(self, _: RaiseCancelT) -> Abort:
        """Abort function of a sleeping process."""
        # In the abort, not when Cancelled arrives: a put in between must not reschedule the task once more.
        self.sleeper = None
        return Abort.SUCCEEDED

    def hibernate(self) -> None:
        """Asks a server to hibernate if it is idle and does not wait for a time of its own."""
        if self.sleeper is not None and not self.queue and self.behaviour is not None and self.alarm is None:
            self.put(HIBERNATE)

    def wake(self) -> None:
        """Ends `sleep` without a message."""
        sleeper = self.sleeper
        if sleeper is not None:
            self.sleeper = None
            reschedule(sleeper)

    def discard(self, unwanted: Callable[[object], bool]) -> None:
        """Takes waiting messages out of the mailbox."""
        if self.queue:
            self.queue = deque(entry for entry in self.queue if not unwanted(entry))

    # --- links and monitors -------------------------------------------------------------------------------

    def link(self, other: Pid) -> None:
        if self.links is None:
            self.links = set()
        self.links.add(other)

    def adopt(self, child: Pid) -> None:
        """Links a child that starts linked, unless the behaviour keeps its children anyway."""
        if self.behaviour is None or not self.behaviour.keeps_children:
            self.link(child)

    def unlink(self, other: Pid) -> None:
        if self.tied and other == self.blueprint.parent:
            self.tied = False
        if self.links is not None:
            self.links.discard(other)

    def is_linked(self, other: Pid) -> bool:
        if self.links is not None and other in self.links:
            return True
        if self.tied and other == self.blueprint.parent:
            return True
        return self.behaviour is not None and self.behaviour.is_child(self.state, other)

    def linked(self) -> list[Pid]:
        """Everybody linked to this process, each once."""
        links = list(self.links) if self.links else []
        if self.behaviour is not None and self.behaviour.keeps_children:
            links += self.behaviour.children_of(self.state)
        parent = self.blueprint.parent
        if self.tied and parent not in links:
            links.append(parent)
        return links

    def watch(self, key: object, watcher: Watcher) -> None:
        """`watcher(reason)` is called when this process ends, unless `unwatch(key)` came first."""
        if self.watchers is None:
            self.watchers = {}
        self.watchers[key] = watcher

    def unwatch(self, key: object) -> None:
        if self.watchers is not None:
            self.watchers.pop(key, None)

    def monitor(self, target: Process, ref: Ref) -> None:
        """Sends this process a Down when `target` ends."""
        if self.monitoring is None:
            self.monitoring = {}
        self.monitoring[ref] = target.pid
        target.watch(ref, partial(_deliver_down, self.node, self.pid, ref, target.pid))

    # --- exit signals -------------------------------------------------------------------------------------

    def signal(self, sender: Pid | None, reason: Reason) -> None:
        """An exit signal: a message when trapping, else the end, unless the reason is NORMAL."""
        if self.dead:
            return
        if self.trap_exit:
            self.put(ExitSignal(sender, reason))
        elif reason is not NORMAL:
            self.end(reason)

    def end(self, reason: Reason) -> None:
        """Cancels whatever the process does. If it has not ended some seconds later it is killed."""
        if self.exiting is None:
            self.exiting = reason
            self._cancel()
            self._doom_after(self.node.end_grace, self.kill)

    def kill(self) -> None:
        """The end that cannot be trapped, with KILLED, unless it is ending already. After a grace: a zombie."""
        if self.condemned or self.dead:
            return
        self.condemned = True
        if self.exiting is None:
            self.exiting = KILLED
        self._cancel()
        self._doom_after(self.node.kill_grace, partial(self.node.declare_zombie, self))

    def _cancel(self) -> None:
        if self.life is not None:
            self.life.cancel()

    def _doom_after(self, seconds: float, action: Callable[[], object]) -> None:
        if self.doom is not None:
            self.doom.cancel()
        self.doom = self.node.timers.after(seconds, action)

    # --- start and end ------------------------------------------------------------------------------------

    def acknowledge(self, answer: object) -> None:
        """Tells the starter that the process is up; only the first time counts."""
        starter, self.starter = self.starter, None
        if starter is not None:
            starter.resolve(answer)

    def reason_for(self, error: BaseException) -> Reason:
        """The reason when the body raised `error`: a signal's, except that a failing clean-up outranks it."""
        if self.exiting is not None and (self.exiting is KILLED or _is_only_cancelled(error)):
            return self.exiting
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self.node.abort(error)
        return reason_of(error)

    def finish(self, reason: Reason) -> None:
        """The only way out: names are freed, then links and monitors hear of it, all in this one step."""
        if self.dead:
            return
        self.dead = True
        if self.doom is not None:
            self.doom.cancel()
        # Who was ended by a signal is not the one that failed.
        crashed = reason is not self.exiting and not is_clean(reason)
        report = self.crash_report(reason) if crashed else None
        self.node.forget(self)
        for via in self.names:
            via.registry.forget(via.key, self.pid)
        if self.starter is not None:
            self.starter.fail(reason if self.verdict is None else self.verdict)
        for pid in self.linked():
            self.node.exit_signal(pid, self.pid, reason)
        for watcher in list(self.watchers.values()) if self.watchers else ():
            watcher(reason)
        for ref, pid in self.monitoring.items() if self.monitoring else ():
            self.node.unwatch(pid, ref)
        if self.node.tracer.on:
            self.node.tracer.emit(trace.Exited(self.pid, self.blueprint.kind, reason))
        if report is not None:
            self.node.report(report)

    def crash_report(self, reason: Reason) -> CrashReport:
        last = self.last
        caller = last.caller if isinstance(last, Call) else None
        return CrashReport(
            pid=self.pid,
            names=tuple(via.key for via in self.names),
            kind=self.blueprint.kind,
            ancestors=self.node.ancestors(self.blueprint.parent),
            reason=reason,
            last_message=summary(_content(last)),
            state=summary(self.shown_state()),
            mailbox=len(self.queue or ()),
            links=tuple(self.linked()),
            client=caller.pid if caller is not None else None,
            client_stack=caller.stack() if caller is not None else "",
        )

    def shown_state(self) -> object:
        """The state as `format_status` lets it be seen; for plain processes None."""
        if self.behaviour is None:
            return None
        try:
            return self.behaviour.format_status(self.state)
        except Exception as error:  # noqa: BLE001 - a faulty redaction must hide the state, not stop the report
            return f"<format_status failed: {error!r}>"


def _deliver_down(node: Node, owner: Pid, ref: Ref, pid: Pid, reason: Reason) -> None:
    # By pid: between monitor and end the owner may have slept, and be another object since.
    process = node.awaken(owner)
    if process is not None and process.monitoring is not None and process.monitoring.pop(ref, None) is not None:
        process.put(Down(ref, pid, reason))


def _is_only_cancelled(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)


def _content(entry: object) -> object:
    if isinstance(entry, Cast):
        return entry.message
    return entry.request if isinstance(entry, Call) else entry


@enable_ki_protection
async def run(process: Process) -> None:
    """Root of every process's task: nothing that its body does escapes it."""
    process_var.set(process)
    process.task = current_task()
    reason: Reason = NORMAL
    with trio.CancelScope(shield=True) as life:
        process.life = life
        if process.exiting is not None:
            life.cancel()
        try:
            reason = await process.blueprint.body(process)
        except BaseException as error:  # noqa: BLE001 - the boundary between a process and all the others
            reason = process.reason_for(error)
    if process.exiting is KILLED or (process.exiting is not None and reason in (NORMAL, ASLEEP)):
        reason = process.exiting
    # The task's context knows the process: without this they would be a cycle, for the garbage collector to find.
    process.task = process.life = None
    if reason is ASLEEP:
        process.node.lay_down(process)
        return
    process.finish(reason)
    process.node.zombies.pop(process.pid, None)


async def run_function(process: Process) -> Reason:
    """Body of a plain process: a user's async function."""
    args, process.args = process.args, ()
    await call_user(process.blueprint.subject, *args)
    return NORMAL


async def run_plain(process: Process) -> Reason:
    """Body of a plain process that needs no acknowledgement: being spawned is being up."""
    process.acknowledge(process.pid)
    return await run_function(process)
