"""Work that must not end with whoever asked for it: a purchase that is under way when its buyer is stopped.

An errand runs in a process of the tree, so it has an owner when the worker is gone. Whoever asked waits for its result;
when nobody waits any more, the result is handed to somebody who tidies up. Knows no provider; may import `engine.otp`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import structlog
import trio
from attrs import define, field

from engine.otp import ChildSpec, Start, init_ack

T = TypeVar("T")
FAREWELL = 4.0
"""Seconds that errands may go on when the server ends; what is cut off is found again after the next start."""
log = structlog.get_logger(__name__)


class Interrupted(Exception):
    """The errand has no result. `begun`: it may have had its effect all the same."""

    def __init__(self, begun: bool) -> None:
        super().__init__("the server ends")
        self.begun = begun


@define(eq=False)
class Slip(Generic[T]):
    """What an errand comes to. `wanted` turns false when nobody waits for it any more."""

    done: trio.Event = field(factory=trio.Event)
    wanted: bool = True
    results: list[T] = field(factory=list)
    problem: Exception | None = None


@define(eq=False)
class Errands:
    """A plain object, made before the tree; `attend` is the body of its process."""

    _nursery: trio.Nursery | None = None
    _scopes: set[trio.CancelScope] = field(factory=set)
    _idle: trio.Event = field(factory=trio.Event)

    def spec(self, id: str) -> ChildSpec:
        return ChildSpec(id, Start.process(self._process, name=id), shutdown=FAREWELL + 1.0)

    async def _process(self) -> None:
        init_ack()
        await self.attend()

    async def attend(self) -> None:
        """Runs errands until cancelled; those under way then have a few seconds more."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None
                await self._farewell()

    async def _farewell(self) -> None:
        self._idle = trio.Event()
        if self._scopes:
            with trio.move_on_after(FAREWELL, shield=True):
                await self._idle.wait()
        for scope in self._scopes:
            scope.cancel()

    async def run(self, work: Callable[[], Awaitable[T]], unwanted: Callable[[T], Awaitable[None]]) -> T:
        """The result of `work`. If this is cancelled meanwhile, `work` goes on, and `unwanted` gets what comes of it.

        Raises:
            Interrupted: the server ends.
            Exception: what `work` raised.
        """
        slip: Slip[T] = Slip()
        if self._nursery is None:
            raise Interrupted(begun=False)
        self._nursery.start_soon(self._on_behalf, slip, work, unwanted)
        try:
            await slip.done.wait()
        except BaseException:
            slip.wanted = False
            raise
        if slip.problem is not None:
            raise slip.problem
        return slip.results[0]

    def start(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Something that nobody waits for. False: the server ends, and it is not done."""
        if self._nursery is None:
            return False
        self._nursery.start_soon(self._alone, work)
        return True

    async def _on_behalf(
        self, slip: Slip[T], work: Callable[[], Awaitable[T]], unwanted: Callable[[T], Awaitable[None]]
    ) -> None:
        slip.problem = Interrupted(begun=True)
        try:
            await self._shielded(lambda: _into(slip, work))
        finally:
            slip.done.set()
        if slip.results and not slip.wanted:
            await self._alone(lambda: unwanted(slip.results[0]))

    async def _alone(self, work: Callable[[], Awaitable[None]]) -> None:
        """An errand that fails takes no other with it."""
        try:
            await self._shielded(work)
        except Exception:
            log.exception("errand failed")

    async def _shielded(self, work: Callable[[], Awaitable[None]]) -> None:
        with trio.CancelScope(shield=True) as scope:
            self._scopes.add(scope)
            try:
                await work()
            finally:
                self._scopes.discard(scope)
                if not self._scopes:
                    self._idle.set()


async def _into(slip: Slip[T], work: Callable[[], Awaitable[T]]) -> None:
    try:
        slip.results.append(await work())
        slip.problem = None
    except Exception as problem:  # noqa: BLE001 - whoever waits gets it
        slip.problem = problem
