"""Dimensions and duration of audio and video, by MediaInfo in a child process that may crash or hang alone.

The child (`look.py`, run as a file, so that it imports nothing of ours) limits its own memory and CPU time before it
opens anything; at most AT_ONCE are there, and each has a deadline.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import trio
from trio.lowlevel import RunVar

DEADLINE = 20.0
"""Seconds; a file that cannot be understood in this time stays without description."""
AT_ONCE = 2
CHILD = Path(__file__).with_name("look.py")
_limiter: RunVar[trio.CapacityLimiter] = RunVar("probes")


async def probe(path: Path) -> dict[str, Any]:
    """`{width, height, duration_seconds}` as far as they could be found; empty when the child failed."""
    async with _slots():
        with trio.move_on_after(DEADLINE):
            command = [sys.executable, "-I", str(CHILD), str(path)]
            done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.DEVNULL, check=False)
            return _read(done.stdout) if done.returncode == 0 else {}
    return {}


def _read(said: bytes) -> dict[str, Any]:
    try:
        found = json.loads(said)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _slots() -> trio.CapacityLimiter:
    try:
        return _limiter.get()
    except LookupError:
        slots = trio.CapacityLimiter(AT_ONCE)
        _limiter.set(slots)
        return slots
