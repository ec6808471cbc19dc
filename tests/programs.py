"""Programs that some tests need and a machine may not have: found, or the test is skipped with a word.

With ELWIFT_NEED names of programs (separated by spaces) a missing one fails the test instead: CI installs them first.
"""

from __future__ import annotations

import os
import shutil

import pytest

HINTS = {
    "node": "Node.js 20 or newer",
    "npm": "npm, which comes with Node.js",
    "chromium": "Chromium (Debian's package `chromium`)",
    "elixir": "Elixir (Debian's package `elixir`)",
}


def need(program: str, *other_names: str) -> str:
    """The path of a program; skips the test (or fails it, see above) when it is not there."""
    for name in (program, *other_names):
        if path := shutil.which(name):
            return path
    word = f"{HINTS.get(program, program)} is not on this machine"
    if program in os.environ.get("ELWIFT_NEED", "").split():
        pytest.fail(word)
    pytest.skip(word)
