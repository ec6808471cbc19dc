"""One real server with three users (alice, bob, and olga, who is an operator), shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from scripts.server import ServerProcess, serving
from tests.held import held
from tests.web.http.described import Described

TOKENS = {"alice": "alice-secret", "bob": "bob-secret", "olga": "olga-secret"}
ENVIRONMENT = {
    "ELWIFT_TOKENS": "alice-secret=alice,bob-secret=bob,olga-secret=olga:operator",
    "ELWIFT_LOCAL_MODEL": "false",
    "ELWIFT_ALLOWED_ORIGINS": "same,https://app.example",
}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("http")
    with held(lambda: serving(folder / "data", environment=ENVIRONMENT)) as running:
        yield running


def client(server: ServerProcess, user: str | None) -> httpx.Client:
    headers = {"Authorization": f"Bearer {TOKENS[user]}"} if user else {}
    return httpx.Client(base_url=server.url, headers=headers, timeout=20)


@pytest.fixture(scope="session")
def described(server: ServerProcess) -> Described:
    return Described(httpx.get(f"{server.url}/api/openapi.json").json())


@pytest.fixture
def alice(server: ServerProcess, described: Described) -> Iterator[httpx.Client]:
    yield from _watched(server, described, "alice")


@pytest.fixture
def bob(server: ServerProcess, described: Described) -> Iterator[httpx.Client]:
    yield from _watched(server, described, "bob")


@pytest.fixture
def olga(server: ServerProcess, described: Described) -> Iterator[httpx.Client]:
    yield from _watched(server, described, "olga")


@pytest.fixture
def nobody(server: ServerProcess, described: Described) -> Iterator[httpx.Client]:
    yield from _watched(server, described, None)


def _watched(server: ServerProcess, described: Described, user: str | None) -> Iterator[httpx.Client]:
    """A client whose every answer is held against the OpenAPI document."""
    with client(server, user) as http:
        http.event_hooks["response"].append(described.check)
        yield http
