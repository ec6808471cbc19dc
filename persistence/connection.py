"""psycopg's asynchronous connection, running natively on trio.

psycopg speaks the protocol in generators that say which direction of the socket they wait for; only the driver of
those generators knows an event loop. `TrioConnection` replaces that driver and the few other places where
`AsyncConnection` reaches for asyncio. It leans on private names of psycopg (listed in `PRIVATE_NAMES`, held by
`tests/persistence/test_connection.py`), which is why the dependency is pinned below the next minor version.

May import psycopg and trio, nothing of ours.
"""

from __future__ import annotations

import logging
import math
import os
import select
import socket
from collections.abc import Generator
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import Any, Self, cast

import msgspec
import psycopg
import trio
from psycopg import errors, pq
from psycopg._conninfo_attempts import conninfo_attempts
from psycopg._enums import Ready, Wait
from psycopg.abc import AdaptContext, ConnParam, PQGen, PQGenConn
from psycopg.conninfo import make_conninfo, timeout_from_conninfo
from psycopg.rows import AsyncRowFactory, tuple_row
from psycopg.types.json import set_json_dumps, set_json_loads

log = logging.getLogger(__name__)

YIELD_BUDGET = 0.005
"""Seconds for which one connection may keep the loop without a checkpoint while its socket never blocks."""

CANCEL_TIMEOUT = 2.0
"""Seconds given to the server to end a statement whose caller was cancelled; then the connection is dropped."""

_TUPLES = cast(AsyncRowFactory[Any], tuple_row)

PRIVATE_NAMES = (
    "_cancel_gen",
    "_connect_gen",
    "_get_connection_params",
    "_should_cancel",
    "_pipeline_nolock",
    "_try_cancel",
)


