"""Connections that are kept for the next request to the same server, and no more of them than there may be.

Imports `exchange` and `wire`.
"""

from __future__ import annotations

import ssl
from collections import defaultdict, deque

import trio
from attrs import field, frozen

from engine.http.exchange import Ask, Exchange
from engine.http.wire import Wire, dial


class CannotConnect(Exception):
    """Nobody answers there, or not as the one who was asked for."""


class ConnectTimedOut(Exception):
    """The connection, or its TLS, did not come to be in time."""


class NoneFree(Exception):
    """All connections that there may be stayed in use for as long as the request was ready to wait."""


@frozen
class Origin:
    """Where connections lead. `name` is the certificate's, where that is not the host's."""

    secure: bool
    host: str
    port: int
    name: str | None = None


@frozen
class Patience:
    """Timeouts in seconds: for a free place in the pool, and for a connection."""

    pool: float | None = None
    connect: float | None = None


@frozen(eq=False)
class Pool:
    """`most` connections at once; those idle are kept for `keep` seconds, `most_idle` of them an origin."""

    context: ssl.SSLContext | None
    most: int = 1000
    most_idle: int = 100
    keep: float = 30.0
    _places: trio.Semaphore = field(init=False)
    _idle: dict[Origin, deque[tuple[Wire, float]]] = field(factory=lambda: defaultdict(deque), init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_places", trio.Semaphore(self.most))

    async def begin(self, origin: Origin, ask: Ask, patience: Patience) -> Held:
        """Asks, on a kept connection or a new one, and reads the answer's head.

        Raises:
            CannotConnect, ConnectTimedOut, NoneFree: nothing was sent.
            OSError, and what Exchange.head raises: it may have been.
        """
        with _within(patience.pool) as scope:
            await self._places.acquire()
        if scope.cancelled_caught:
            raise NoneFree(f"all {self.most} connections are in use")
        wire = None
        try:
            wire = self._kept(origin) or await self._dialled(origin, patience.connect)
            exchange = Exchange(wire, ask)
            await exchange.head()
        except BaseException:
            self._drop(wire)
            raise
        return Held(self, origin, wire, exchange)

    def _kept(self, origin: Origin) -> Wire | None:
        idle, now = self._idle[origin], trio.current_time()
        while idle:
            wire, until = idle.pop()  # the one used last is the likeliest to stand
            if now < until and wire.quiet:
                return wire
            wire.close()
        return None

    async def _dialled(self, origin: Origin, timeout: float | None) -> Wire:
        context = self.context if origin.secure else None
        try:
            with _within(timeout):
                return await dial(origin.host, origin.port, context, origin.name)
        except OSError as problem:
            raise CannotConnect(str(problem) or type(problem).__name__) from problem
        raise ConnectTimedOut(f"no connection to {origin.host} within {timeout:g} s")

    def _drop(self, wire: Wire | None) -> None:
        if wire is not None:
            wire.close()
        self._places.release()

    def _put_back(self, origin: Origin, wire: Wire) -> None:
        now = trio.current_time()
        self._idle[origin].append((wire, now + self.keep))
        for idle in self._idle.values():
            while idle and (len(idle) > self.most_idle or idle[0][1] < now):
                idle.popleft()[0].close()
        self._places.release()

    def close(self) -> None:
        """Closes what is idle; what is in use is its users'."""
        for idle in self._idle.values():
            for wire, _ in idle:
                wire.close()
        self._idle.clear()


class Held:
    """An exchange on a connection of the pool; goes back there, or is closed, with `close`."""

    __slots__ = ("_origin", "_pool", "_wire", "exchange")

    def __init__(self, pool: Pool, origin: Origin, wire: Wire, exchange: Exchange) -> None:
        self.exchange = exchange
        self._pool: Pool | None = pool
        self._origin = origin
        self._wire = wire

    def close(self) -> None:
        """The response is of no further use. A connection in the middle of one cannot be kept. Idempotent."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        self.exchange.settle()
        if self.exchange.reusable:
            pool._put_back(self._origin, self._wire)
        else:
            pool._drop(self._wire)


def _within(timeout: float | None) -> trio.CancelScope:
    return trio.move_on_after(float("inf") if timeout is None else timeout)
