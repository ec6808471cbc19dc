"""Everybody who is connected by WebSocket, to be counted, disconnected by name, or sent away together.

May import this package's data and `web.sockets.transport`.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Protocol

import trio
from attrs import define, field

from web.sockets.transport import Accept, CloseCode, Transport

BATCHES = 20
"""Into how many batches a drain splits its sockets, so that their clients do not all come back at once."""
PAUSE = 0.01
"""Seconds of that spread for each socket: few are sent away at once, for a few returning hurt nobody."""
SHARE = 0.8
"""The largest part of the drain's time for that spread; the rest is for the last closing handshakes."""


class Member(Transport, Protocol):
    """A transport with what its handshake decided."""

    @property
    def accept(self) -> Accept: ...

    def abort(self) -> None:
        """Ends the connection now, without a word."""
        ...


@define
class Roster:
    """`draining`: nobody enters any more."""

    max_per_user: int = 0
    draining: bool = False
    _members: dict[Member, None] = field(factory=dict, init=False)
    _users: Counter[str] = field(factory=Counter, init=False)
    _empty: trio.Event | None = field(default=None, init=False)

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        """Over a copy: members may leave meanwhile."""
        return iter(tuple(self._members))

    def refusal(self, accept: Accept) -> int:
        """The status with which a newcomer is refused; 0 when there is room."""
        if self.draining:
            return 503
        full = self.max_per_user and accept.user is not None and self._users[accept.user] >= self.max_per_user
        return 429 if full else 0

    def add(self, member: Member) -> None:
        self._members[member] = None
        if member.accept.user is not None:
            self._users[member.accept.user] += 1

    def remove(self, member: Member) -> None:
        """Idempotent."""
        if member not in self._members:
            return
        del self._members[member]
        user = member.accept.user
        if user is not None:
            self._users[user] -= 1
            if not self._users[user]:
                del self._users[user]
        if self._empty is not None and not self._members:
            self._empty.set()

    def disconnect(self, socket_id: str) -> int:
        """Closes (1001) the sockets of this id, as `users:<id>`; how many there were."""
        found = [member for member in self if member.accept.socket_id == socket_id]
        for member in found:
            member.close(CloseCode.GOING_AWAY, "disconnected")
        return len(found)

    def expire(self, now: float | None = None) -> None:
        """Closes (1001) the sockets whose token has expired at `now` (Unix time)."""
        now = time.time() if now is None else now
        for member in self:
            expires = member.accept.expires_at
            if expires is not None and expires <= now:
                member.close(CloseCode.GOING_AWAY, "token expired")

    async def drain(self, timeout: float) -> None:
        """Tells everybody 1012, in jittered batches, and returns when all have gone; drops the rest at the timeout."""
        self.draining = True
        with trio.move_on_after(timeout):
            await self._tell_all(min(timeout * SHARE, len(self) * PAUSE))
            await self._until_empty()
        for member in self:
            member.abort()

    async def _tell_all(self, spread: float) -> None:
        members = list(self)
        random.shuffle(members)
        size = max(1, -(-len(members) // BATCHES))
        batches = [members[i : i + size] for i in range(0, len(members), size)]
        for n, batch in enumerate(batches):
            for member in batch:
                member.close(CloseCode.RESTART, "restart")
            if n + 1 < len(batches):
                await trio.sleep(spread / len(batches) * random.uniform(0.5, 1.5))

    async def _until_empty(self) -> None:
        if self._members:
            self._empty = trio.Event()
            await self._empty.wait()
