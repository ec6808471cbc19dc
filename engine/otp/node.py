"""The node: one flat nursery of processes, the table of who lives, names, timers and reports.

One node a trio run. Supervision trees are data inside their supervisors; to trio all processes are siblings.
"""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Self

import trio

from engine.otp import trace
from engine.otp.calls import fence
from engine.otp.collector import Collector
from engine.otp.context import current_node, node_var, process_var
from engine.otp.hibernation import Dormitory, Sweeper
from engine.otp.messages import HIBERNATE
from engine.otp.names import UniqueNames
from engine.otp.pid import ROOT, Address, Pid, Via, new_pid
from engine.otp.process import Blueprint, Process, run
from engine.otp.reasons import KILLED, NORMAL, SHUTDOWN, AlreadyStarted, Reason, StartFailed
from engine.otp.reports import Report, ReportHandler, ZombieReport, log_report, logger
from engine.otp.slot import Slot, describe
from engine.otp.timers import Timers


class Node:
    """Where processes live. Open one with `Node.open` and start processes inside."""

    def __init__(
        self,
        *,
        report: ReportHandler = log_report,
        kill_grace: float = 1.0,
        end_grace: float = 5.0,
        shutdown: float = 10.0,
        collector: tuple[int, int, int] | None = (10_000, 200, 50),
    ) -> None:
        self.kill_grace = kill_grace
        self.end_grace = end_grace
        self.shutdown_deadline = shutdown
        self._collector = Collector(collector)
        self.names = UniqueNames()
        self.timers = Timers()
        self.tracer = trace.Tracer()
        self.table: dict[Pid, Process] = {}
        self.zombies: dict[Pid, Process] = {}
        self.failure: BaseException | None = None
        self.on_report = report
        self._nursery: trio.Nursery | None = None
        self._body: trio.CancelScope | None = None
        self._scope: trio.CancelScope | None = None
        self._context = contextvars.Context()
        self._sweepers: dict[float, Sweeper] = {}
        self._dying: deque[tuple[Pid, Pid, Reason]] = deque()
        self.dormitory = Dormitory(self)

    @classmethod
    @asynccontextmanager
    async def open(cls, **options: Any) -> AsyncIterator[Self]:
        """Opens a node for the block and makes it the current one.

        When the block ends, however it ends, processes nobody supervises are shut down in reverse order of start,
        with everything below them. Options: `report` takes each report (default: logging). `kill_grace`: seconds
        after a kill before a process that does not end is declared a zombie. `end_grace`: seconds a process may clean
        up after any other exit signal before it is killed. `shutdown`: seconds for the whole node to end in order.
        `collector`: thresholds of Python's garbage collector while the node is open (None: it is left alone). With
        the default ones of Python half of the time of starting processes goes into looking for garbage.
        """
        node = cls(**options)
        failure: BaseException | None = None
        node._collector.open()
        async with trio.open_nursery() as outer:
            await outer.start(node._run)
            token = node_var.set(node)
            try:
                with trio.CancelScope() as node._body:
                    yield node
            except BaseException as error:  # noqa: BLE001 - raised again below, where the nursery cannot wrap it
                failure = error
            node_var.reset(token)
            await node._close()
        node._collector.close()
        if failure is not None or node.failure is not None:
            raise failure or node.failure  # type: ignore[misc]

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        # Shielded: a cancelled block ends the processes through `_close`, in order, and not all at once.
        with trio.CancelScope(shield=True) as scope:
            async with trio.open_nursery() as nursery:
                self._scope = scope
                self._nursery = nursery
                nursery.start_soon(self.timers.run)
                task_status.started()
                await trio.sleep_forever()

    async def _close(self) -> None:
        with trio.CancelScope(shield=True):
            with trio.move_on_after(self.shutdown_deadline):
                for pid in sorted(self.pids(), reverse=True):
                    await self._shut_down_top(pid)
            for pid in self.dormitory.pids():
                self.end_sleeper(pid, KILLED)
            for process in list(self.table.values()):
                process.kill()
            while self.table:
                await self._end_of(next(iter(self.table.values())))
            if self.zombies:
                logger.critical("the node cannot close before its zombies end: %s", list(self.zombies.values()))
            if self._scope is not None:
                self._scope.cancel()

    async def _shut_down_top(self, pid: Pid) -> None:
        """Ends a process that no process started, and waits until it has ended."""
        likeness = self.peek(pid)
        if likeness is None or likeness.blueprint.parent != ROOT:
            return
        process = None if self.end_sleeper(pid, SHUTDOWN) else self.awaken(pid)
        if process is not None:
            process.signal(ROOT, SHUTDOWN)
            await self._end_of(process)

    async def _end_of(self, process: Process) -> None:
        ended = Slot()
        process.watch(ended, ended.resolve)
        await ended.wait()

    # --- who lives ----------------------------------------------------------------------------------------

    def awaken(self, address: Address) -> Process | None:
        """The living process at an address, woken if it was asleep; None when there is none."""
        pid = address if isinstance(address, Pid) else self._pid_of(address)
        if pid is None:
            return None
        process = self.table.get(pid)
        return self._wake(pid) if process is None else process

    def peek(self, address: Address) -> Process | None:
        """As `awaken`, but a sleeper sleeps on: what is answered is its likeness, to read from."""
        pid = address if isinstance(address, Pid) else self._pid_of(address)
        if pid is None:
            return None
        return self.table.get(pid) or self.dormitory.look(pid)

    def _pid_of(self, name: str | Via) -> Pid | None:
        return self.names.whereis(name) if isinstance(name, str) else name.registry.resolve(name.key)

    def is_alive(self, pid: Pid) -> bool:
        return pid in self.table or pid in self.dormitory

    def pids(self) -> list[Pid]:
        return [*self.table, *self.dormitory.pids()]

    def ancestors(self, parent: Pid) -> tuple[Pid, ...]:
        """The chain of living parents, nearest first."""
        chain: list[Pid] = []
        process = self.peek(parent)
        while process is not None:
            chain.append(process.pid)
            process = self.peek(process.blueprint.parent)
        return tuple(chain)

    def forget(self, process: Process) -> None:
        self.table.pop(process.pid, None)
        population = len(self.table) + len(self.dormitory)
        if population < self._collector.thaw_at:
            self._collector.shrunk(population)

    def unwatch(self, pid: Pid, key: object) -> None:
        process = self.awaken(pid)
        if process is not None:
            process.unwatch(key)

    # --- asleep -------------------------------------------------------------------------------------------

    def lay_down(self, process: Process) -> None:
        """An idle process becomes a record, without anybody noticing; its task ends."""
        del self.table[process.pid]
        self.dormitory.lay_down(process)
        if self.tracer.on:
            self.tracer.emit(trace.Hibernated(process.pid, process.blueprint.kind))

    def _wake(self, pid: Pid) -> Process | None:
        process = self.dormitory.take(pid)
        if process is None:
            return None
        self.table[pid] = process
        # Back to sleep at once, unless what woke it also left a message.
        process.put(HIBERNATE)
        self._begin(process)
        if self.tracer.on:
            self.tracer.emit(trace.Revived(pid, process.blueprint.kind))
        return process

    def end_sleeper(self, pid: Pid, reason: Reason, by: Pid = ROOT) -> bool:
        """Ends a sleeper that has nothing of its own to do at its end, without waking it. False: it is not such.

        `by` is who ends it, and need not hear of it.
        """
        if reason is NORMAL or not self.dormitory.is_plain(pid):
            return False
        process = self.dormitory.take(pid)
        if process is not None:
            process.exiting = reason
            process.unlink(by)
            process.finish(reason)
        return True

    def exit_signal(self, pid: Pid, sender: Pid, reason: Reason) -> None:
        """To a process linked to one that ended."""
        if reason is not NORMAL and self.dormitory.is_plain(pid):
            # Later, and some at a time: a million sleepers may be linked to one supervisor.
            if not self._dying:
                self.timers.after(0, self._end_dying)
            self._dying.append((pid, sender, reason))
            return
        process = self.awaken(pid)
        if process is not None and process.is_linked(sender):
            process.unlink(sender)
            process.signal(sender, reason)

    def _end_dying(self) -> None:
        for _ in range(min(len(self._dying), 200)):
            pid, sender, reason = self._dying.popleft()
            if not self.end_sleeper(pid, reason, sender):
                self.exit_signal(pid, sender, reason)
        if self._dying:
            self.timers.after(0, self._end_dying)

    # --- starting -----------------------------------------------------------------------------------------

    def launch(
        self, blueprint: Blueprint, args: tuple[Any, ...], names: Iterable[str | Via], starter: Slot | None
    ) -> Process:
        """Makes a process, registers its names and hands it to trio, all at once.

        Raises:
            StartFailed: AlreadyStarted when a name is taken; then nothing was started.
        """
        fence(process_var.get())
        if self._nursery is None:
            raise StartFailed(SHUTDOWN)
        process = Process(self, new_pid(), blueprint, args, starter)
        self._register(process, names)
        self.table[process.pid] = process
        if blueprint.linked:
            self.table[blueprint.parent].adopt(process.pid)
        self._begin(process)
        population = len(self.table) + len(self.dormitory)
        if population >= self._collector.freeze_at:
            self._collector.grown(population)
        if self.tracer.on:
            self.tracer.emit(trace.Spawned(process.pid, blueprint.kind, blueprint.parent))
        return process

    def _begin(self, process: Process) -> None:
        assert self._nursery is not None
        blueprint = process.blueprint
        # In the node's own context: a process inherits no context variables from who starts or wakes it.
        self._context.run(partial(self._nursery.start_soon, run, process, name=blueprint.kind))
        idle = blueprint.hibernate_after
        if idle is not None:
            sweeper = self._sweepers.get(idle)
            if sweeper is None:
                sweeper = self._sweepers[idle] = Sweeper(self, idle)
            sweeper.add(process.pid)

    def _register(self, process: Process, names: Iterable[str | Via]) -> None:
        for name in names:
            via = Via(self.names, name) if isinstance(name, str) else name
            holder = via.registry.claim(via.key, process.pid, via.value)
            if holder is not None:
                for taken in process.names:
                    taken.registry.forget(taken.key, process.pid)
                raise StartFailed(AlreadyStarted(holder))
            process.names.append(via)

    # --- trouble ------------------------------------------------------------------------------------------

    def report(self, report: Report) -> None:
        try:
            self.on_report(report)
        except Exception:  # noqa: BLE001 - reporting must not be able to break what it reports on
            logger.exception("the report handler failed on %r", report)

    def declare_zombie(self, process: Process) -> None:
        """Gives up waiting: to everyone but trio the process is dead, its names free, what it sends refused."""
        if process.dead:
            return
        self.zombies[process.pid] = process
        stack = "" if process.task is None else describe(process.task)
        self.report(ZombieReport(process.pid, process.blueprint.kind, self.kill_grace, stack))
        if self.tracer.on:
            self.tracer.emit(trace.ZombieDeclared(process.pid, process.blueprint.kind))
        process.finish(process.exiting)

    def abort(self, error: BaseException) -> None:
        """KeyboardInterrupt or SystemExit rose inside a process: the node ends and its block raises it."""
        self.failure = self.failure or error
        if self._body is not None:
            self._body.cancel()


def whereis(name: str) -> Pid | None:
    """The pid registered under a name of the node."""
    return current_node().names.whereis(name)


def processes() -> Iterable[Pid]:
    """Every living process."""
    return current_node().pids()
