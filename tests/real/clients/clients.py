"""Real clients, installed where git does not look, and driven from tests.

What is installed once is used again: the folder's name has the digest of what it is made of.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field

from tests.programs import need

HERE = Path(__file__).parent
NPM_PATIENCE = 180
PIP_PATIENCE = 300
PATIENCE = 20.0


def cache() -> Path:
    """Beside the virtual environment, or in the user's cache where that cannot be written."""
    beside = Path(sys.prefix).parent
    if os.access(beside, os.W_OK):
        return beside / ".venv-peers"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "elwift"


def installed(name: str, recipe: str, make: Any) -> Path:
    """The folder `name`, made by `make(folder)` unless it is there already; half of one is never left behind."""
    folder = cache() / f"{name}-{sha256(recipe.encode()).hexdigest()[:12]}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = folder.with_name(f"{folder.name}.{os.getpid()}")
        shutil.rmtree(work, ignore_errors=True)
        try:
            make(work)
            work.rename(folder)
        except (OSError, subprocess.SubprocessError) as problem:
            shutil.rmtree(work, ignore_errors=True)
            if not folder.exists():
                pytest.skip(f"{name} cannot be installed here: {problem}")
    return folder


def node_modules() -> Path:
    """The folder with the npm packages of package.json."""
    npm = need("npm")
    recipe = (HERE / "package.json").read_text()

    def make(work: Path) -> None:
        work.mkdir()
        (work / "package.json").write_text(recipe)
        quietly = ("--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts")
        subprocess.run([npm, "install", *quietly], cwd=work, check=True, capture_output=True, timeout=NPM_PATIENCE)

    folder = installed("npm", recipe, make)
    script = folder / "phoenix.mjs"
    source = (HERE / "phoenix.mjs").read_text()
    if not script.exists() or script.read_text() != source:
        script.write_text(source)
    return folder


def python_with(package: str) -> Path:
    """An interpreter of its own in which this one requirement is installed."""

    def make(work: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", str(work)], check=True, capture_output=True, timeout=PIP_PATIENCE)
        pip = [str(work / "bin" / "python"), "-m", "pip", "install", "--quiet", package]
        subprocess.run(pip, check=True, capture_output=True, timeout=PIP_PATIENCE)

    version = f"{sys.version_info.major}{sys.version_info.minor}"
    return installed(package.partition("=")[0], f"{package} {version}", make) / "bin" / "python"


@define(eq=False)
class Phoenix:
    """A phoenix client in a Node process."""

    process: trio.Process
    told: list[dict[str, Any]] = field(factory=list)
    _ids: Any = field(factory=lambda: count(1))
    _more: trio.Event = field(factory=trio.Event)

    async def do(self, what: str, **details: Any) -> int:
        """Gives a command; answers its id."""
        number = next(self._ids)
        assert self.process.stdin is not None
        await self.process.stdin.send_all(json.dumps({"do": what, "id": number, **details}).encode() + b"\n")
        return number

    async def wait_for(self, what: str, **details: Any) -> dict[str, Any]:
        """The first thing of this kind, with these details, that has not been waited for before."""
        with trio.fail_after(PATIENCE):
            while True:
                for index, told in enumerate(self.told):
                    if told["on"] == what and details.items() <= told.items():
                        del self.told[index]
                        return told
                await self._more.wait()

    async def ask(self, what: str, **details: Any) -> Any:
        """Gives a command and waits for its reply: (status, response)."""
        number = await self.do(what, **details)
        answer = await self.wait_for("reply", id=number)
        return answer["status"], answer["response"]

    async def read(self) -> None:
        assert self.process.stdout is not None
        rest = b""
        async for chunk in self.process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            self.told += [json.loads(line) for line in lines]
            self._more.set()
            self._more = trio.Event()


@asynccontextmanager
async def phoenix(package: str, url: str, **options: Any) -> AsyncIterator[Phoenix]:
    """A client of this package for this URL, as `ws://127.0.0.1:4000/socket`; not yet connected."""
    folder = node_modules()
    command = [need("node"), "phoenix.mjs", package, url, json.dumps(options)]
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        client = Phoenix(process)
        nursery.start_soon(client.read)
        try:
            yield client
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            nursery.cancel_scope.cancel()
