"""The spool: what a provider made, on this machine's disk, from the moment it is here until the store has it.

A finished prediction is paid for. Whatever happens to the store, or to this process, its files and its end lie here,
under the attempt's id, and the attempt goes on from them rather than buy them again:

    <root>/<attempt id>/0        an output, whole or not at all
    <root>/<attempt id>/0.json   what it is (Spooled)
    <root>/<attempt id>/end      how the attempt ended at its provider (Ending): there is nothing more to come

Knows nothing of stores and tasks. Blocking work runs in threads.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import msgspec
import trio
from attrs import define, field, frozen

from engine.outputs.describe import Description, head_of, measure_image, sniff
from engine.outputs.errors import Cure, OutputRefused, not_stored
from engine.outputs.fetch import Source
from engine.outputs.probe import probe
from engine.providers.protocol import Finished, OutputReady, UsageReported

T = TypeVar("T")
WRITE = 512 * 1024
"""Bytes that are gathered before a thread hashes and writes them."""


@frozen
class Spooled:
    """An output on the disk: `size` in bytes; `url` is where it came from, none for data."""

    index: int
    size: int
    sha256: str
    description: Description
    url: str | None = None


@frozen
class Ending:
    """A finished prediction: its outputs in order, as they were announced (data are not repeated here)."""

    outputs: tuple[OutputReady, ...]
    text: str = field(default="", repr=False)
    usage: UsageReported | None = None
    finished: Finished = field(factory=Finished)


@frozen
class Spool:
    """A folder of the server's own; two servers never share one."""

    root: Path

    def path(self, attempt_id: UUID, index: int) -> Path:
        return self.root / str(attempt_id) / str(index)

    async def write(self, attempt_id: UUID, index: int, source: Source, limit: int, url: str | None) -> Spooled:
        """Writes an output to its place and says what it is. Raises OutputRefused."""
        if source.size is not None and source.size > limit:
            raise too_large(limit)
        place = self.path(attempt_id, index)
        part = place.with_name(f".{index}-{uuid4().hex}")
        try:
            await _thread(lambda: place.parent.mkdir(parents=True, exist_ok=True))
            try:
                size, digest = await _pour(source, part, limit)
                spooled = Spooled(index, size, digest, await describe(part), _clean(url))
                await _thread(lambda: _publish(part, place, spooled))
            except BaseException:
                with trio.CancelScope(shield=True):
                    await _thread(lambda: part.unlink(missing_ok=True))
                raise
        except OSError as problem:
            raise not_stored(problem.strerror or type(problem).__name__) from problem
        return spooled

    async def find(self, attempt_id: UUID, event: OutputReady) -> Spooled | None:
        """An output that was written before and is still whole: that of the same URL, or data of a noted end. Data that
        a provider brings anew are another run's, and not looked for."""
        address = _clean(event.url)
        if event.data is not None or (event.url is not None and address is None):
            return None
        if not self.knows(attempt_id):
            return None
        spooled = await _thread(lambda: _found(self.path(attempt_id, event.index)))
        return spooled if spooled is not None and spooled.url == address else None

    async def end(self, attempt_id: UUID, ending: Ending) -> bool:
        """Notes the end; False when there is no room for it. From here on the provider is not needed any more."""
        try:
            await _thread(lambda: _write(self.root / str(attempt_id) / "end", msgspec.json.encode(ending)))
        except OSError:
            return False
        return True

    async def ending(self, attempt_id: UUID) -> Ending | None:
        """How the attempt ended, if all that belongs to it is here (or can still be fetched)."""
        if not self.knows(attempt_id):
            return None
        return await _thread(lambda: self._ending(attempt_id))

    def knows(self, attempt_id: UUID) -> bool:
        """Whether anything of the attempt is here: one look, not worth a thread."""
        return os.path.isdir(self.root / str(attempt_id))

    def _ending(self, attempt_id: UUID) -> Ending | None:
        folder = self.root / str(attempt_id)
        try:
            ending = msgspec.json.decode((folder / "end").read_bytes(), type=Ending)
        except (OSError, msgspec.MsgspecError):
            return None
        there = (output.url is not None or _found(folder / str(output.index)) for output in ending.outputs)
        return ending if all(there) else None

    async def discard(self, attempt_id: UUID) -> None:
        """The attempt is over, and stored."""
        await _thread(lambda: shutil.rmtree(self.root / str(attempt_id), ignore_errors=True))

    async def leftovers(self, older_than: float) -> tuple[UUID, ...]:
        """Attempts whose folders have not changed for so many seconds."""
        return await _thread(lambda: tuple(self._leftovers(time.time() - older_than)))

    def _leftovers(self, before: float) -> list[UUID]:
        found = []
        for entry in os.scandir(self.root) if self.root.is_dir() else ():
            try:
                if entry.stat().st_mtime < before:
                    found.append(UUID(entry.name))
            except (ValueError, OSError):
                continue
        return found


