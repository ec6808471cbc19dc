"""The official client drives whole tasks of the real product: its database, its queue, its endpoint."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import trio

from engine.otp import KILL, exit
from tests.programs import need
from tests.real.clients.clients import Phoenix, node_modules, phoenix
from web.application import Application
from web.serve import running
from web.settings import Settings

pytestmark = pytest.mark.real


def settings(data_dir: Path) -> Settings:
    return Settings(port=0, data_dir=data_dir, local_model=False)


def socket_url(server: Application) -> str:
    return server.endpoint.urls[0].replace("http", "ws") + "/socket"


async def until(client: Phoenix, topic: str, last: str) -> list[tuple[str, dict[str, Any]]]:
    """The topic's events up to and with the first of this name."""
    events: list[tuple[str, dict[str, Any]]] = []
    while not events or events[-1][0] != last:
        told = await client.wait_for("event", topic=topic)
        events.append((told["event"], told["payload"]))
    return events


async def test_phoenix_js_creates_a_task_watches_it_to_its_end_and_cancels_another(data_dir: Path) -> None:
    async with running(settings(data_dir)) as server, phoenix("phoenix-1-8-16", socket_url(server)) as client:
        await client.do("connect")
        topic = f"task:{str(uuid4()).upper()}"  # as Swift writes them
        status, answer = await client.ask("join", topic=topic)
        assert (status, answer["task"]) == ("ok", None)
        wish = {"prompt": "hello", "model": "simulate", "input": {"steps": 5, "interval": 0.1, "text": True}}
        status, answer = await client.ask("push", topic=topic, event="llm_generate", payload=wish)
        assert (status, answer["durability"]) == ("ok", "durable")
        events = await until(client, topic, "task_completed")
        assert [payload["seq"] for _, payload in events if "seq" in payload] == [1, 2, 3, 4]
        progress = [payload["progress"] for name, payload in events if name == "progress"]
        assert progress == sorted(progress)
        text = "".join(payload["text"] for name, payload in events if name == "text_delta")
        assert text == next(payload["text"] for name, payload in events if name == "llm_response")
        await client.wait_for("channel_close", topic=topic)
        async with httpx.AsyncClient() as http:
            found = await http.get(f"{server.endpoint.urls[0]}/api/tasks/{answer['task_id']}")
        assert (found.json()["status"], found.json()["response"]) == ("completed", text)
        await cancel_another(client)


async def test_a_lost_connection_and_a_killed_task_server_cost_nothing(data_dir: Path) -> None:
    async with running(settings(data_dir)) as server, phoenix("phoenix-1-8-16", socket_url(server)) as client:
        await client.do("connect")
        await client.ask("join", topic="user:dev")
        wish = {"model": "simulate", "input": {"steps": 20, "interval": 0.1, "text": True}}
        _, answer = await client.ask("push", topic="user:dev", event="llm_generate", payload=wish)
        topic = answer["topic"]
        status, joined = await client.ask("join", topic=topic)
        assert (status, joined["task"]["status"]) in (("ok", "queued"), ("ok", "processing"))
        await until(client, topic, "text_delta")
        task_server = next(pid for key, pid, _ in server.runtime.names if str(key[1]) == answer["task_id"])
        exit(task_server, KILL)
        await until(client, topic, "text_delta")
        for member in server.endpoint.roster:
            member.abort()
        rejoined = (await client.wait_for("reply", status="ok"))["response"]
        while "task" not in rejoined:
            rejoined = (await client.wait_for("reply", status="ok"))["response"]
        text = rejoined["task"]["response"]
        for name, payload in await until(client, topic, "task_completed"):
            if name == "text_delta":
                assert payload["offset"] == len(text)
                text += payload["text"]
            if name == "llm_response":
                assert payload["text"] == text
        updates = await until(client, "user:dev", "task_updated")
        assert updates[-1][1]["task_id"] == answer["task_id"]


async def test_the_documented_example_runs(data_dir: Path) -> None:
    """docs/javascript.md, with the URL of this server, a quick model, and `ws` as its transport, as it says."""
    page = (Path(__file__).parents[3] / "docs" / "javascript.md").read_text()
    example = page.split("```javascript\n")[1].split("```")[0]
    async with running(settings(data_dir)) as server:
        for before, after in {
            'from "phoenix"': 'from "phoenix-1-8-16"\nimport WebSocket from "ws"\nconst currentToken = () => ""',
            "wss://elwift.example/socket": socket_url(server),
            "// transport": "transport",
            'prompt: "Why is the sky blue?"': 'model: "simulate", input: { steps: 3, interval: 0.05, text: true }',
        }.items():
            assert before in example
            example = example.replace(before, after)
        script = node_modules() / f"example-{uuid4()}.mjs"
        script.write_text(example)
        try:
            with trio.fail_after(30):
                lines = await lines_until([need("node"), str(script)], "done: true")
        finally:
            script.unlink()
    assert "accepted, durable" in lines
    assert any("Every task is" in line for line in lines)


async def lines_until(command: list[str], last: str) -> list[str]:
    """What a program prints, up to the first line with these words in it; then it is ended."""
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    printed = b""
    try:
        async for chunk in process.stdout:
            printed += chunk
            if last.encode() in printed:
                break
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
    return printed.decode().splitlines()


async def cancel_another(client: Phoenix) -> None:
    topic = f"task:{uuid4()}"
    await client.ask("join", topic=topic)
    wish = {"model": "simulate", "input": {"steps": 1000, "interval": 0.1}}
    await client.ask("push", topic=topic, event="llm_generate", payload=wish)
    await until(client, topic, "progress")
    assert await client.ask("push", topic=topic, event="cancel", payload={}) == (
        "ok",
        {"status": "cancelled", "durability": "durable"},
    )
    await until(client, topic, "task_cancelled")
    await client.wait_for("channel_close", topic=topic)
