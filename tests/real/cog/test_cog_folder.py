"""A Cog model in a folder, named in the settings: served, brought back when it dies, and gone with the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psutil
import pytest
import trio

from engine.errors import UserError
from engine.providers.cog_server import cog_folder, live_once
from scripts.http_client import HttpClient, http_client
from scripts.server import launch
from tests.real.cog.servers import MODELS, cog_python

pytestmark = pytest.mark.real
ROW = {"name": "teller", "provider": "cog", "slug": "mine", "version": "1", "category": "text"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder as its author leaves it."""
    environment = cog_python().parents[1]
    (tmp_path / ".venv").symlink_to(environment)
    (tmp_path / "teller.py").write_text((MODELS / "teller.py").read_text())
    (tmp_path / "cog.yaml").write_text('build:\n  python_version: "3.11"\npredict: "teller.py:Predictor"\n')
    return tmp_path


def cog_servers(folder: Path) -> list[psutil.Process]:
    """The model's processes, by the folder they run in."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue  # it ended meanwhile, or is none of ours
    return found


async def finished(http: HttpClient, **input: Any) -> dict[str, Any]:
    """A new task of the model, once it is over."""
    status, made = await http.post("/api/tasks", {"prompt": "hi", "model": "teller", "input": input})
    assert status == 202, made
    task_id = UUID(made["task_id"])
    with trio.fail_after(60):
        while True:
            _, task = await http.get(f"/api/tasks/{task_id}")
            if task["status"] in ("completed", "failed"):
                return dict(task)
            await trio.sleep(0.05)


async def test_a_model_in_a_folder_is_served_and_comes_back_and_ends_with_a_killed_server(
    data_dir: Path, folder: Path
) -> None:
    environment = {"ELWIFT_LOCAL_MODEL": "false", "ELWIFT_COG_FOLDERS": f"mine={folder}"}
    async with trio.open_nursery() as nursery:
        server = await launch(nursery, data_dir, environment=environment)
        async with http_client(server.url, 1) as http:
            status, answer = await http.post("/api/models", ROW)
            assert status == 201, answer
            task = await finished(http)
            assert (task["status"], task["response"], task["attempt"] >= 1) == ("completed", "word1 word2 word3 ", True)

            before = cog_servers(folder)
            assert before
            for process in before:
                if "cog.server.http" in process.cmdline() and process.ppid() != server.process.pid:
                    process.kill()
            task = await finished(http)
            assert task["status"] == "completed", task
            assert not {process.pid for process in before} & {process.pid for process in cog_servers(folder)}
        left = cog_servers(folder)
        await server.kill()
        _, alive = await trio.to_thread.run_sync(psutil.wait_procs, left, 15)
        assert not alive


def test_a_folder_without_a_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cog\.yaml"):
        cog_folder("mine", tmp_path)
    (tmp_path / "cog.yaml").write_text("build: {}\n")
    with pytest.raises(UserError, match="predict"):
        cog_folder("mine", tmp_path)


async def test_a_server_whose_model_crashed_is_ended_to_be_started_again(folder: Path) -> None:
    model = cog_folder("mine", folder)
    async with httpx.AsyncClient(base_url=model.url, trust_env=False) as http, trio.open_nursery() as nursery:
        reasons: list[str] = []

        async def live() -> None:
            reasons.append(await live_once(model, check_every=0.1))
            nursery.cancel_scope.cancel()

        nursery.start_soon(live)
        with trio.move_on_after(60) as patience:
            while await health(http) != "READY":  # noqa: ASYNC110 - the server has no way to tell
                await trio.sleep(0.05)
            await http.post("/predictions", json={"input": {"prompt": "crash"}})
            await trio.sleep_forever()
    assert not patience.cancelled_caught
    (reason,) = reasons
    assert reason.startswith(("it is DEFUNCT", "it is UNHEALTHY", "it ended"))
    assert not cog_servers(folder)


async def health(http: httpx.AsyncClient) -> str:
    try:
        return str((await http.get("/health-check")).json()["status"])
    except httpx.TransportError:
        return "UNREACHABLE"
