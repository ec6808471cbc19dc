"""Keeps a provider's outputs: fetch into a spool file, hash, look, store under a name that never changes content.

The name is `<task>/<attempt>/<index>/<sha256>.<format>`: the same output of the same attempt always has the same one,
so storing it twice after a crash is harmless. Nothing is held in memory but a chunk.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

import trio
from attrs import frozen

from engine.outputs.describe import HEAD, Description, measure_image, sniff
from engine.outputs.errors import OutputRefused
from engine.outputs.fetch import Fetcher, Policy, Source
from engine.outputs.probe import probe
from engine.ports import ArtifactStore, StoreFailed
from engine.providers.protocol import OutputReady
from engine.tasks.events import Output


@frozen
class Limits:
    """Bounds on what one task may leave behind. Bytes, a count, and seconds."""

    max_bytes: int = 512 * 1024 * 1024
    max_outputs: int = 64
    max_seconds: float = 600.0
    link_seconds: float = 7 * 24 * 3600.0


@frozen
class Spooled:
    """A fetched output in a local file."""

    path: Path
    size: int
    sha256: str
    head: bytes


class Outputs:
    """The way of an output. `fetchers` by provider name; a provider without one can only hand over bytes."""

    def __init__(
        self,
        store: ArtifactStore,
        fetchers: Mapping[str, Fetcher],
        spool: Path | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._store = store
        self._fetchers = dict(fetchers)
        self._bytes_only = Fetcher(Policy())
        self._spool = spool
        self._limits = limits or Limits()

    async def keep(self, provider: str, task_id: UUID, attempt: int, event: OutputReady) -> Output:
        """Stores an output and describes it. Raises OutputRefused."""
        if not 0 <= event.index < self._limits.max_outputs:
            raise _too_many(self._limits.max_outputs)
        with trio.move_on_after(self._limits.max_seconds):
            fetcher = self._fetchers.get(event.provider or provider, self._bytes_only)
            async with fetcher.open(event) as source, self._spooled(source) as spooled:
                return await self._stored(task_id, attempt, event, spooled)
        raise OutputRefused("output_timeout", "The output took too long to fetch or store.", "Try again.", True)

    async def aclose(self) -> None:
        for fetcher in (*self._fetchers.values(), self._bytes_only):
            await fetcher.aclose()

    async def _stored(self, task_id: UUID, attempt: int, event: OutputReady, spooled: Spooled) -> Output:
        found = await _describe(spooled)
        name = f"{task_id}/{attempt}/{event.index}/{spooled.sha256}.{found.format}"
        try:
            kept = await self._store.put(name, spooled.path, found.content_type)
        except StoreFailed as problem:
            raise OutputRefused("store_failed", "The output could not be stored.", "Try again.", True) from problem
        return Output(
            index=event.index,
            type=found.type,
            format=found.format,
            content_url=await self._store.url(name, self._limits.link_seconds),
            content_type=found.content_type,
            file_size_bytes=kept.size,
            sha256=spooled.sha256,
            object_name=name,
            temporary_url=event.url if event.url and not event.url.startswith("data:") else None,
            dimensions=found.dimensions,
            duration_seconds=found.duration_seconds,
        )

    @asynccontextmanager
    async def _spooled(self, source: Source) -> AsyncIterator[Spooled]:
        handle, name = tempfile.mkstemp(prefix="elwift-output-", dir=self._spool)
        try:
            with os.fdopen(handle, "wb") as file:
                spooled = await self._write(source, file, Path(name))
            yield spooled
        finally:
            os.unlink(name)

    async def _write(self, source: Source, file: BinaryIO, path: Path) -> Spooled:
        digest, size, head = hashlib.sha256(), 0, b""
        async for chunk in source.chunks:
            size += len(chunk)
            if size > self._limits.max_bytes:
                raise _too_large(self._limits.max_bytes)
            head = (head + chunk)[:HEAD] if len(head) < HEAD else head
            digest.update(chunk)
            await trio.to_thread.run_sync(file.write, chunk)
        if size == 0:
            raise OutputRefused("empty_output", "The provider's output is empty.", "Try again.", True)
        return Spooled(path, size, digest.hexdigest(), head)


async def _describe(spooled: Spooled) -> Description:
    found = sniff(spooled.head)
    if found.type == "image":
        return await trio.to_thread.run_sync(measure_image, spooled.path, found)
    if found.type not in ("audio", "video"):
        return found
    more = await probe(spooled.path)
    size = {"width": more["width"], "height": more["height"]} if "width" in more else None
    return Description(found.type, found.format, found.content_type, size, more.get("duration_seconds"))


def _too_many(limit: int) -> OutputRefused:
    return OutputRefused("too_many_outputs", f"A task may have {limit} outputs.", "Ask the model for fewer.")


def _too_large(limit: int) -> OutputRefused:
    return OutputRefused("output_too_large", f"The output is larger than {limit} bytes.", "Ask for a smaller one.")
