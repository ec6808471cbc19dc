"""The tests' application in a process of its own: served by stock hypercorn, or by the endpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import trio
from attrs import define

ROOT = Path(__file__).parents[3]


@define
class Program:
    process: trio.Process
    port: int

    def resident(self) -> int:
        """Bytes of memory that it holds now."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    async def has_ended(self, patience: float) -> bool:
        with trio.move_on_after(patience):
            await self.process.wait()
        return self.process.returncode is not None

    async def ask_to_stop(self) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.aclose()


@asynccontextmanager
async def program(kind: str) -> AsyncIterator[Program]:
    """Runs `apps.py` with this argument: `stock` or `ours`."""
    command = [sys.executable, "-m", "tests.web.endpoint.apps", kind]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(_run, command)
        try:
            yield Program(process, await _port(process))
        finally:
            process.kill()
            nursery.cancel_scope.cancel()


async def _run(command: list[str], task_status: trio.TaskStatus[trio.Process]) -> None:
    await trio.run_process(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
        task_status=task_status,
    )


async def _port(process: trio.Process) -> int:
    assert process.stdout is not None
    found = b""
    with trio.fail_after(30):
        while not found.endswith(b"\n"):
            found += await process.stdout.receive_some() or b"0\n"
    return int(found)
