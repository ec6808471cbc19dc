"""Which tasks live here, where several servers share the database: the port, and the answer of a server that is alone.

Implemented in `engine.jobs.servers`. A task lives on one server, its home: who made its job, later who claimed it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol
from uuid import UUID

import trio


class Homes(Protocol):
    """See the module. Jobs stand for their tasks. What asks the database raises StorageDown while that is away."""

    @property
    def node(self) -> str:
        """This server's name."""
        ...

    @property
    def alone(self) -> bool:
        """Whether no other server is known to live."""
        ...

    async def adopt(self, jobs: Sequence[UUID]) -> Collection[UUID]:
        """Those of these jobs whose tasks live here: already, or from now on, their home being lost."""
        ...

    async def strayed(self, jobs: Sequence[UUID]) -> Collection[UUID]:
        """Those of these jobs whose tasks live on another server by now."""
        ...

    async def someone_gone(self) -> None:
        """Returns once another server is gone."""
        ...

    async def tell(self, words: Sequence[str]) -> None:
        """Sends news to all servers. Nobody was promised that it arrives."""
        ...


class Alone:
    """A server that shares its database with none: all tasks live here."""

    node = "local"
    alone = True

    async def adopt(self, jobs: Sequence[UUID]) -> Collection[UUID]:
        return jobs

    async def strayed(self, jobs: Sequence[UUID]) -> Collection[UUID]:
        return ()

    async def someone_gone(self) -> None:
        await trio.sleep_forever()

    async def tell(self, words: Sequence[str]) -> None:
        """There is nobody to tell."""
