"""Real Cog servers for tests, in an environment of their own, and the place where their webhooks arrive."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from socket import create_server
from subprocess import DEVNULL, PIPE
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import httpx
import trio
from attrs import define

from engine.providers import cog_server_main
from engine.providers.cog import Cog, Patience
from engine.providers.cog_wire import Server
from engine.providers.protocol import ProviderEvent, ProviderRequest
from engine.providers.replicate_wire import read_prediction
from scripts.server import ServerProcess, launch
from tests.engine.providers import raw_http
from tests.engine.providers.fake_cog import FakeCog
from tests.engine.providers.raw_http import Reply, Request
from tests.real.clients.clients import python_with

MODELS = Path(__file__).parent / "models"
COG = "cog==0.23.1"


def cog_python() -> Path:
    """An interpreter with Cog."""
    return python_with(COG)


Launch = Callable[..., Awaitable[ServerProcess]]


@define(eq=False)
class CogServer:
    url: str
    process: trio.Process

    async def health(self, http: httpx.AsyncClient) -> str:
        try:
            return str((await http.get(f"{self.url}/health-check")).json()["status"])
        except httpx.HTTPError:
            return "UNREACHABLE"


@asynccontextmanager
async def cog_server(model: str, folder: Path = MODELS, **settings: str) -> AsyncIterator[CogServer]:
    """A server of one of the models in `folder`, ready; stopped at the end of the block. `settings`: of its
    environment."""
    python = await trio.to_thread.run_sync(cog_python)
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": f"{python.parent}:{os.environ['PATH']}",  # the worker is started as plain `python`
        "PORT": str(port),
        "COG_PREDICT_TYPE_STUB": f"{model}.py:Predictor",
        **settings,
    }
    command = [sys.executable, cog_server_main.__file__, str(python), "-m", "cog.server.http", "--host", "127.0.0.1"]
    process = await trio.lowlevel.open_process(
        command, cwd=folder, env=environment, stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True
    )
    server = CogServer(f"http://127.0.0.1:{port}", process)
    try:
        await _ready(server)
        yield server
    finally:
        assert process.stdin is not None
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()  # which ends it
            await process.wait()


async def _ready(server: CogServer) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        with trio.fail_after(60):
            while await server.health(http) != "READY":  # it has no way to tell by itself
                assert server.process.returncode is None
                await trio.sleep(0.05)


@define(eq=False)
class Receiver:
    """Takes webhooks for a provider; `deaf` loses them all."""

    url: str
    provider: Cog | None = None
    deaf: bool = False
    heard: int = 0

    def webhook(self, attempt_id: UUID) -> str:
        return f"{self.url}/?attempt={attempt_id}"

    async def handle(self, request: Request, reply: Reply) -> None:
        self.heard += 1
        if self.provider and not self.deaf:
            attempt = UUID(parse_qs(urlsplit(request.target).query)["attempt"][0])
            self.provider.deliver(attempt, read_prediction(json.loads(request.body)))
        await reply.whole(200, {}, b"{}")


@asynccontextmanager
async def provider_of(
    *servers: CogServer | FakeCog, patience: Patience | None = None, slots: int | None = None
) -> AsyncIterator[tuple[Cog, Receiver]]:
    """The provider over these servers (`0`, `1`, … by name), its webhooks received on loopback."""
    receiver = Receiver("")
    async with (
        raw_http.serving(receiver.handle) as (url, _),
        httpx.AsyncClient(trust_env=False, timeout=5) as http,
    ):
        receiver.url = url
        named = [Server(str(number), server.url, slots) for number, server in enumerate(servers)]
        receiver.provider = Cog(http, named, receiver.webhook, patience)
        yield receiver.provider, receiver


def request(server: str = "0", **input: Any) -> ProviderRequest:
    return ProviderRequest(uuid4(), 1, uuid4(), "model", server, "", {"prompt": "hi", **input})


async def events_of(provider: Cog, wanted: ProviderRequest) -> list[ProviderEvent]:
    with trio.fail_after(30):
        async with aclosing(provider.run(wanted)) as events:
            return [event async for event in events]


@asynccontextmanager
async def launcher(data_dir: Path, **environment: str) -> AsyncIterator[Launch]:
    """Starts the whole server as a process, one life after another; whichever is left at the end is killed."""
    lives: list[ServerProcess] = []
    async with trio.open_nursery() as nursery:

        async def start(*arguments: str) -> ServerProcess:
            lives.append(await launch(nursery, data_dir, *arguments, environment=environment))
            return lives[-1]

        try:
            yield start
        finally:
            with trio.CancelScope(shield=True):
                for life in lives:
                    if life.process.returncode is None:
                        await life.kill()
            nursery.cancel_scope.cancel()
