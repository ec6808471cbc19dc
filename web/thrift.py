"""How much memory the server may have, and what ends when it has more: some processes, never the server.

Tasks that wait for their turn go first, for their state is in the database: they are read again when they are wanted.
Then sockets go, the oldest first, with a close code that says "later". May import `engine.otp`.
"""

from __future__ import annotations

import os
from pathlib import Path

from engine.otp import ChildSpec, MemoryGuard, Policy

CGROUP = Path("/sys/fs/cgroup/memory.max")
SHARE = 0.75
"""Of what the machine, or its container, has."""


def memory_limit(setting: int) -> int:
    """The limit in bytes: as set, or a share of what there is."""
    return setting or int(SHARE * available())


def available(cgroup: Path = CGROUP) -> int:
    """Bytes of memory that this machine has, or that its container may use."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(machine, int(cgroup.read_text()))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return machine


def guards(limit: int) -> list[ChildSpec]:
    """The guards of tasks and of sockets, for the tree."""
    tasks = Policy(int(0.7 * limit), int(0.85 * limit), {"TaskServer"}, min_age=30.0)
    sockets = Policy(int(0.7 * limit), limit, {"Socket"}, min_age=30.0, batch=200)
    return [MemoryGuard.spec(tasks, "memory of tasks"), MemoryGuard.spec(sockets, "memory of sockets")]
