"""The node: one flat nursery of processes, the table of who lives, names, timers and reports.

One node a trio run. Supervision trees are data inside their supervisors; to trio all processes are siblings.
"""

from __future__ import annotations

import contextvars
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Self

import trio

from engine.otp import trace
from engine.otp.context import current_node, node_var, process_var
from engine.otp.names import UniqueNames
from engine.otp.pid import ROOT, Address, Pid, Via, new_pid
from engine.otp.process import Blueprint, Process, run
from engine.otp.reasons import KILLED, SHUTDOWN, AlreadyStarted, Reason, StartFailed
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
    ) -> None:
        self.kill_grace = kill_grace
        self.end_grace = end_grace
        self.shutdown_deadline = shutdown
        self.names = UniqueNames()
        self.timers = Timers()
        self.tracer = trace.Tracer()
        self.table: dict[Pid, Process] = {}
        self.zombies: dict[Pid, Process] = {}
        self.failure: BaseException | None = None
        self._report = report
        self._nursery: trio.Nursery | None = None
        self._body: trio.CancelScope | None = None
        self._scope: trio.CancelScope | None = None
        self._context = contextvars.Context()

    @classmethod
    @asynccontextmanager
    async def open(cls, **options: Any) -> AsyncIterator[Self]:
        """Opens a node for the block and makes it the current one.

        When the block ends, however it ends, processes nobody supervises are shut down in reverse order of start,
        with everything below them. Options: `report` takes each report (default: logging). `kill_grace`: seconds
        after a kill before a process that does not end is declared a zombie. `end_grace`: seconds a process may clean
        up after any other exit signal before it is killed. `shutdown`: seconds for the whole node to end in order.
        """
        node = cls(**options)
        async with trio.open_nursery() as outer:
            await outer.start(node._run)
            token = node_var.set(node)
            try:
                with trio.CancelScope() as node._body:
                    yield node
            finally:
                node_var.reset(token)
                await node._close()
                outer.cancel_scope.cancel()
        if node.failure is not None:
            raise node.failure

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        # Shielded: a cancelled block ends the processes through `_close`, in order, and not all at once.
        with trio.CancelScope(shield=True) as scope:
            async with trio.open_nursery() as nursery:
                self._scope = scope
                self._nursery = nursery
                self._context = contextvars.copy_context()
                self._context.run(node_var.set, self)
                self._context.run(process_var.set, None)
                nursery.start_soon(self.timers.run)
                task_status.started()
                await trio.sleep_forever()

    async def _close(self) -> None:
        with trio.CancelScope(shield=True):
            with trio.move_on_after(self.shutdown_deadline):
                for process in reversed(list(self.table.values())):
                    if process.blueprint.parent is ROOT and not process.dead:
                        await self.shut_down(process, SHUTDOWN)
            for process in list(self.table.values()):
                process.kill()
            while self.table:
                await self._end_of(next(iter(self.table.values())))
            if self.zombies:
                logger.critical("the node cannot close before its zombies end: %s", list(self.zombies.values()))
            if self._scope is not None:
                self._scope.cancel()

    async def shut_down(self, process: Process, reason: Reason) -> None:
        """Asks a process to end and waits until it has."""
        process.signal(ROOT, reason)
        await self._end_of(process)

    async def _end_of(self, process: Process) -> None:
        ended = Slot()
        process.watch(ended, ended.resolve)
        await ended.wait()

    # --- who lives ----------------------------------------------------------------------------------------

    def awaken(self, address: Address) -> Process | None:
        """The living process at an address; None when there is none."""
        return self.table.get(address) if isinstance(address, Pid) else self._named(address)

    def _named(self, name: str | Via) -> Process | None:
        pid = self.names.whereis(name) if isinstance(name, str) else name.registry.resolve(name.key)
        return None if pid is None else self.table.get(pid)

    def is_alive(self, pid: Pid) -> bool:
        return pid in self.table

    def pids(self) -> Iterable[Pid]:
        return list(self.table)

    def ancestors(self, parent: Pid) -> tuple[Pid, ...]:
        """The chain of living parents, nearest first."""
        chain: list[Pid] = []
        process = self.table.get(parent)
        while process is not None:
            chain.append(process.pid)
            process = self.table.get(process.blueprint.parent)
        return tuple(chain)

    def forget(self, process: Process) -> None:
        self.table.pop(process.pid, None)

    def unwatch(self, pid: Pid, key: object) -> None:
        process = self.table.get(pid)
        if process is not None:
            process.unwatch(key)

    # --- starting -----------------------------------------------------------------------------------------

    def launch(
        self, blueprint: Blueprint, args: tuple[Any, ...], names: Iterable[str | Via], starter: Slot | None
    ) -> Process:
        """Makes a process, registers its names and hands it to trio, all at once.

        Raises:
            StartFailed: AlreadyStarted when a name is taken; then nothing was started.
        """
        if self._nursery is None:
            raise StartFailed(SHUTDOWN)
        process = Process(self, new_pid(), blueprint, args, starter)
        self._register(process, names)
        self.table[process.pid] = process
        if blueprint.linked:
            self.table[blueprint.parent].link(process.pid)
        self._context.run(partial(self._nursery.start_soon, run, process, name=blueprint.kind))
        if self.tracer.on:
            self.tracer.emit(trace.Spawned(process.pid, blueprint.kind, blueprint.parent))
        return process

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
            self._report(report)
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
        process.finish(KILLED)

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
