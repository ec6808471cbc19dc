"""Shutting users out for good: at once here, and kept in the database for the next start and for other servers.

The guard's copy decides; the process here brings it in line with the database every few seconds, and brings to the
database what could not be stored while it was away. May import `engine.otp` and the engine's ports.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import structlog
import trio
from attrs import define, field

from engine.otp import ChildSpec, Start, init_ack
from engine.ports import StorageDown
from web.auth.guard import Guard

PERIOD = 5.0
"""Seconds until another server's revocation is known here, at most."""
log = structlog.get_logger("elwift.auth")


class Store(Protocol):
    """Where revocations are kept; every method raises StorageDown."""

    async def all(self) -> frozenset[str]: ...

    async def put(self, user: str, by: str) -> None: ...

    async def remove(self, user: str) -> None: ...


def _nobody(socket_id: str) -> int:
    return 0


@define(eq=False)
class Revocations:
    """`disconnect` closes the sockets of a name (`users:<id>`) and answers how many. `spec` puts the process into the
    tree, before the endpoint: it is up once the database was asked, or could not be."""

    guard: Guard
    store: Store
    disconnect: Callable[[str], int] = _nobody
    period: float = PERIOD
    _unsaved: dict[str, str | None] = field(factory=dict, init=False)
    """Users whose change is not stored yet: by whom they were shut out, or None when they were let in again."""
    _changes: int = field(default=0, init=False)
    _saving: trio.Lock = field(factory=trio.Lock, init=False)

    def spec(self) -> ChildSpec:
        return ChildSpec(id="revocations", start=Start.process(self.run, name="revocations"))

    async def revoke(self, user: str, by: str) -> bool:
        """Refuses this user from now on, here; whether it is stored, too. Sockets that are open are not its concern."""
        self.guard.revoke(user)
        return await self._changed(user, by)

    async def restore(self, user: str) -> bool:
        """Lets this user in again; whether that is stored, too."""
        self.guard.restore(user)
        return await self._changed(user, None)

    async def _changed(self, user: str, by: str | None) -> bool:
        self._changes += 1
        self._unsaved[user] = by
        try:
            await self._save()
        except StorageDown:
            return False
        return user not in self._unsaved

    async def _save(self) -> None:
        """One at a time, so that the last word of each user is the last that is written."""
        async with self._saving:
            for user, by in tuple(self._unsaved.items()):
                await (self.store.remove(user) if by is None else self.store.put(user, by))
                if user in self._unsaved and self._unsaved[user] == by:
                    del self._unsaved[user]

    # --- the process -------------------------------------------------------------------------------------

    async def run(self) -> None:
        await self._round()
        init_ack()
        while True:
            await trio.sleep(self.period)
            await self._round()

    async def _round(self) -> None:
        try:
            await self._save()
            await self._load()
        except StorageDown:
            return  # said elsewhere, by the one who watches the database

    async def _load(self) -> None:
        """Takes over what is stored, unless something changed here while it was read."""
        changes = self._changes
        stored = await self.store.all()
        if changes != self._changes or self._unsaved:
            return
        for user in self.guard.shut_out(stored):
            closed = self.disconnect(f"users:{user}")
            log.info("shut out by another server or an earlier start", user=user, sockets=closed)
