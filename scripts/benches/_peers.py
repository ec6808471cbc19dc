"""Environments of their own for the peers that a benchmark measures beside us: made when missing, kept, never ours."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

PATIENCE = 300.0


def peer_python(name: str, *packages: str) -> Path | None:
    """An interpreter in which these requirements are installed; None, with a word on stderr, where that cannot be."""
    beside = Path(sys.prefix).parent
    kept = beside if os.access(beside, os.W_OK) else Path.home() / ".cache" / "elwift"
    tag = sha256(" ".join((sys.version, *packages)).encode()).hexdigest()[:8]
    folder = kept / ".venv-peers" / f"{name}-{tag}"
    python = folder / "bin" / "python"
    ready = folder / ".ready"
    if not ready.exists():
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        try:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
            subprocess.run(install, check=True, capture_output=True, timeout=PATIENCE)
        except (OSError, subprocess.SubprocessError) as problem:
            print(f"the peers {', '.join(packages)} cannot be had: {problem}", file=sys.stderr)
            return None
        ready.touch()
    return python
