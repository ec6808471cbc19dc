"""The operators' page in a real browser on a real server: the tree lives, a process is killed, a queue is paused."""

from __future__ import annotations

import json

import pytest

from scripts.server import ServerProcess
from tests.real.browser.cdp import PHONE, Browser, Page

pytestmark = pytest.mark.real

LIVE = "document.querySelectorAll('.row').length > 5 && document.querySelector('.tile')"


def row(name: str) -> str:
    """A JavaScript expression: the tree's row whose name begins so."""
    return f"[...document.querySelectorAll('.who')].find((one) => one.innerText.startsWith({json.dumps(name)}))"


async def post(page: Page, path: str, body: object = None) -> dict[str, object]:
    sent = {"method": "POST", "headers": {"Content-Type": "application/json"}, "body": json.dumps(body)}
    found = await page.run(f"fetch({json.dumps(path)}, {json.dumps(sent)}).then((answer) => answer.json())")
    assert isinstance(found, dict)
    return found


async def visit(page: Page, server: ServerProcess) -> None:
    await page.open(server.url + "/operators")
    await page.until(LIVE)


async def test_the_tree_lives_and_a_killed_task_server_comes_back(page: Page, server: ServerProcess) -> None:
    await visit(page, server)
    wish = {"model": "simulate", "input": {"steps": 400, "interval": 0.05}}
    task_id = str((await post(page, "/api/tasks", wish))["task_id"])
    await page.until(row("tasks"))
    await page.run(f"{row('tasks')}.parentElement.querySelector('.turn').click()")
    await page.until(row(f"task:{task_id}"))
    await page.run(f"{row(f'task:{task_id}')}.click()")
    await page.until("document.querySelector('#process[open] .danger')")
    assert "TaskServer" in await page.text("#process-facts")
    kill = "[...document.querySelectorAll('#process .danger')].find((one) => one.innerText.startsWith('Kill'))"
    await page.run(f"{kill}.click()")
    assert await page.run(f"{kill}.innerText") == "Kill: click again"
    await page.run(f"{kill}.click()")
    await page.until("!document.querySelector('#process[open]')")
    await page.until(f"{row(f'task:{task_id}')}.closest('.row').innerText.includes('s')")
    await page.until("document.getElementById('recent').innerText.includes('started again')")
    await post(page, f"/api/tasks/{task_id}/cancel")
    await page.until(f"!({row(f'task:{task_id}')})")
    assert page.complaints == []


async def test_a_queue_is_paused_and_resumed(page: Page, server: ServerProcess) -> None:
    await visit(page, server)
    button = (
        "[...document.querySelectorAll('#queues .queue')].find((one) => one.innerText.startsWith('default'))"
        ".querySelector('button')"
    )
    await page.until(f"{button}.innerText === 'Pause'")
    await page.run(f"{button}.click()")
    await page.until(f"{button}.innerText === 'Resume'")
    await page.run(f"{button}.click()")
    await page.until(f"{button}.innerText === 'Pause'")
    await page.until("document.getElementById('recent').innerText.includes('resume default')")


async def test_models_are_listed_and_an_import_that_cannot_be_says_why(page: Page, server: ServerProcess) -> None:
    await visit(page, server)
    await page.until("document.getElementById('models').innerText.includes('simulate')")
    await page.run("document.getElementById('import-model').value = 'stability/sdxl'")
    await page.run("document.querySelector('#import button').click()")
    await page.until("document.getElementById('import-said').dataset.mood === 'bad'")
    assert "ELWIFT_REPLICATE_API_TOKEN" in await page.text("#import-said")


async def test_the_tree_is_walked_by_keys(page: Page, server: ServerProcess) -> None:
    await visit(page, server)
    await page.run("document.querySelector('.who').focus()")
    await page.press("ArrowDown", 40)
    assert await page.run("document.activeElement !== document.querySelector('.who')")
    rows = await page.run("document.querySelectorAll('.row').length")
    await page.press("ArrowUp", 38)
    await page.press("ArrowLeft", 37)
    await page.until("[...document.querySelectorAll('.row')].filter((one) => one.offsetParent).length === 1")
    await page.press("ArrowRight", 39)
    await page.until(f"[...document.querySelectorAll('.row')].filter((one) => one.offsetParent).length >= {rows // 2}")


async def test_a_phone_shows_the_operators_page_without_scrolling_sideways(
    chromium: Browser, server: ServerProcess
) -> None:
    async with chromium.page(*PHONE) as page:
        await visit(page, server)
        assert await page.run("document.documentElement.scrollWidth <= innerWidth")
