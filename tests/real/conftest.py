"""Fixtures of the tests that run the whole server as a process of its own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data folder that PostgreSQL's account can reach also when we are root (pytest's own are private)."""
    with tempfile.TemporaryDirectory(prefix="elwift-real-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder) / "data"
