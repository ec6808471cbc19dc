"""The way of a provider's output: fetched into the spool, described, stored under a name that never changes content.

The name is `<task>/<attempt>/<index>/<sha256>.<format>`, with the number of the attempt that bought it: whoever takes
that attempt up after a crash stores the same output under the same name, so storing it twice is harmless. Nothing is
held in memory but chunks. Each call is one try; how often and how long is the attempt's to decide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

import trio
from attrs import frozen

from engine.outputs.errors import OutputRefused, not_stored, unavailable
from engine.outputs.fetch import Fetcher, Policy
from engine.outputs.links import Links
from engine.outputs.spool import Spool, Spooled
from engine.ports import ArtifactStore, StoreFailed
from engine.providers.protocol import OutputReady
from engine.tasks.events import Output

NAME = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/\d+/\d+/[0-9a-f]{64}\.\w+")
"""How the names of outputs look. Nothing else in a bucket or folder is ours to touch."""


@frozen
class Limits:
    """Bounds on what one task may leave behind. Bytes, a count, and seconds.

    `fetch_seconds`: for one download, `store_seconds`: for one upload. `link_seconds`: how long a link works;
    `keep_seconds`: how long an output is kept, 0: until its task is deleted.
    """

    max_bytes: int = 512 * 1024 * 1024
    max_outputs: int = 64
    fetch_seconds: float = 600.0
    store_seconds: float = 600.0
    link_seconds: float = 7 * 24 * 3600.0
    keep_seconds: float = 0.0


class Outputs:
    """`fetchers` by provider name; a provider without one can only hand over bytes. `spool` is a folder of ours."""

    def __init__(
        self, store: ArtifactStore, fetchers: Mapping[str, Fetcher], spool: Path, limits: Limits | None = None
    ) -> None:
        self.store = store
        self.spool = Spool(spool)
        self.limits = limits or Limits()
        self.links = Links(store, self._link_seconds)
        self._fetchers = dict(fetchers)
        self._bytes_only = Fetcher(Policy())
        self.spent: dict[UUID, UUID] = {}
        """Attempts whose files in the spool are not needed once their tasks are over, and those tasks."""

    async def fetch(self, provider: str, attempt_id: UUID, event: OutputReady) -> Spooled:
        """Brings an output to this machine, unless it is here already. Raises OutputRefused."""
        if not 0 <= event.index < self.limits.max_outputs:
            raise _too_many(self.limits.max_outputs)
        if (spooled := await self.spool.find(attempt_id, event)) is not None:
            return spooled
        with trio.move_on_after(self.limits.fetch_seconds):
            async with self._fetchers.get(event.provider or provider, self._bytes_only).open(event) as source:
                return await self.spool.write(attempt_id, event.index, source, self.limits.max_bytes, event.url)
        raise unavailable("it took too long")

    async def keep(self, task_id: UUID, attempt: int, attempt_id: UUID, spooled: Spooled, now: float) -> Output:
        """Stores an output. `attempt` is the number under which it was bought, `now` Unix time. Raises OutputRefused,
        of which all may pass."""
        found = spooled.description
        name = f"{task_id}/{attempt}/{spooled.index}/{spooled.sha256}.{found.format}"
        with trio.move_on_after(self.limits.store_seconds) as deadline:
            try:
                path = self.spool.path(attempt_id, spooled.index)
                kept = await self.store.put(name, path, found.content_type)
                url = await self.store.url(name, self._link_seconds)
            except StoreFailed as problem:
                raise not_stored(str(problem)) from problem
        if deadline.cancelled_caught:
            raise not_stored("it took too long")
        return Output(
            index=spooled.index,
            type=found.type,
            format=found.format,
            content_url=url,
            content_type=found.content_type,
            file_size_bytes=kept.size,
            sha256=spooled.sha256,
            object_name=name,
            temporary_url=spooled.url,
            dimensions=found.dimensions,
            duration_seconds=found.duration_seconds,
            expires_at=now + self.limits.keep_seconds if self.limits.keep_seconds > 0 else None,
        )

    @property
    def _link_seconds(self) -> float:
        return min(self.limits.link_seconds, self.limits.keep_seconds or self.limits.link_seconds)

    async def aclose(self) -> None:
        for fetcher in (*self._fetchers.values(), self._bytes_only):
            await fetcher.aclose()


def task_of(name: str) -> UUID | None:
    """Whose output an object is, by its name; None for what is none of ours."""
    match = NAME.fullmatch(name)
    return UUID(match[1]) if match else None


def _too_many(limit: int) -> OutputRefused:
    return OutputRefused("too_many_outputs", f"A task may have {limit} outputs.", "Ask the model for fewer.")
