"""What every room's tests share: an open node."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from engine.otp import Node


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    """A node for one test; what the test leaves running is shut down in order."""
    async with Node.open() as node:
        yield node
