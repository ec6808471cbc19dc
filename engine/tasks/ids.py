"""Time-ordered ids, so that inserts into an index stay local. Pure."""

from __future__ import annotations

import os
import time
from uuid import UUID


def new_id() -> UUID:
    """A UUID of version 7: milliseconds of Unix time, then chance. Source: RFC 9562, 5.7."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    return UUID(int=value & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62)


def key(task_id: UUID) -> tuple[str, UUID]:
    """The name of a task's TaskServer in `runtime.names`."""
    return ("task", task_id)
