"""Hears the database's notifications, and knows whether they still arrive.

A connection that listens can go deaf without an error (a proxy in between, a stopped server), so the notifier sends
itself a ping now and then. `Hearing.push` is true only while the pings come back; the poll is the net below.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio
from attrs import define, field

from engine.jobs import metrics
from engine.jobs.ports import JobStore, Notice, NoticeKind
from engine.otp import init_ack
from engine.ports import StorageDown

log = logging.getLogger(__name__)

ECHO_WITHIN = 5.0
"""Seconds in which a ping must come back."""
RECONNECT_AFTER = 1.0


@define(eq=False)
class Hearing:
    """Whether notifications arrive. A plain object, read by whoever shows it."""

    me: str
    push: bool = False
    _echo: trio.Event = field(factory=trio.Event)

    def heard(self, notice: Notice) -> None:
        if notice.kind is NoticeKind.PING and notice.subject == self.me:
            self._echo.set()
            self._become(True)

    def deaf(self) -> None:
        self._become(False)

    def _become(self, push: bool) -> None:
        if push != self.push:
            log.info("the job queue is woken by %s", "notifications" if push else "its poll only")
        self.push = push
        metrics.PUSH.set(push)

    async def test(self, store: JobStore) -> None:
        """Sends a ping and waits for it. Raises StorageDown when it does not come back in time."""
        self._echo = trio.Event()
        await store.notify(Notice(NoticeKind.PING, self.me))
        with trio.move_on_after(ECHO_WITHIN) as scope:
            await self._echo.wait()
        if scope.cancelled_caught:
            raise StorageDown("notifications do not arrive")


async def listen(store: JobStore, hearing: Hearing, on_notice: Callable[[Notice], None], ping_every: float) -> None:
    """The body of the notifier process."""
    init_ack()
    while True:
        try:
            await _listen_once(store, hearing, on_notice, ping_every)
        except StorageDown as problem:
            log.debug("not listening: %s", problem)
        hearing.deaf()
        await trio.sleep(RECONNECT_AFTER)


async def _listen_once(
    store: JobStore, hearing: Hearing, on_notice: Callable[[Notice], None], ping_every: float
) -> None:
    """Listens until the connection is lost or deaf. Raises StorageDown."""
    lost: list[StorageDown] = []
    async with store.notices() as notices, trio.open_nursery() as nursery:

        async def ping() -> None:
            try:
                while True:
                    await hearing.test(store)
                    await trio.sleep(ping_every)
            except StorageDown as problem:
                lost.append(problem)
                nursery.cancel_scope.cancel()

        nursery.start_soon(ping)
        try:
            async for notice in notices:
                hearing.heard(notice)
                on_notice(notice)
        except StorageDown as problem:
            lost.append(problem)
        nursery.cancel_scope.cancel()
    if lost:
        raise lost[0]
