"""Fixtures of the tests that run the whole server as a process of its own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def new_data_dir() -> Iterator[Path]:
    """A data folder that PostgreSQL's account can reach also when we are root (pytest's own are private)."""
    with tempfile.TemporaryDirectory(prefix="elwift-real-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder) / "data"


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with new_data_dir() as folder:
        yield folder


@pytest.fixture(scope="module")
def data_dir_for_module() -> Iterator[Path]:
    with new_data_dir() as folder:
        yield folder
