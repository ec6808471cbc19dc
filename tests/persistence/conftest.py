"""PostgreSQL for the tests of this folder, and entries to write into it."""

from __future__ import annotations

from tests.postgres import *  # noqa: F403
