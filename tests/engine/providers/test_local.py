"""The local model for real: SmolLM2 in its own OS process, under its supervisor, over HTTP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest
import trio

from engine.models import LOCAL
from engine.otp import KILL, Node, Supervisor, exit, whereis
from engine.providers import local_server, model_server
from engine.providers.local import Local
from engine.providers.model_server import ModelServerSettings, live_once, packaged_weights
from engine.providers.openai_compatible import body
from engine.providers.protocol import (
    Failed,
    FailureKind,
    Finished,
    Progress,
    ProviderEvent,
    ProviderRequest,
    TextDelta,
    UsageReported,
)

pytestmark = [pytest.mark.real, pytest.mark.skipif(packaged_weights() is None, reason="no weights installed")]


def settings() -> ModelServerSettings:
    return ModelServerSettings(str(packaged_weights()), threads=1, parallel=2, context=2048)


@asynccontextmanager
async def local() -> AsyncIterator[Local]:
    """The provider, with its subtree under a supervisor of a node of its own."""
    async with Node.open(), httpx.AsyncClient() as client:
        await Supervisor.start_link([local_server.spec(settings())], name="house")
        yield Local(client, local_server.address)


def children() -> list[psutil.Process]:
    """The model servers that this process has started and that live."""
    return [child for child in psutil.Process().children() if _is_model_server(child)]


def _is_model_server(process: psutil.Process) -> bool:
    try:
        return "engine.providers.model_server_main" in process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


async def replaced(before: psutil.Process) -> None:
    """Waits until another model server has taken the place of `before`."""
    with trio.fail_after(20):
        while [child.pid for child in children()] in ([], [before.pid]):  # noqa: ASYNC110 - another OS process
            await trio.sleep(0.02)


def request(**input: Any) -> ProviderRequest:
    given = {**LOCAL.defaults, "temperature": 0, "prompt": "Say hello.", **input}
    return ProviderRequest(uuid4(), 1, uuid4(), "local", LOCAL.slug, "1", given)


async def run(provider: Local, **input: Any) -> list[ProviderEvent]:
    with trio.fail_after(60):
        async with aclosing(provider.run(request(**input))) as events:
            return [event async for event in events]


def text(events: list[ProviderEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def test_it_generates_token_by_token_with_progress_usage_and_an_end() -> None:
    async with local() as provider:
        events = await run(provider, max_tokens=12)
        tokens = [event for event in events if isinstance(event, TextDelta)]
        assert 2 <= len(tokens) <= 12
        assert text(events).strip()
        fractions = [event.fraction for event in events if isinstance(event, Progress)]
        assert fractions
        assert set(fractions) <= {count / 12 for count in range(1, 13)}
        used = [event.usage for event in events if isinstance(event, UsageReported)][-1]
        assert used.output_tokens is not None
        assert 0 < used.output_tokens <= 12
        assert isinstance(events[-1], Finished)
        assert events[-1].raw_status in ("stop", "length")
        chat = [{"role": "user", "content": "Say hello."}]
        assert isinstance((await run(provider, max_tokens=2, prompt=None, messages=chat))[-1], Finished)


def test_a_prompt_and_a_system_text_become_a_conversation_and_options_are_passed_on() -> None:
    made = body(request(system="Be brief.", max_tokens=5, seed=3, unknown="x"))
    assert made["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Say hello."},
    ]
    assert (made["max_tokens"], made["seed"], made["temperature"], made["stream"]) == (5, 3, 0, True)
    assert "unknown" not in made
    assert body(request(messages=[{"role": "user", "content": "x"}]))["messages"] == [{"role": "user", "content": "x"}]


async def test_a_prompt_that_is_too_long_is_the_users_affair() -> None:
    async with local() as provider:
        (failed,) = await run(provider, prompt="word " * 3000)
        assert isinstance(failed, Failed)
        assert (failed.kind, failed.code) == (FailureKind.INVALID_INPUT, "context_length")


async def test_closing_early_frees_the_models_slot() -> None:
    async with local() as provider:
        for _ in range(4):  # twice as many as there are slots, each of which would go on for long
            async with aclosing(provider.run(request(max_tokens=1500, prompt="Count to a thousand."))) as events:
                assert isinstance(await anext(events), TextDelta)
        with trio.fail_after(10):
            assert isinstance((await run(provider, max_tokens=2))[-1], Finished)


async def test_when_its_process_dies_the_attempt_may_be_tried_again_and_the_next_one_works() -> None:
    async with local() as provider:
        async with aclosing(provider.run(request(max_tokens=1500, prompt="Count to a thousand."))) as events:
            assert isinstance(await anext(events), TextDelta)
            (process,) = children()
            process.kill()
            with trio.fail_after(10):
                rest = [event async for event in events]
        assert isinstance(rest[-1], Failed)
        assert (rest[-1].kind, rest[-1].code) == (FailureKind.RETRYABLE, "model_server_restarted")
        assert rest[-1].retry_after == 1.0
        await replaced(process)
        assert isinstance((await run(provider, max_tokens=2))[-1], Finished)


async def test_a_request_waits_for_a_model_that_is_loading() -> None:
    async with Node.open(), httpx.AsyncClient() as client:
        starting = trio.Event()

        async def ask() -> None:
            starting.set()
            assert isinstance((await run(Local(client, local_server.address), max_tokens=2))[-1], Finished)

        await Supervisor.start_link([local_server.spec(settings())], name="house")
        async with trio.open_nursery() as nursery:  # the subtree is up at once, the model is not
            nursery.start_soon(ask)
            await starting.wait()


async def test_whoever_of_its_keepers_dies_there_is_one_model_server_again() -> None:
    async with local() as provider:
        await provider.address()
        for name in ("local model keeper", local_server.BOARD):
            (before,) = children()
            pid = whereis(name)
            assert pid is not None
            exit(pid, KILL)
            await replaced(before)
            assert isinstance((await run(provider, max_tokens=2))[-1], Finished)
    assert children() == []


async def test_nothing_is_left_behind_when_the_tree_ends_while_the_model_loads() -> None:
    async with Node.open():
        await Supervisor.start_link([local_server.spec(settings())], name="house")
        with trio.fail_after(10):
            while not children():  # noqa: ASYNC110 - another process
                await trio.sleep(0.005)
    assert children() == []


async def test_a_model_that_cannot_be_loaded_is_said_to_be_so() -> None:
    reason = await live_once(ModelServerSettings("/nowhere.gguf"), lambda address: pytest.fail(address))
    assert reason.startswith("it ended with status 1 before it was ready")


async def test_a_model_server_that_hangs_is_ended_and_a_secret_does_not_reach_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_server, "CHECK_EVERY", 0.1)
    monkeypatch.setattr(model_server, "CHECK_TIMEOUT", 0.5)
    monkeypatch.setenv("ELWIFT_OPENAI_API_KEY", "secret")
    ended: list[str] = []
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            up = trio.Event()

            async def live() -> None:
                ended.append(await live_once(settings(), lambda _: up.set()))

            nursery.start_soon(live)
            await up.wait()
            (child,) = children()
            assert "ELWIFT_OPENAI_API_KEY" not in child.environ()
            child.suspend()
    assert ended == ["it missed 3 health checks in a row"]
    assert not child.is_running()


PARENT = """
import sys, trio
from engine.providers.model_server import ModelServerSettings, live_once
async def main():
    def up(address):
        print(address, flush=True)
    await live_once(ModelServerSettings(sys.argv[1], threads=1), up)
trio.run(main)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_when_the_parent_dies_so_does_the_model_server(how: signal.Signals) -> None:
    root = str(Path(__file__).parents[3])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(packaged_weights())],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
        cwd=root,
    )
    try:
        assert parent.stdout is not None
        assert await trio.to_thread.run_sync(parent.stdout.readline)
        (child,) = psutil.Process(parent.pid).children()
        parent.send_signal(how)
        parent.wait(10)
        await trio.to_thread.run_sync(child.wait, 10)
    finally:
        parent.kill()
        parent.wait()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_the_model_server_itself_ends_on_a_signal(how: signal.Signals) -> None:
    ended: list[str] = []
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            up = trio.Event()

            async def live() -> None:
                ended.append(await live_once(settings(), lambda _: up.set()))

            nursery.start_soon(live)
            await up.wait()
            (child,) = children()
            child.send_signal(how)
    assert ended == ["it ended with status 0"]
