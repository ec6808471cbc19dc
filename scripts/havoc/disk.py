"""Writes that fail for real: a data folder on a small file system of its own that is filled to the last byte, and a
limit on the size of files for PostgreSQL's processes.

The file system is an ext4 in a file, mounted through a loop device, or else a tmpfs; both need root. Without it the
limit alone is used (`RLIMIT_FSIZE`, which every user may set on processes of their own).
"""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import LiteralString

import psutil  # type: ignore[import-untyped]
import trio
from attrs import define, field, frozen

from scripts.havoc.faults import Chance, Fault
from scripts.havoc.victim import ServerFailed, Victim

SIZE = 3 << 30
"""Bytes of the file system: a cluster with all the log that it may keep (`max_wal_size`)."""
CHUNK = 64 << 20


@define(eq=False)
class Quota:
    """The data folder's own file system. `full` lists when it was full, as pairs of Unix times; `panics` those of them
    in which PostgreSQL had no room for its log either."""

    folder: Path
    kind: str
    full: list[tuple[float, float]] = field(factory=list)
    panics: list[tuple[float, float]] = field(factory=list)

    @property
    def words(self) -> str:
        return f"the data folder has a file system of its own ({self.kind}, {SIZE >> 20} MiB)"

    @property
    def ballast(self) -> Path:
        return self.folder / "ballast"

    def fill(self) -> None:
        """Takes all that is left. Blocking, but quick: nothing is written."""
        with self.ballast.open("ab") as file:
            size, step = file.seek(0, os.SEEK_END), CHUNK
            while step >= 4096:
                try:
                    os.posix_fallocate(file.fileno(), size, step)
                    size += step
                except OSError as problem:
                    if problem.errno != errno.ENOSPC:
                        raise
                    step //= 2

    def free(self) -> None:
        self.ballast.unlink(missing_ok=True)

    def was_full(self, began: float, ended: float) -> bool:
        """Whether it was full at some time between the two (Unix seconds)."""
        return any(first <= ended and began <= last for first, last in self.full)

    @contextmanager
    def filled(self) -> Iterator[None]:
        began = time.time()
        self.fill()
        try:
            yield
        finally:
            self.free()
            self.full.append((began, time.time()))


@contextmanager
def quota(folder: Path) -> Iterator[Quota | None]:
    """Mounts a file system at `folder` for the length of the block; None when that may not be done here."""
    folder.mkdir(parents=True, exist_ok=True)
    image = folder.with_name(f"{folder.name}.ext4")
    kind = _mount(folder, image) if os.geteuid() == 0 else ""
    try:
        if kind:
            folder.chmod(0o711)
        yield Quota(folder, kind) if kind else None
    finally:
        if kind:
            subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)
        image.unlink(missing_ok=True)


def _mount(folder: Path, image: Path) -> str:
    """The kind of file system that could be mounted; empty: none."""
    with image.open("wb") as file:
        file.truncate(SIZE)
    loop = (
        ["mkfs.ext4", "-q", "-E", "lazy_itable_init=1,lazy_journal_init=1", "-m", "0", str(image)],
        ["mount", "-o", "loop", str(image), str(folder)],
    )
    if all(_done(command) for command in loop):
        return "ext4"
    return "tmpfs" if _done(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]) else ""


def _done(command: list[str]) -> bool:
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


# --- faults -----------------------------------------------------------------------------------------------

_NEXT_SEGMENT: LiteralString = "SELECT pg_logical_emit_message(true, 'ballast', 'x'), pg_switch_wal()"
SEGMENTS = 12
"""More files of its log than PostgreSQL has in reserve: the next one it must make."""


@frozen
class DiskFaults:
    """Faults of a full disk."""

    quota: Quota

    async def fill_disk(self, victim: Victim, chance: Chance) -> None:
        """Nothing can be written any more, outputs included; what PostgreSQL has in reserve lasts a little longer."""
        with self.quota.filled():
            await trio.sleep(chance.uniform(1.0, 5.0))

    async def fill_disk_and_log(self, victim: Victim, chance: Chance) -> None:
        """PostgreSQL's reserve is used up, too: it panics, and cannot start until there is room again."""
        with self.quota.filled():
            for _ in range(SEGMENTS):
                if not await victim.say(_NEXT_SEGMENT):
                    break
            await trio.sleep(chance.uniform(1.0, 6.0))
        self.quota.panics.append(self.quota.full[-1])

    async def kill_server_on_full_disk(self, victim: Victim, chance: Chance) -> None:
        """The server dies while the disk is full, and is started before there is room: it may fail, with a word."""
        with self.quota.filled():
            await trio.sleep(chance.uniform(0.0, 2.0))
            await victim.kill()
            with suppress(ServerFailed):
                await victim.start()
        if not victim.alive:
            await victim.start()

    def all(self) -> tuple[Fault, ...]:
        return (
            Fault("fill_disk", 1.5, self.fill_disk),
            Fault("fill_disk_and_log", 1.5, self.fill_disk_and_log),
            Fault("kill_server_on_full_disk", 1.0, self.kill_server_on_full_disk),
        )


async def limit_writes(victim: Victim, chance: Chance) -> None:
    """No file of PostgreSQL's may grow beyond a size: appends fail with EFBIG, and so does its log."""
    limit = chance.choice((0, 8192, 1 << 20))
    until = trio.current_time() + chance.uniform(0.5, 4.0)
    try:
        while trio.current_time() < until:
            _limit(victim, limit)  # again and again, for PostgreSQL that is started anew has no limit
            await trio.sleep(0.05)
    finally:
        _limit(victim, resource.RLIM_INFINITY)


def _limit(victim: Victim, size: int) -> None:
    for process in victim.postgres_family():
        with suppress(psutil.Error, OSError):
            process.rlimit(psutil.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


LIMIT_WRITES = Fault("limit_writes", 1.0, limit_writes)
