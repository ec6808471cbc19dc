"""Dimensions and duration of audio and video, by MediaInfo in a child process that may crash or hang alone.

`python -m engine.outputs.probe FILE` prints one JSON object; `probe` runs it with a deadline.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import trio

DEADLINE = 20.0
"""Seconds; a file that cannot be understood in this time stays without description."""


async def probe(path: Path) -> dict[str, Any]:
    """`{width, height, duration_seconds}` as far as they could be found; empty when the child failed."""
    command = [sys.executable, "-m", "engine.outputs.probe", str(path)]
    with trio.move_on_after(DEADLINE):
        done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.DEVNULL, check=False)
        if done.returncode == 0:
            found: dict[str, Any] = json.loads(done.stdout)
            return found
    return {}


def _look(path: str) -> dict[str, Any]:
    from pymediainfo import MediaInfo

    found: dict[str, Any] = {}
    for track in MediaInfo.parse(path).tracks:
        if track.duration:
            found.setdefault("duration_seconds", round(float(track.duration) / 1000, 3))
        if track.track_type == "Video" and track.width and track.height:
            found.update(width=int(track.width), height=int(track.height))
    return found


if __name__ == "__main__":
    print(json.dumps(_look(sys.argv[1])))
