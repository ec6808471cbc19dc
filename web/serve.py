"""Runs an application: its node and tree for the length of a block, or until a signal, with an orderly end.

May import `application` and `engine.otp`.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import structlog
import trio

from engine.errors import UserError
from engine.otp import REST_FOR_ONE, Down, Node, Pid, Reason, StartFailed, Supervisor, monitor, receive, spawn
from engine.otp.preempt import Watchdog
from engine.otp.preempt_reports import dump_stacks, end_os_process
from web.application import Application
from web.settings import Settings

log = structlog.get_logger("elwift")

SHARED = frozenset({"persistence", "psycopg", "httpx", "httpcore", "httpx2", "h11", "structlog", "prometheus_client"})
"""Code that keeps state for many processes: an interruption in the midst of it would tear what others use."""


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Application]:
    """A server for the length of a block: started in order, drained and stopped in reverse order at its end.

    Raises:
        UserError: it cannot start, or its tree gave up (`gave_up`); the message says why.
    """
    application = Application(settings)
    await application.prepare()
    try:
        async with Node.open(shutdown=settings.shutdown_timeout):
            application.operators.recent.listen()
            root = await _start(application)
            with trio.CancelScope() as life:
                ends: list[Reason] = []
                await spawn(_watch, root, ends, life, name="root watch")
                try:
                    yield application
                finally:
                    application.draining = True
                    with trio.CancelScope(shield=True):
                        await application.endpoint.drain()
        if ends:
            raise UserError("gave_up", f"The server gave up: {ends[0]!r}. The log says what happened before.")
    finally:
        application.persistence.release()


async def _start(application: Application) -> Pid:
    try:
        return await Supervisor.start_link(application.children(), REST_FOR_ONE, name="elwift")
    except StartFailed as failed:
        raise UserError("cannot_start", f"The server could not start: {failed.reason!r}.") from failed


async def _watch(root: Pid, ends: list[Reason], life: trio.CancelScope) -> None:
    """Ends the block when the tree ends by itself. At an orderly end the block is over before the tree is."""
    monitor(root)
    down = await receive(lambda message: isinstance(message, Down))
    assert isinstance(down, Down)
    ends.append(down.reason)
    life.cancel()


async def serve(settings: Settings, ready: Callable[[str], None]) -> None:
    """Runs until SIGTERM or SIGINT; `ready` is told the URL. A second signal does not wait for the orderly end.

    Raises:
        UserError: see `running`.
    """
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            told = trio.CancelScope()
            nursery.start_soon(_obey, signals, told)
            with told, _watchdog(settings):
                async with running(settings) as application:
                    _spare_collections()
                    ready(application.endpoint.urls[0])
                    await trio.sleep_forever()
            nursery.cancel_scope.cancel()


def _spare_collections() -> None:
    """Takes what was made at the start, code above all, out of the garbage collector's sight.

    How often it looks at the rest is the node's matter (`engine.otp.collector`).
    """
    gc.collect()
    gc.freeze()


async def _obey(signals: AsyncIterator[int], told: trio.CancelScope) -> None:
    log.info("stopping", signal=signal.Signals(await anext(signals)).name)
    told.cancel()
    log.warning("stopping at once", signal=signal.Signals(await anext(signals)).name)
    os._exit(1)


@contextmanager
def _watchdog(settings: Settings) -> Iterator[None]:
    """Interrupts a process that holds the loop. What cannot be interrupted ends the server only if that is set."""
    if settings.preempt_budget <= 0:
        yield
        return
    deadline = settings.wedged_deadline or None
    wedged = end_os_process if deadline else dump_stacks
    with Watchdog(settings.preempt_budget, wedged=wedged, deadline=deadline, fragile=SHARED):
        yield
