"""A small driver of headless Chromium over the DevTools protocol, on trio: start, open a page, act, look.

    async with browser() as chromium, chromium.page() as page:
        await page.open(url)
        await page.type("#prompt", "hello")
        await page.until("document.querySelectorAll('.task').length === 1")

Waiting is done inside the page (`until` polls with animation frames there), so no test sleeps. Everything the page
logs as an error, and every exception in it, is kept in `page.complaints`.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import trio
from attrs import define, field
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--disable-extensions",
    "--no-first-run",
    "--no-default-browser-check",
    "--mute-audio",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
LARGEST = 64 * 2**20
DESKTOP = (1180, 860, 1.0)
PHONE = (390, 844, 2.0)


class CommandFailed(Exception):
    """The browser refused a command, or JavaScript in the page threw."""


@define(eq=False)
class Page:
    """One tab. Methods raise CommandFailed, and trio.TooSlowError after their timeout (seconds)."""

    connection: WebSocketConnection
    complaints: list[str] = field(factory=list)
    _ids: itertools.count[int] = field(factory=itertools.count)
    _waiting: dict[int, Any] = field(factory=dict)
    _loaded: trio.Event = field(factory=trio.Event)

    async def command(self, method: str, timeout: float = 20.0, **params: Any) -> dict[str, Any]:
        """Sends one command and waits for its result."""
        number = next(self._ids)
        outbox, inbox = trio.open_memory_channel[dict[str, Any]](1)
        self._waiting[number] = outbox
        try:
            with trio.fail_after(timeout):
                await self.connection.send_message(json.dumps({"id": number, "method": method, "params": params}))
                answer = await inbox.receive()
        finally:
            del self._waiting[number]
        if "error" in answer:
            raise CommandFailed(f"{method}: {answer['error'].get('message')}")
        result: dict[str, Any] = answer["result"]
        return result

    async def listen(self) -> None:
        """Takes in what the browser says, until the connection ends."""
        try:
            while True:
                self._heard(json.loads(await self.connection.get_message()))
        except ConnectionClosed:
            return

    def _heard(self, message: dict[str, Any]) -> None:
        if (number := message.get("id")) in self._waiting:
            self._waiting[number].send_nowait(message)
            return
        match message.get("method"), message.get("params", {}):
            case "Page.loadEventFired", _:
                self._loaded.set()
            case "Runtime.exceptionThrown", {"exceptionDetails": details}:
                self.complaints.append(str(details.get("exception", {}).get("description") or details.get("text")))
            case "Log.entryAdded", {"entry": {"level": "error"} as entry}:
                self.complaints.append(f"{entry.get('text')} {entry.get('url', '')}")

    async def open(self, url: str) -> None:
        """Goes to a page and waits until it is loaded."""
        self._loaded = trio.Event()
        await self.command("Page.navigate", url=url)
        await self._load()

    async def reload(self) -> None:
        """Loads the page anew."""
        self._loaded = trio.Event()
        await self.command("Page.reload")
        await self._load()

    async def _load(self) -> None:
        with trio.fail_after(30):
            await self._loaded.wait()

    async def run(self, script: str, timeout: float = 20.0) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = await self.command(
            "Runtime.evaluate", timeout, expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise CommandFailed(str(details.get("exception", {}).get("description") or details.get("text")))
        return answer["result"].get("value")

    async def until(self, condition: str, timeout: float = 20.0) -> Any:
        """Waits until an expression is true in the page, looking again at each 30 ms; answers its value."""
        script = f"""new Promise((done) => {{
            const look = () => {{ const value = ({condition}); value ? done(value) : setTimeout(look, 30); }};
            look();
        }})"""
        try:
            return await self.run(script, timeout)
        except trio.TooSlowError:
            seen = await self.run("document.body.innerText.slice(0, 2000)")
            raise AssertionError(f"not true within {timeout} s: {condition}\n{seen}\n{self.complaints}") from None

    async def text(self, selector: str) -> str:
        """The visible text of the first element that fits."""
        return str(await self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    async def click(self, selector: str) -> None:
        """Clicks with the mouse, where the element is."""
        await self.until(f"document.querySelector({json.dumps(selector)})")
        x, y = await self.run(
            f"""(() => {{ const element = document.querySelector({json.dumps(selector)});
            element.scrollIntoView({{block: "center"}}); const box = element.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2]; }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.command("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def type(self, selector: str, text: str) -> None:
        """Focuses the element and types into it."""
        await self.until(f"document.querySelector({json.dumps(selector)})")
        await self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        await self.command("Input.insertText", text=text)

    async def press(self, key: str, code: int, modifiers: int = 0) -> None:
        """Presses a key; `modifiers`: 1 Alt, 2 Ctrl, 4 Meta, 8 Shift."""
        # A key types only when it says what: without a text, Enter would submit no form.
        typed = {"text": "\r"} if key == "Enter" and not modifiers else {}
        for kind in ("keyDown" if typed else "rawKeyDown", "keyUp"):
            await self.command(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                modifiers=modifiers,
                **typed,
            )

    async def select(self, selector: str, value: str) -> None:
        """Chooses an option of a select element."""
        found = json.dumps(selector)
        offered = (
            f"[...document.querySelector({found})?.options ?? []].some((one) => one.value === {json.dumps(value)})"
        )
        await self.until(offered)
        await self.run(
            f"""(() => {{ const select = document.querySelector({found}); select.value = {json.dumps(value)};
            select.dispatchEvent(new Event("change", {{bubbles: true}})); }})()"""
        )

    async def fill(self, selector: str, value: str) -> None:
        """Sets the value of a field, as typing it would."""
        found = json.dumps(selector)
        await self.until(f"document.querySelector({found})")
        await self.run(
            f"""(() => {{ const input = document.querySelector({found}); input.value = {json.dumps(value)};
            input.dispatchEvent(new Event("input", {{bubbles: true}})); }})()"""
        )

    async def size(self, width: int, height: int, scale: float = 1.0) -> None:
        """Makes the page as large as a screen (CSS pixels)."""
        await self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )

    async def prefer(self, **features: str) -> None:
        """Media features, e.g. `color_scheme="dark"`, `reduced_motion="reduce"`."""
        wanted = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
        await self.command("Emulation.setEmulatedMedia", features=wanted)

    async def offline(self, off: bool) -> None:
        """Takes the network away from the page, or gives it back. Open WebSockets are not touched by it."""
        await self.command("Network.enable")
        await self.command(
            "Network.emulateNetworkConditions", offline=off, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )

    async def shot(self, path: Path, whole: bool = False) -> None:
        """Writes a PNG of what is seen, or of the whole page."""
        taken = await self.command("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        await trio.Path(path).write_bytes(base64.b64decode(taken["data"]))


@define(eq=False)
class Browser:
    """A running Chromium: its DevTools address (ws://127.0.0.1:port)."""

    address: str

    @asynccontextmanager
    async def page(self, width: int = DESKTOP[0], height: int = DESKTOP[1], scale: float = 1.0) -> AsyncIterator[Page]:
        """A new tab, closed at the end."""
        target = await self._new_tab()
        url = f"{self.address}/devtools/page/{target}"
        async with open_websocket_url(url, max_message_size=LARGEST) as connection, trio.open_nursery() as nursery:
            page = Page(connection)
            nursery.start_soon(page.listen)
            for domain in ("Page", "Runtime", "Log"):
                await page.command(f"{domain}.enable")
            await page.size(width, height, scale)
            yield page
            with trio.move_on_after(5):
                await page.command("Page.close")
            nursery.cancel_scope.cancel()

    async def _new_tab(self) -> str:
        async with open_websocket_url(f"{self.address}/devtools/browser/{self._id}") as connection:
            await connection.send_message(
                json.dumps({"id": 1, "method": "Target.createTarget", "params": {"url": "about:blank"}})
            )
            while True:
                answer = json.loads(await connection.get_message())
                if answer.get("id") == 1:
                    return str(answer["result"]["targetId"])

    _id: str = ""


@asynccontextmanager
async def browser(program: str) -> AsyncIterator[Browser]:
    """Runs Chromium with a profile of its own; ends it, with all its children, at the end."""
    with tempfile.TemporaryDirectory(prefix="elwift-chromium-", ignore_cleanup_errors=True) as profile:
        process = await trio.lowlevel.open_process(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=DEVNULL,
            env={**os.environ, "HOME": profile},
        )
        try:
            port, path = await _address(Path(profile) / "DevToolsActivePort", process)
            yield Browser(f"ws://127.0.0.1:{port}", path.rpartition("/")[2])
        finally:
            await _end(process)


async def _address(written: Path, process: trio.Process) -> tuple[int, str]:
    """Chromium writes its port and path into its profile when it listens; there is no other sign, hence the look."""
    with trio.fail_after(60):
        while process.poll() is None:
            lines = written.read_text().split("\n") if written.exists() else []
            if len(lines) == 2:
                return int(lines[0]), lines[1]
            await trio.sleep(0.05)
    raise RuntimeError(f"Chromium ended with {process.returncode} before it listened")


async def _end(process: trio.Process) -> None:
    with trio.CancelScope(shield=True):
        if process.poll() is None:
            process.terminate()
            with trio.move_on_after(5):
                await process.wait()
        if process.poll() is None:
            process.kill()
            await process.wait()
