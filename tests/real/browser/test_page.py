"""The tasks page in a real browser on a real server: type, watch, reload, cancel, retry, and be told what is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import trio

from scripts.server import ServerProcess, serving
from tests.real.browser.cdp import PHONE, Browser, Page

pytestmark = pytest.mark.real

CONTRAST = Path(__file__).with_name("contrast.js")
LIVE = "document.getElementById('link').dataset.state === 'open'"
ENTER, CTRL = 13, 2


def card(title: str, rest: str = "") -> str:
    """A JavaScript expression: the card with this title, or a part of it."""
    titled = f"(one) => one.querySelector('h2').innerText === {json.dumps(title)}"
    found = f"[...document.querySelectorAll('.task')].find({titled})"
    return f"{found}?.querySelector({json.dumps(rest)})" if rest else found


async def visit(page: Page, server: ServerProcess) -> None:
    await page.open(server.url + "/")
    await page.until(LIVE)


async def generate(page: Page, title: str, **options: object) -> None:
    """Makes a task on the clock, by the form."""
    if await page.run("document.getElementById('model').value") != "simulate":
        await page.select("#model", "simulate")
    for name, value in options.items():
        if isinstance(value, bool):
            await page.run(f"document.querySelector('[name={name}]').checked = {json.dumps(value)}")
        else:
            await page.fill(f"[name={name}]", str(value))
    await page.type("#prompt", title)
    await page.press("Enter", ENTER, CTRL)
    await page.until(card(title))


async def words(page: Page, title: str, part: str) -> str:
    return str(await page.run(f"{card(title, part)}?.innerText ?? ''"))


async def press(page: Page, title: str, part: str) -> None:
    """Clicks a button of a card."""
    await page.until(f"{card(title, part)} && !{card(title, part)}.hidden")
    await page.run(f"{card(title, part)}.click()")


async def test_a_prompt_is_typed_and_its_progress_and_text_are_watched_to_the_end(
    page: Page, server: ServerProcess
) -> None:
    await visit(page, server)
    await generate(page, "watched", steps=12, interval=0.15, text=True)
    seen: list[int] = []
    bar = f"Number({card('watched', '[role=progressbar]')}?.getAttribute('aria-valuenow'))"
    while await page.run(f"{card('watched')}.dataset.status") not in ("completed", "failed"):
        seen.append(await page.run(bar))
        await page.until(f"{bar} !== {seen[-1]} || {card('watched')}.dataset.status === 'completed'")
    assert await words(page, "watched", ".badge") == "Done"
    assert seen == sorted(seen)
    assert len(set(seen)) > 4
    assert len((await words(page, "watched", "[data-part=text]")).split()) >= 12
    assert page.complaints == []


async def test_a_reload_in_the_middle_goes_on_where_it_was(page: Page, server: ServerProcess) -> None:
    await visit(page, server)
    await generate(page, "reloaded", steps=30, interval=0.12, text=True)
    text = f"({card('reloaded', '[data-part=text]')}?.innerText ?? '')"
    await page.until(f"{text}.length > 20")
    before = await page.run(text)
    await page.reload()
    await page.until(f"{text}.startsWith({json.dumps(before.strip())})")
    assert await page.run(f"{card('reloaded')}.dataset.status") == "processing"
    after = await page.run(text)
    await page.until(f"{text}.length > {len(after)} && {card('reloaded')}.dataset.status === 'processing'")
    await page.until(f"{card('reloaded')}.dataset.status === 'completed'", 30)
    shown = await page.run(text)
    answered = await page.run(f"fetch('/api/tasks/' + {card('reloaded')}.dataset.task).then((answer) => answer.json())")
    assert shown.strip() == answered["response"].strip()
    assert page.complaints == []


async def test_cancel_stops_a_running_task(page: Page, server: ServerProcess) -> None:
    await visit(page, server)
    await generate(page, "cancelled", steps=1000, interval=0.1)
    await page.until(f"{card('cancelled')}.dataset.status === 'processing'")
    await press(page, "cancelled", "[data-part=cancel]")
    await page.until(f"{card('cancelled')}.dataset.status === 'cancelled'")
    assert await words(page, "cancelled", ".badge") == "Cancelled"
    assert await page.run(f"{card('cancelled', '[data-part=cancel]')}.hidden")


async def test_a_failed_task_says_why_and_is_retried(page: Page, server: ServerProcess) -> None:
    await visit(page, server)
    await generate(page, "retried", steps=4, interval=0.1, fail_at=2, fail_attempts=1)
    await page.until(f"{card('retried')}.dataset.status === 'failed'")
    assert len(await words(page, "retried", "[data-part=errorMessage]")) > 5
    await press(page, "retried", "[data-part=retry]")
    await page.until(f"{card('retried')}.dataset.status === 'completed'")
    assert "attempt 2" in await words(page, "retried", ".task-meta")
    assert await page.run(f"{card('retried', '[data-part=error]')}.hidden")


async def test_an_attempt_that_fails_is_said_to_be_retried_and_its_text_is_taken_back(
    page: Page, server: ServerProcess
) -> None:
    await visit(page, server)
    await page.select("#model", "simulate")
    await page.select("[name=fail_kind]", '"retryable"')
    options = {"fail_at": 4, "fail_attempts": 1, "retry_after": 1}
    await generate(page, "again", steps=6, interval=0.1, text=True, **options)
    await page.until(f"{card('again', '.badge')}.innerText === 'Retrying'")
    assert await page.run(f"{card('again', '[data-part=error]')}.classList.contains('mild')")
    await page.until(f"{card('again')}.dataset.status === 'completed'")
    shown = await words(page, "again", "[data-part=text]")
    answered = await page.run(f"fetch('/api/tasks/' + {card('again')}.dataset.task).then((answer) => answer.json())")
    assert (shown.strip(), answered["attempt"]) == (answered["response"].strip(), 2)


async def test_a_task_server_that_crashes_costs_its_watcher_nothing(page: Page, server: ServerProcess) -> None:
    await visit(page, server)
    await generate(page, "crashed", steps=12, interval=0.1, crash_at=6, text=True)
    await page.until(f"{card('crashed')}.dataset.status === 'completed'", 30)
    assert len((await words(page, "crashed", "[data-part=text]")).split()) >= 12


async def test_input_that_does_not_fit_is_told_at_its_field_and_the_prompt_is_kept(
    page: Page, server: ServerProcess
) -> None:
    await visit(page, server)
    await page.select("#model", "simulate")
    await page.fill("[name=steps]", "5")
    await page.run("document.querySelector('[name=steps]').removeAttribute('min')")
    await page.fill("[name=steps]", "0")
    await page.type("#prompt", "unfit")
    await page.click("#send")
    await page.until("!document.getElementById('composer-problem').hidden")
    assert "steps" in await page.text("#composer-problem")
    assert await page.run("document.querySelector('[name=steps]').getAttribute('aria-invalid')") == "true"
    assert await page.run("document.getElementById('prompt').value") == "unfit"


async def test_what_another_tab_makes_shows_here_too(page: Page, chromium: Browser, server: ServerProcess) -> None:
    await visit(page, server)
    async with chromium.page() as other:
        await visit(other, server)
        await generate(other, "elsewhere", steps=3, interval=0.1)
    await page.until(f"{card('elsewhere')}?.dataset.status === 'completed'")


async def test_the_history_of_a_task_opens(page: Page, server: ServerProcess) -> None:
    await visit(page, server)
    await generate(page, "remembered", steps=2, interval=0.05)
    await page.until(f"{card('remembered')}.dataset.status === 'completed'")
    await press(page, "remembered", "summary")
    await page.until(f"{card('remembered', '[data-part=events]')}.children.length >= 3")
    assert re.search(r"Created.*Started.*Completed", await words(page, "remembered", "[data-part=events]"), re.DOTALL)


async def test_dark_is_dark_by_the_system_and_by_the_button(page: Page, server: ServerProcess) -> None:
    ground = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b)"
    await page.prefer(color_scheme="dark")
    await visit(page, server)
    dark = await page.run(ground)
    await page.prefer(color_scheme="light")
    light = await page.run(ground)
    assert dark < 150 < 600 < light
    await page.click("#theme")  # light
    await page.click("#theme")  # dark
    assert await page.run(ground) == dark
    await page.reload()
    assert await page.run(ground) == dark
    await page.click("#theme")  # as the system again
    assert await page.run(ground) == light


async def test_a_phone_shows_it_without_scrolling_sideways(chromium: Browser, server: ServerProcess) -> None:
    async with chromium.page(*PHONE) as page:
        await visit(page, server)
        await generate(page, "a" * 300, steps=2, interval=0.05)
        assert await page.run("document.documentElement.scrollWidth <= innerWidth")
        controls = "[...document.querySelectorAll('button, select, textarea')]"
        small = f"{controls}.filter((one) => one.offsetParent && one.offsetHeight < 32)"
        assert await page.run(f"{small}.map((one) => one.id || one.innerText)") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_text_stands_out_from_what_is_behind_it(page: Page, server: ServerProcess, scheme: str) -> None:
    await page.prefer(color_scheme=scheme)
    await visit(page, server)
    await generate(page, f"{scheme} running", steps=500, interval=0.1, text=True)
    await generate(page, f"{scheme} failing", steps=2, interval=0.02, fail_at=1)
    await page.until(f"{card(f'{scheme} failing')}.dataset.status === 'failed'")
    await page.until(f"{card(f'{scheme} running')}.dataset.status === 'processing'")
    assert await page.run(CONTRAST.read_text()) == []
    await press(page, f"{scheme} running", "[data-part=cancel]")
    await page.open(server.url + "/operators")
    await page.until("document.querySelectorAll('.row').length > 5")
    assert await page.run(CONTRAST.read_text()) == []


async def test_every_control_has_a_name_and_motion_can_be_turned_off(page: Page, server: ServerProcess) -> None:
    await page.prefer(reduced_motion="reduce")
    await visit(page, server)
    await generate(page, "still", steps=50, interval=0.1, text=True)
    tree = await page.command("Accessibility.getFullAXTree")
    roles = {"button", "textbox", "combobox", "link", "spinbutton", "checkbox", "progressbar", "searchbox"}
    nameless = [
        node["role"]["value"]
        for node in tree["nodes"]
        if not node.get("ignored") and node["role"]["value"] in roles and not node.get("name", {}).get("value")
    ]
    assert nameless == []
    assert await page.run("document.getAnimations().length") == 0
    await press(page, "still", "[data-part=cancel]")


async def test_the_page_comes_back_by_itself_when_the_server_was_away(
    chromium: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = tmp_path_factory.mktemp("away") / "data"
    quiet = {"ELWIFT_LOCAL_MODEL": "false"}
    async with chromium.page() as page:
        async with serving(data, environment=quiet) as first:
            await visit(page, first)
            await generate(page, "through it", steps=60, interval=0.1, text=True)
            await page.until(f"{card('through it')}.dataset.status === 'processing'")
            port = first.url.rpartition(":")[2]
            await first.kill()
            await page.until(f"!({LIVE})")
            await page.fill("[name=steps]", "2")
            await page.type("#prompt", "asked meanwhile")
            await page.click("#send")
            await page.until("!document.getElementById('composer-problem').hidden")
        with trio.fail_after(60):
            async with serving(data, "--port", port, environment=quiet):
                await page.until(LIVE, 30)
                await page.until(f"{card('through it')}.dataset.status === 'completed'", 40)
                assert len((await words(page, "through it", "[data-part=text]")).split()) >= 60
                await page.until(f"{card('asked meanwhile')}?.dataset.status === 'completed'", 30)
                assert await page.run("document.querySelectorAll('.task').length") == 2


async def test_a_token_is_asked_for_and_kept_in_the_tab(
    chromium: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = tmp_path_factory.mktemp("guarded") / "data"
    guarded = {"ELWIFT_TOKENS": "alice-secret=alice,olga-secret=olga:operator", "ELWIFT_LOCAL_MODEL": "false"}
    async with serving(data, environment=guarded) as server:
        async with chromium.page() as page:
            await page.open(server.url + "/")
            await page.until("document.querySelector('#token-dialog[open]')")
            await page.type("#token", "wrong")
            await page.press("Enter", ENTER)
            await page.until(
                "document.querySelector('#token-dialog[open]') && document.getElementById('token').value === ''"
            )
            await page.type("#token", "alice-secret")
            await page.click("#token-dialog button")
            await page.until(LIVE)
            assert await page.run("document.getElementById('to-operators').hidden")
            await generate(page, "guarded", steps=3, interval=0.05)
            await page.until(f"{card('guarded')}.dataset.status === 'completed'")
            await page.reload()
            await page.until(f"{LIVE} && {card('guarded')}")
            await page.open(server.url + "/operators")
            await page.until("!document.getElementById('refusal').hidden")
        async with chromium.page() as page:
            await page.open(server.url + "/#token=olga-secret")
            await page.until(LIVE)
            assert await page.run("location.hash") == ""
            assert not await page.run("document.getElementById('to-operators').hidden")
            assert await page.run("document.querySelectorAll('.task').length") == 0
