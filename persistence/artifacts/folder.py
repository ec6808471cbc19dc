"""Outputs in a folder. A file appears under its name whole or not at all, and is never written twice.

What is to be stored lies on the same disk as a rule, flushed already: it gets a second name, and no byte is copied.
From elsewhere it is copied beside its place, flushed, then linked: a link fails when the name is taken, as a rename
would not.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import trio

from engine.ports import Listed, StoredObject, StoreFailed
from persistence.artifacts.links import LinkSigner

PARTS = ".parts"
"""The folder of what is being copied. What a crash leaves there is no object, and is swept by age."""
OTHER_PLACE = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP})
"""Why a file may not get a second name: then it is copied."""


class BadName(ValueError):
    """A name that does not stay inside the folder."""


class FolderStore:
    """An ArtifactStore over `root`; links are signed by `signer` and served by the HTTP API."""

    def __init__(self, root: Path, signer: LinkSigner) -> None:
        self._root = root
        self._signer = signer

    async def put(self, name: str, source: Path, content_type: str) -> StoredObject:
        """Stores a file, which must not change any more. A name that is taken keeps its content, which must be of the
        same size."""
        place = self.path(name)
        try:
            size = await trio.to_thread.run_sync(self._put, place, source)
        except OSError as problem:
            raise StoreFailed(problem.strerror or type(problem).__name__) from problem
        return StoredObject(name, size, content_type)

    async def url(self, name: str, expires_in: float) -> str:
        return self._signer.link(name, expires_in)

    async def delete(self, name: str) -> None:
        """Removes an object and the folders it leaves empty; a missing one is fine. A name that ends with a slash means
        all objects below it. Raises StoreFailed."""
        place = self.path(name.removesuffix("/"))
        try:
            await trio.to_thread.run_sync(self._delete, place, name.endswith("/"))
        except OSError as problem:
            raise StoreFailed(problem.strerror or type(problem).__name__) from problem

    async def list(self, after: str, limit: int) -> tuple[Listed, ...]:
        """At most `limit` objects with names after `after`, in the order of their names. Raises StoreFailed."""
        try:
            return await trio.to_thread.run_sync(self._list, after, limit)
        except OSError as problem:
            raise StoreFailed(problem.strerror or type(problem).__name__) from problem

    async def tidy(self, before: float) -> None:
        """Removes what copies have left that were cut short before this Unix time. Raises StoreFailed."""
        try:
            await trio.to_thread.run_sync(self._tidy, before)
        except OSError as problem:
            raise StoreFailed(problem.strerror or type(problem).__name__) from problem

    def path(self, name: str) -> Path:
        """Where an object is. Raises BadName for one that would leave the folder."""
        parts = name.split("/")
        if len(name) > 1024 or not name.isprintable() or any(part.startswith(".") or not part for part in parts):
            raise BadName(name)
        return self._root.joinpath(*parts)

    # --- in threads --------------------------------------------------------------------------------------

    def _put(self, place: Path, source: Path) -> int:
        size = source.stat().st_size
        for _ in range(3):  # a neighbour that is deleted may take the empty folder with it
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._link(source, place)
                break
            except FileNotFoundError:
                continue
        if place.stat().st_size != size:
            raise OSError(errno.EEXIST, "the name is taken by another file")
        return size

    def _link(self, source: Path, place: Path) -> None:
        try:
            os.link(source, place)
        except FileExistsError:
            return
        except OSError as problem:
            if problem.errno not in OTHER_PLACE:
                raise
            self._copy(source, place)
        _flush(place.parent)

    def _copy(self, source: Path, place: Path) -> None:
        part = self._root / PARTS / uuid4().hex
        part.parent.mkdir(exist_ok=True)
        try:
            handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file, source.open("rb") as original:
                shutil.copyfileobj(original, file)
                file.flush()
                os.fsync(file.fileno())
            os.link(part, place)
        except FileExistsError:
            return
        finally:
            part.unlink(missing_ok=True)

    def _delete(self, place: Path, below: bool) -> None:
        if below:
            _remove_all(place)
        else:
            place.unlink(missing_ok=True)
        for folder in place.parents:
            if folder == self._root:
                break
            try:
                folder.rmdir()
            except OSError:
                break

    def _list(self, after: str, limit: int) -> tuple[Listed, ...]:
        found: list[Listed] = []
        for name in _names(self._root, "", after):
            try:
                about = (self._root / name).stat()
            except FileNotFoundError:
                continue
            found.append(Listed(name, about.st_size, about.st_mtime))
            if len(found) == limit:
                break
        return tuple(found)

    def _tidy(self, before: float) -> None:
        folder = self._root / PARTS
        for part in folder.iterdir() if folder.is_dir() else ():
            if part.stat().st_mtime < before:
                part.unlink(missing_ok=True)


def _names(root: Path, inside: str, after: str) -> Iterator[str]:
    """The names of all files below `root`, in the order of the strings that they are, after `after`."""
    try:
        entries = [entry for entry in os.scandir(root / inside) if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return
    whole = [(f"{inside}{entry.name}/" if entry.is_dir() else f"{inside}{entry.name}") for entry in entries]
    for name in sorted(whole):
        if name.endswith("/"):
            if name > after or after.startswith(name):
                yield from _names(root, name, after)
        elif name > after:
            yield name


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_all(folder: Path) -> None:
    """What somebody else removes meanwhile is gone as well."""
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            continue