def too_large(limit: int) -> OutputRefused:
    return OutputRefused("output_too_large", f"The output is larger than {limit} bytes.", "Ask for a smaller one.")


async def describe(path: Path) -> Description:
    """What a file is. Pictures are read in a thread, sounds and films by a child process."""
    found = await _thread(lambda: sniff(head_of(path)))
    if found.type == "image":
        return await _thread(lambda: measure_image(path, found))
    if found.type not in ("audio", "video"):
        return found
    more = await probe(path)
    size = {"width": more["width"], "height": more["height"]} if "width" in more else None
    return Description(found.type, found.format, found.content_type, size, more.get("duration_seconds"))


async def _pour(source: Source, path: Path, limit: int) -> tuple[int, str]:
    """Bytes and SHA-256 of what was written. The loop only passes chunks on; a thread hashes and writes them."""
    sink = await _thread(lambda: _Sink(_create(path)))
    try:
        async for chunk in source.chunks:
            sink.gather(chunk)
            if sink.size > limit:
                raise too_large(limit)
            if sink.waiting >= WRITE:
                await _thread(sink.write)
        if sink.size == 0:
            action = "Try again: it is made, and paid for, once more."
            raise OutputRefused("empty_output", "The provider's output is empty.", action, Cure.ANEW)
        await _thread(sink.finish)
    finally:
        sink.file.close()
    return sink.size, sink.digest.hexdigest()


@define(eq=False)
class _Sink:
    file: BinaryIO
    size: int = 0
    waiting: int = 0
    digest: Any = field(factory=hashlib.sha256)
    _chunks: list[bytes] = field(factory=list)

    def gather(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self.size += len(chunk)
        self.waiting += len(chunk)

    def write(self) -> None:
        data, self._chunks, self.waiting = b"".join(self._chunks), [], 0
        self.digest.update(data)
        self.file.write(data)

    def finish(self) -> None:
        """On the disk, also if the power goes: the store may take this very file over."""
        self.write()
        self.file.flush()
        os.fsync(self.file.fileno())


def _publish(part: Path, place: Path, spooled: Spooled) -> None:
    _write(place.with_name(f"{place.name}.json"), msgspec.json.encode(spooled))
    part.rename(place)


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}-{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _create(part) as file:
            file.write(content)
        part.rename(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _create(path: Path) -> BinaryIO:
    """A new file, for the server's own eyes."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _found(place: Path) -> Spooled | None:
    """What was published here; the description must fit the file, for the two are written one after the other."""
    try:
        spooled = msgspec.json.decode(place.with_name(f"{place.name}.json").read_bytes(), type=Spooled)
        with place.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, msgspec.MsgspecError):
        return None
    return spooled if digest == spooled.sha256 else None


def _clean(url: str | None) -> str | None:
    """What stays the same when a provider signs its link anew; data have no address."""
    if url is None or url.startswith("data:"):
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


async def _thread(work: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(work)


__all__ = ["Ending", "Spool", "Spooled", "describe", "too_large"]
