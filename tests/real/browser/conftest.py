"""A real server and a real browser, shared by the tests of this folder; each test has a tab of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from scripts.server import ServerProcess, serving
from tests.held import held
from tests.programs import need
from tests.real.browser.cdp import Browser, Page, browser


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    program = need("chromium", "chromium-browser", "google-chrome")
    with held(lambda: browser(program)) as running:
        yield running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("pages")
    # The local model is left out: these tests look at the page, and the clock model is the same to it.
    with held(lambda: serving(folder / "data", environment={"ELWIFT_LOCAL_MODEL": "false"})) as running:
        yield running


@pytest.fixture
async def page(chromium: Browser) -> AsyncIterator[Page]:
    async with chromium.page() as tab:
        yield tab
