"""Fixtures of the protocol's tests: each case runs over every line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest

from tests.web.sockets import server as servers


@pytest.fixture(params=servers.LINES)
def line(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def open_server(line: str) -> Callable[..., Any]:
    return partial(servers.open_server, line)


@pytest.fixture
async def server(line: str) -> AsyncIterator[servers.Server]:
    async with servers.open_server(line) as running:
        yield running


@pytest.fixture
async def client(server: servers.Server) -> AsyncIterator[Any]:
    async with server.connect() as connected:
        yield connected
