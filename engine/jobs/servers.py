"""The servers that share the database, as this one sees them: who lives, who is gone, which tasks live here.

Each server keeps a lease in a row of its own (`beat`), by the database's clock. A task lives on one server, its
home: who made its job, later who claimed it last. When a server is gone, what lived there is adopted by the others.
A plain object; the clockwork keeps it up to date. No I/O but through the store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

import trio
from attrs import define, field

from engine.jobs.ports import JobStore, Peer

log = logging.getLogger(__name__)


def _nobody(*_: object) -> None:
    """Until somebody wants to hear."""


@define(eq=False)
class Servers:
    """See the module. `on_moved` hears of tasks that another server has taken over, `on_news` what others tell."""

    store: JobStore
    node: str
    boot: UUID
    peers: tuple[Peer, ...] = ()
    on_moved: Callable[[UUID], None] = field(default=_nobody)
    on_news: Callable[[str], None] = field(default=_nobody)
    _others: frozenset[str] = frozenset()
    _greeted: bool = False
    _gone: trio.Event = field(factory=trio.Event)

    @property
    def alone(self) -> bool:
        """Whether no other server is known to live."""
        return not self._others

    def slots(self, queue: str) -> int:
        """How many jobs of a queue the other servers run at once."""
        return sum(peer.slots.get(queue, 0) for peer in self.peers if peer.name in self._others)

    async def beat(self, seconds: float, slots: Mapping[str, int], sure: bool) -> None:
        """Keeps this server's lease, says what it can do, and sees who else has one. Raises StorageDown."""
        peers = await self.store.beat(self.node, self.boot, seconds, slots)
        twins = [peer for peer in peers if peer.name == self.node and peer.boot != self.boot and peer.alive]
        if twins and self._greeted:
            log.error("another server calls itself %s, too: each needs a data folder of its own", self.node)
        self._greeted = True
        self.see(peers, sure)

    async def look_around(self, sure: bool) -> None:
        """Sees who lives. Raises StorageDown."""
        self.see(await self.store.look_around(), sure)

    def see(self, peers: Sequence[Peer], sure: bool) -> None:
        """Takes note of who lives. Only who is `sure` that the database is well may conclude that one is gone."""
        self.peers = tuple(peers)
        others = frozenset(peer.name for peer in peers if peer.alive and peer.name != self.node)
        if not sure:
            self._others |= others
            return
        for name in sorted(self._others - others):
            log.warning("server %s is gone; what lived there is taken over", name)
            self._gone.set()
        self._others = others

    def joined(self, name: str) -> None:
        """A server says that it has started."""
        self._others |= {name} - {self.node}

    def left(self, name: str) -> None:
        """A server says that it ends in good order."""
        if name != self.node:
            self._others -= {name}
            self._gone.set()

    async def someone_gone(self) -> None:
        """Returns once a server is gone, since the last call."""
        await self._gone.wait()
        self._gone = trio.Event()

    async def leave(self) -> None:
        """This server ends. Raises StorageDown."""
        await self.store.leave(self.node, self.boot)

    async def adopt(self, jobs: Sequence[UUID]) -> frozenset[UUID]:
        """Those of these jobs whose tasks live here: already, or from now on, their home being lost."""
        return await self.store.adopt(self.node, jobs)

    async def strayed(self, jobs: Sequence[UUID]) -> frozenset[UUID]:
        """Those of these jobs whose tasks live elsewhere by now."""
        return frozenset() if self.alone else await self.store.strayed(self.node, jobs)

    async def tell(self, words: Sequence[str]) -> None:
        """Tells the other servers. Raises StorageDown; nobody was promised that news arrives."""
        await self.store.tell(words)
