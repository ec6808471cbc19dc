"""Runs `elwift serve` as a child process for load, chaos and end-to-end tests, and ends it by its pid.

The server says where it listens in one line on its standard output; everything else goes to a log file.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE

import trio
from attrs import define

ROOT = Path(__file__).resolve().parent.parent
READY = re.compile(rb"(https?://[^\s]+)")


class ServerFailed(Exception):
    """The server ended before it was ready; the message has what it said."""


@define(eq=False)
class ServerProcess:
    """A running server: `url`, its OS process, and the file its log goes to."""

    url: str
    process: trio.Process
    log: Path

    async def terminate(self, within: float = 20.0) -> int:
        """SIGTERM, and its exit status. Raises trio.TooSlowError."""
        return await self.end(signal.SIGTERM, within)

    async def kill(self) -> int:
        return await self.end(signal.SIGKILL, 10.0)

    async def end(self, sign: signal.Signals, within: float) -> int:
        if self.process.returncode is None:
            self.process.send_signal(sign)
        with trio.fail_after(within):
            return await self.process.wait()


async def launch(
    nursery: trio.Nursery,
    data_dir: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    within: float = 60.0,
    started: Callable[[ServerProcess], None] | None = None,
) -> ServerProcess:
    """Starts a server on a free port of loopback and waits until it is ready; `started` has its process before.

    Raises:
        ServerFailed: it ended, or was not ready `within` so many seconds (then it is killed).
    """
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    log = data_dir.parent / f"{data_dir.name}.log"
    command = [sys.executable, "-m", "web.cli", "serve", "--port", "0", "--data-dir", str(data_dir), *arguments]
    with log.open("ab") as stderr:
        process = await trio.lowlevel.open_process(
            command,
            stdout=PIPE,
            stderr=stderr,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        )
    if started is not None:
        started(ServerProcess("", process, log))
    try:
        with trio.fail_after(within):
            url = await _first_url(process)
    except BaseException as problem:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            status = await process.wait()
        if isinstance(problem, ServerFailed | trio.TooSlowError):
            tail = log.read_text(errors="replace")[-3000:]
            raise ServerFailed(f"the server did not become ready (exit status {status}):\n{tail}") from None
        raise
    assert process.stdout is not None
    nursery.start_soon(_drain, process.stdout)
    return ServerProcess(url, process, log)


@asynccontextmanager
async def serving(
    data_dir: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> AsyncIterator[ServerProcess]:
    """A server for the length of a block; stopped by SIGTERM at its end, by SIGKILL if it does not stop."""
    async with trio.open_nursery() as nursery:
        server = await launch(nursery, data_dir, *arguments, environment=environment)
        try:
            yield server
        finally:
            with trio.CancelScope(shield=True):
                try:
                    await server.terminate()
                except trio.TooSlowError:
                    await server.kill()
            nursery.cancel_scope.cancel()


async def _first_url(process: trio.Process) -> str:
    assert process.stdout is not None
    said = b""
    while b"\n" not in said or not READY.search(said):
        chunk = await process.stdout.receive_some(4096)
        if not chunk:
            raise ServerFailed
        said += chunk
    found = READY.search(said)
    assert found
    return found[1].decode().rstrip("/")


async def _drain(stream: trio.abc.ReceiveStream) -> None:
    async for _ in stream:
        pass
