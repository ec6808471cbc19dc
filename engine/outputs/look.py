"""The child of `probe`: looks at one file with MediaInfo and prints what it found, as one JSON object.

Run by its path, alone: `python -I look.py FILE`. Imports nothing of ours.
"""

import json
import resource
import sys
from pathlib import Path

MEMORY = 1 << 30
"""Bytes of address space."""
CPU_SECONDS = 10


def limit() -> None:
    """Before anything hostile is opened."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def look(path: str) -> dict[str, float]:
    """Width and height in pixels, duration in seconds: as far as the file says something believable."""
    from pymediainfo import MediaInfo

    found: dict[str, float] = {}
    for track in MediaInfo.parse(Path(path)).tracks:
        if track.duration and 0 < float(track.duration) < 1e12:
            found.setdefault("duration_seconds", round(float(track.duration) / 1000, 3))
        if track.track_type == "Video" and track.width and track.height:
            found.update(width=int(track.width), height=int(track.height))
    return found


if __name__ == "__main__":
    limit()
    print(json.dumps(look(sys.argv[1])))
