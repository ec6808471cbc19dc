"""Outputs in a folder. A file appears under its name whole or not at all, and is never written twice.

Written beside its place, flushed to the disk, then linked: a link fails when the name is taken, as a rename would not.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import trio

from engine.ports import StoredObject, StoreFailed
from persistence.artifacts.links import LinkSigner


class BadName(ValueError):
    """A name that does not stay inside the folder."""


class FolderStore:
    """An ArtifactStore over `root`; links are signed by `signer` and served by the HTTP API."""

    def __init__(self, root: Path, signer: LinkSigner) -> None:
        self._root = root
        self._signer = signer

    async def put(self, name: str, source: Path, content_type: str) -> StoredObject:
        """Stores a copy of a file. A name that is taken keeps its content, and that one is answered."""
        try:
            return await trio.to_thread.run_sync(_store, name, self.path(name), source, content_type)
        except OSError as problem:
            raise StoreFailed(f"{name}: {problem.strerror}") from problem

    async def url(self, name: str, expires_in: float) -> str:
        return self._signer.link(name, expires_in)

    async def delete(self, name: str) -> None:
        """Removes an object and the folders it leaves empty; a missing one is fine. Raises StoreFailed."""
        try:
            await trio.to_thread.run_sync(self._delete, self.path(name))
        except OSError as problem:
            raise StoreFailed(f"{name}: {problem.strerror}") from problem

    def path(self, name: str) -> Path:
        """Where an object is. Raises BadName for one that would leave the folder."""
        parts = name.split("/")
        if not name or "\x00" in name or any(part in ("", ".", "..") or part.startswith(".part-") for part in parts):
            raise BadName(name)
        return self._root.joinpath(*parts)

    def _delete(self, place: Path) -> None:
        place.unlink(missing_ok=True)
        for folder in place.parents:
            if folder == self._root:
                break
            try:
                folder.rmdir()
            except OSError:
                break


def _store(name: str, place: Path, source: Path, content_type: str) -> StoredObject:
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, spool = tempfile.mkstemp(prefix=".part-", dir=place.parent)
    try:
        with os.fdopen(handle, "wb") as file, source.open("rb") as original:
            shutil.copyfileobj(original, file)
            file.flush()
            os.fsync(file.fileno())
        _publish(spool, place)
    finally:
        os.unlink(spool)
    return StoredObject(name, place.stat().st_size, content_type)


def _publish(spool: str, place: Path) -> None:
    try:
        os.link(spool, place)
    except FileExistsError:
        return
    folder = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
