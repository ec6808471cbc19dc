"""The page's modules by themselves, run in the browser: the fold of events holds whatever the network does."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.server import ServerProcess
from tests.real.browser.cdp import Page

pytestmark = pytest.mark.real

MODULE = "import(document.querySelector('script').src.replace('main.js', '{name}'))"

HISTORIES = Path(__file__).with_name("histories.js")
WIRE = Path(__file__).with_name("wire.js")

GAP = """
(async () => {
  const { Tasks } = await %s;
  const tasks = new Tasks(() => {});
  tasks.put({ id: "t", seq: 2, status: "processing", attempt: 1, progress: 0, response: "ab", outputs: [] });
  return [
    tasks.apply("t", "text_delta", { attempt: 1, offset: 5, text: "x" }),
    tasks.get("t").response,
    tasks.apply("t", "text_delta", { attempt: 1, offset: 1, text: "bcd" }),
    tasks.get("t").response,
    tasks.apply("other", "progress", {}),
  ];
})()
"""


async def test_what_the_page_knows_is_what_happened_whatever_the_network_does(
    page: Page, server: ServerProcess
) -> None:
    await page.open(server.url + "/")
    script = HISTORIES.read_text().replace("await MODULE", f"await {MODULE.format(name='tasks.js')}")
    assert await page.run(script, 60) == "held"


async def test_missing_text_is_a_gap_and_text_told_twice_is_taken_once(page: Page, server: ServerProcess) -> None:
    await page.open(server.url + "/")
    told = await page.run(GAP % MODULE.format(name="tasks.js"))
    assert told == ["gap", "ab", "text", "abcd", "unknown"]


async def test_the_client_keeps_its_promises_on_a_bad_wire(page: Page, server: ServerProcess) -> None:
    await page.open(server.url + "/docs/problems")  # a page without a socket of its own
    site = await page.run("document.querySelector('link[rel=stylesheet]').href")
    module = site.replace("style.css", "phoenix.js")
    told = await page.run(WIRE.read_text().replace("await MODULE", f"await import('{module}')"), 60)
    assert told == {
        "protocols": ["phoenix", "base64url.bearer.phx.dMO2a8Opbg"],
        "url": "ws://test/socket/websocket?vsn=2.0.0",
        "joined": [{"last_seq": 1}, {"last_seq": 2}],
        "replaced": True,
        "events": [["mine", 2], ["all", 3]],
        "push": {"saw": "hello"},
        "refused": "no",
        "rejoined": True,
        "closed": [1, 0],
        "patient": True,
    }
