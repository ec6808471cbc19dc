"""What an earlier run left behind: a PostgreSQL that outlived our `kill -9`, and its lock files.

A process counts as ours only when it runs a program called `postgres` in the very folder of the cluster; a number
in a file proves nothing, since numbers are used again. Needs Linux's /proc; elsewhere PostgreSQL's own lock file
is all there is. The caller holds the data folder, so nobody starts a server there meanwhile.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import trio

log = logging.getLogger(__name__)

STEPS = ((signal.SIGINT, 5.0), (signal.SIGQUIT, 3.0), (signal.SIGKILL, 3.0))
"""How a server is asked to go, and the seconds it gets: SIGINT is PostgreSQL's fast shutdown."""


def running_in(cluster: Path) -> list[int]:
    """The numbers of PostgreSQL processes (the server and its children) that work in `cluster`; lowest first."""
    target = str(cluster.resolve())
    return sorted(pid for pid in _pids() if _works_in(pid, target))


def _pids() -> Iterable[int]:
    with suppress(FileNotFoundError):
        yield from (int(name) for name in os.listdir("/proc") if name.isdigit())


def _works_in(pid: int, folder: str) -> bool:
    try:
        if os.readlink(f"/proc/{pid}/cwd") != folder:
            return False
        return Path(os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")).name == "postgres"
    except OSError:
        return False


def locked_by(cluster: Path) -> int | None:
    """The process number in the cluster's lock file."""
    try:
        return int((cluster / "postmaster.pid").read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None


async def clear(cluster: Path, sockets: Path) -> bool:
    """Stops what still runs in `cluster` and waits for its end; True when there was something.

    Then the lock files go: PostgreSQL judges them by a process number alone, and refuses to start while that number
    belongs to a stranger, or to a dead server that nobody has reaped yet.
    """
    found = running_in(cluster)
    if found:
        log.warning("stopping a PostgreSQL that an earlier run left behind (process %s)", found[0])
        await _stop(cluster, locked_by(cluster))
    _remove_locks(cluster, sockets)
    return bool(found)


def _remove_locks(cluster: Path, sockets: Path) -> None:
    if Path("/proc/self/exe").exists() and not running_in(cluster):
        for lock in (cluster / "postmaster.pid", *sockets.glob(".s.PGSQL.*")):
            lock.unlink(missing_ok=True)


async def _stop(cluster: Path, server: int | None) -> None:
    for sign, patience in STEPS:
        left = running_in(cluster)
        # children go with their server; only when it is gone already are they told themselves
        told = [server] if server in left and sign != signal.SIGKILL else left
        for pid in told:
            _signal(pid, sign)
        with trio.move_on_after(patience):
            for pid in left:
                await gone(pid)
            if not running_in(cluster):
                return


def _signal(pid: int | None, sign: signal.Signals) -> None:
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, sign)
            os.kill(pid, signal.SIGCONT)  # one that was stopped takes no other signal but SIGKILL


async def gone(pid: int) -> None:
    """Waits until a process, child of ours or not, has ended. The caller sets the deadline."""
    try:
        watch = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await trio.lowlevel.wait_readable(watch)
    finally:
        os.close(watch)