class TrioConnection(psycopg.AsyncConnection[Any]):
    """An `AsyncConnection` for trio. One task uses it at a time, or several through its lock.

    A task that is cancelled while it waits for a statement cancels that statement on the server, and the
    connection can be used again; when the server does not answer within `CANCEL_TIMEOUT` the connection is closed.
    A transaction block that is cancelled cannot send its ROLLBACK: the connection stays in the failed transaction,
    and the pool closes such a one.
    """

    lock: trio.Lock  # type: ignore[assignment]
    served: dict[tuple[str, int], int]
    """Of each queue and priority, the turn that was claimed last. A pool's connections share it (see `jobs.rows`)."""

    def __init__(self, pgconn: pq.abc.PGconn, row_factory: AsyncRowFactory[Any] = _TUPLES) -> None:
        super().__init__(pgconn, row_factory)
        self.lock = trio.Lock()
        self.served = {}
        self._yielded_at = 0.0

    @classmethod
    async def connect(  # type: ignore[override]
        cls,
        conninfo: str = "",
        *,
        autocommit: bool = True,
        prepare_threshold: int | None = 5,
        context: AdaptContext | None = None,
        **kwargs: ConnParam,
    ) -> Self:
        """Connects to the first server of `conninfo` that answers. Raises psycopg.OperationalError."""
        params = await cls._get_connection_params(conninfo, **kwargs)
        timeout = timeout_from_conninfo(params)
        # name resolution blocks, so it is a thread's; for a socket in the file system there is nothing to resolve
        resolve = partial(conninfo_attempts, params)
        host = str(params.get("host") or "/")
        attempts = resolve() if host.startswith("/") else await trio.to_thread.run_sync(resolve)
        failure: errors.Error | None = None
        for attempt in attempts:
            try:
                connection = await _drive_connecting(cls._connect_gen(make_conninfo("", **attempt)), timeout)
            except errors.Error as problem:
                failure = problem
                continue
            connection._autocommit = autocommit
            connection.prepare_threshold = prepare_threshold
            if context:
                connection._adapters = psycopg.adapt.AdaptersMap(context.adapters)
            return cast(Self, connection)
        raise failure or errors.OperationalError("there is no server to connect to")

    async def wait(self, gen: PQGen[Any], interval: float = 0.0, timeout: float | None = None) -> Any:
        """Runs one of psycopg's generators to its end.

        Raises:
            psycopg.errors._WaitTimeout: it did not end within `timeout` seconds.
        """
        try:
            return await self._drive(gen, timeout)
        except (trio.Cancelled, KeyboardInterrupt):
            if self._pipeline:
                self.pgconn.finish()  # answers of several statements are on their way: nobody could sort them out
            elif self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
                await self._abandon(gen)
            raise
        finally:
            with suppress(psycopg.Error):
                gen.close()

    async def _drive(self, gen: PQGen[Any], timeout: float | None) -> Any:
        with trio.move_on_after(math.inf if timeout is None else timeout) as scope:
            try:
                wanted = next(gen)
                fileno = self.pgconn.socket
                poll = select.poll()
                while True:
                    wanted = gen.send(await self._ready(poll, fileno, wanted))
            except StopIteration as end:
                return end.value
        if scope.cancelled_caught:
            raise errors._WaitTimeout("wait timeout expired")
        raise AssertionError("a generator of psycopg neither ended nor waited")

    async def _ready(self, poll: select.poll, fileno: int, wanted: Wait) -> Ready:
        """Waits until the socket is ready in a wanted direction, yielding to the loop when the budget is spent."""
        if perf_counter() - self._yielded_at > YIELD_BUDGET:
            await self._checkpoint()
        if ready := _poll(poll, fileno, wanted):
            return ready
        await _block(fileno, wanted)
        self._yielded_at = perf_counter()
        return _poll(poll, fileno, wanted)

    async def _checkpoint(self) -> None:
        await trio.lowlevel.checkpoint()
        self._yielded_at = perf_counter()

    async def _abandon(self, gen: PQGen[Any]) -> None:
        """Ends the statement on the server, so that the connection is usable again; or drops the connection."""
        with trio.move_on_after(CANCEL_TIMEOUT, shield=True) as scope:
            try:
                await self.cancel_safe(timeout=CANCEL_TIMEOUT)
                await self._drive(gen, None)
            except errors.QueryCanceled:
                return
            except psycopg.Error as problem:
                log.warning("a statement could not be cancelled: %s", problem)
                self.pgconn.finish()
        if scope.cancelled_caught:
            self.pgconn.finish()

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Asks the server, over a second connection, to end the running statement."""
        if not self._should_cancel():
            return
        if pq.version() >= 170000:
            await _drive_connecting(self._cancel_gen(), timeout)
        else:
            await trio.to_thread.run_sync(self.cancel)

    async def close(self) -> None:
        """Closes the connection. Never waits, so it may be called in a cancelled scope."""
        if not self.closed:
            self._closed = True
            self.pgconn.finish()

    def drop(self) -> None:
        """Ends the connection under whoever uses it: their statement raises OperationalError, and they give it back.

        Only its line is cut. To free it (`finish`) here would pull libpq's memory from under psycopg's generators,
        which hold a bare pointer to it while they wait.
        """
        if self.pgconn.status == pq.ConnStatus.OK:
            with socket.socket(fileno=os.dup(self.pgconn.socket)) as line, suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    @property
    def at_rest(self) -> bool:
        """Whether nothing is under way on it: a user who was cancelled may leave a pipeline or a transaction open."""
        return (
            not self.closed
            and self._pipeline is None
            and self.pgconn.pipeline_status == pq.PipelineStatus.OFF
            and self.pgconn.transaction_status == pq.TransactionStatus.IDLE
        )

    def hung_up(self) -> bool:
        """Whether this idle connection is of no use any more, as far as is known without asking the server.

        A server that says something unasked most likely says farewell.
        """
        return self.closed or bool(_poll(select.poll(), self.pgconn.socket, Wait.R))

    async def dead(self) -> None:
        """Returns once the server has closed this idle connection; how an outage is noticed before anyone asks."""
        while not self.closed:
            await trio.lowlevel.wait_readable(self.pgconn.socket)
            try:
                self.pgconn.consume_input()
            except psycopg.OperationalError:
                self.pgconn.finish()


def _poll(poll: select.poll, fileno: int, wanted: Wait) -> Ready:
    """What of the wanted directions is ready now. An error on the socket counts as ready: the next read reports it."""
    poll.register(fileno, (select.POLLIN if wanted & Wait.R else 0) | (select.POLLOUT if wanted & Wait.W else 0))
    events = poll.poll(0)
    if not events:
        return Ready.NONE
    found = events[0][1]
    if found & ~(select.POLLIN | select.POLLOUT):
        return Ready(int(wanted))
    return Ready((Ready.R if found & select.POLLIN else 0) | (Ready.W if found & select.POLLOUT else 0))


async def _block(fileno: int, wanted: Wait) -> None:
    """Sleeps until the socket is ready in one of the wanted directions."""
    try:
        if wanted == Wait.R:
            await trio.lowlevel.wait_readable(fileno)
        elif wanted == Wait.W:
            await trio.lowlevel.wait_writable(fileno)
        else:
            await _block_both(fileno)
    except (trio.ClosedResourceError, OSError) as problem:
        raise errors.OperationalError(f"the connection's socket is gone: {problem}") from problem


async def _block_both(fileno: int) -> None:
    try:
        async with trio.open_nursery() as nursery:

            async def first(wait: Any) -> None:
                with suppress(OSError, trio.ClosedResourceError):  # the next read or write says what is wrong
                    await wait(fileno)
                nursery.cancel_scope.cancel()

            nursery.start_soon(first, trio.lowlevel.wait_readable)
            nursery.start_soon(first, trio.lowlevel.wait_writable)
    except BaseExceptionGroup as group:
        # cancelled from outside: callers look for a Cancelled, not for a group of them
        raise group.exceptions[0] from None


async def _drive_connecting(gen: PQGenConn[Any] | Generator[Any, Any, Any], timeout: float | None) -> Any:
    """Runs a generator that opens a connection (its socket may change). Raises psycopg.errors.ConnectionTimeout."""
    poll = select.poll()
    with trio.move_on_after(timeout or math.inf):
        try:
            fileno, wanted = next(gen)
            while True:
                await _block(fileno, wanted)
                poll = select.poll()
                fileno, wanted = gen.send(_poll(poll, fileno, wanted))
        except StopIteration as end:
            return end.value
    raise errors.ConnectionTimeout("the server did not answer in time")


def _dumps(value: object) -> bytes:
    return msgspec.json.encode(value)


def use_msgspec(context: AdaptContext | None = None) -> None:
    """Lets json columns be read and written by msgspec: nine times as fast as the standard library."""
    set_json_dumps(_dumps, context)
    set_json_loads(msgspec.json.decode, context)
