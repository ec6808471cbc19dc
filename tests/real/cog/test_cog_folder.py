"""A Cog model in a folder, named in the settings: served, brought back when it dies, and gone with the server."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psutil
import pytest
import trio
from attrs import define, evolve, field

from engine.errors import UserError
from engine.otp.child_spec import Backoff
from engine.providers import cog_server, cog_server_main
from engine.providers.cog import Cog
from engine.providers.cog_server import CogFolder, cog_folder, live_once, lives
from engine.providers.protocol import Failed, FailureKind
from scripts.http_client import HttpClient, http_client
from tests.real.cog.servers import MODELS, cog_python, events_of, launcher, request

pytestmark = pytest.mark.real
STUCK = """
import http.server, os
class Starting(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status": "STARTING"}')
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Starting).serve_forever()
"""
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
    async with launcher(data_dir, **environment) as start:
        server = await start()
        async with http_client(server.url, 1) as http:
            status, answer = await http.post("/api/models", ROW)
            assert status == 201, answer
            task = await finished(http)
            assert (task["status"], task["response"], task["attempt"] >= 1) == ("completed", "word1 word2 word3 ", True)

            before = cog_servers(folder)
            assert before
            keeper = min(before, key=lambda process: process.create_time())
            next(process for process in before if process.ppid() == keeper.pid).kill()
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


@pytest.mark.parametrize(
    ("described", "predictor", "slots"),
    [
        ('predict: "predict.py:Predictor"\n', "predict.py:Predictor", 1),
        ("build:\n  run:\n    - pip\nrun: run.py:Runner  # the newer word\n", "run.py:Runner", 1),
        ("predict: p.py:P\nconcurrency:\n  # as many\n  max: 4\n", "p.py:P", 4),
        ("concurrency:\n  default_target: 2\n  max: 8\npredict: 'p.py:P'", "p.py:P", 8),
    ],
)
def test_a_folder_says_what_predicts_and_how_many_at_once(
    tmp_path: Path, described: str, predictor: str, slots: int
) -> None:
    (tmp_path / "cog.yaml").write_text(described)
    model = cog_folder("mine", tmp_path)
    assert (model.predictor, model.slots, model.server.slots) == (predictor, slots, slots)


async def test_a_server_whose_model_crashed_is_ended_to_be_started_again(folder: Path) -> None:
    model = cog_folder("mine", folder)
    async with living(model) as life:
        await life.ready()
        assert model.life.vain == 0
        await life.http.post("/predictions", json={"input": {"prompt": "crash"}})
        reason = await life.end()
    assert reason.startswith(("it is DEFUNCT", "it is UNHEALTHY", "it ended"))
    assert not cog_servers(folder)


async def test_when_its_keeper_is_killed_outright_nothing_of_the_server_is_left(folder: Path) -> None:
    """The keeper stands between us and the server; without it nobody would end the server with us."""
    async with living(cog_folder("mine", folder)) as life:
        await life.ready()
        keeper = min(cog_servers(folder), key=lambda process: process.create_time())
        assert cog_server_main.__file__ in keeper.cmdline()
        keeper.kill()
        assert await life.end() == "it ended"
    assert not cog_servers(folder)


@pytest.mark.parametrize(
    ("setup", "reason"), [("time.sleep(1000)", "it is SETUP_FAILED"), ("raise ValueError('no weights')", "no weights")]
)
async def test_a_setup_that_hangs_or_fails_ends_the_server_and_is_said(folder: Path, setup: str, reason: str) -> None:
    teller = (folder / "teller.py").read_text()
    body = f"class Predictor(BasePredictor):\n    def setup(self) -> None:\n        {setup}\n"
    (folder / "teller.py").write_text(teller.replace("class Predictor(BasePredictor):\n", body))
    model = cog_folder("mine", folder, setup_timeout=1.0)
    async with living(model) as life:
        assert reason in await life.end()
    assert not cog_servers(folder)


async def test_a_model_that_never_gets_ready_is_no_reason_to_wait_for_ever(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cog_server, "BACKOFF", Backoff(initial=0.0, maximum=0.0))
    (folder / "teller.py").write_text("raise ImportError('no such library')\n")
    model = cog_folder("mine", folder)
    seen = set()
    async with httpx.AsyncClient(trust_env=False) as http, trio.open_nursery() as nursery:
        provider = Cog(http, [model.server], lambda _: "http://127.0.0.1/")
        nursery.start_soon(lives, model, 0.1)
        with trio.fail_after(60):
            while not model.life.hopeless or (FailureKind.RETRYABLE, "provider_unhealthy") not in seen:
                (failure,) = await events_of(provider, request("mine"))
                assert isinstance(failure, Failed)
                seen.add((failure.kind, failure.code))
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    assert seen <= {
        (FailureKind.UNAVAILABLE, "provider_starting"),
        (FailureKind.RETRYABLE, "provider_unhealthy"),
        (FailureKind.RETRYABLE, "provider_unreachable"),
    }


async def test_a_server_that_never_gets_ready_is_given_up_at_its_deadline(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As earlier Cog did that could not start its worker: it said STARTING and nothing else."""
    monkeypatch.setattr(cog_server, "SETUP_GRACE", 0.5)
    stuck = folder / "stuck"
    stuck.write_text(f"#!{sys.executable}\n{STUCK}")
    stuck.chmod(0o755)
    model = evolve(cog_folder("mine", folder, setup_timeout=0.5), python=str(stuck))
    async with living(model) as life:
        reason = await life.end()
    assert reason.startswith("it was not ready within")
    assert not cog_servers(folder)


async def test_two_users_run_cog_on_one_machine(folder: Path, tmp_path: Path) -> None:
    """Cog's one place for files is hidden behind a folder of our own when another user has it."""
    place = tmp_path / "place"
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(cog_server_main.__file__).parent)!r})\n"
        "import cog_server_main as main\n"
        f"main.PLACE = Path({str(place)!r})\n"
        "main.usable = lambda: (main.PLACE / 'predictions' / 'of-us').exists()\n"
        "main.settle()\n"
        "made = main.PLACE / 'made'\n"
        "made.touch()\n"
        "print(made.exists(), os.geteuid())\n"
    )
    answer = await trio.run_process(
        [sys.executable, "-c", program], capture_stdout=True, capture_stderr=True, check=False
    )
    if b"not allowed here" in answer.stderr:
        pytest.skip("this machine does not let its users hide folders")
    assert answer.stdout.decode().split() == ["True", str(os.geteuid())], answer.stderr
    assert (place / "predictions").stat().st_mode & 0o7777 == 0o1777
    assert not (place / "made").exists()


@define
class Living:
    """One life of a server, in the background of a test."""

    http: httpx.AsyncClient
    reason: str = ""
    ended: trio.Event = field(factory=trio.Event)

    async def live(self, model: CogFolder) -> None:
        self.reason = await live_once(model, check_every=0.1)
        self.ended.set()

    async def ready(self) -> None:
        with trio.fail_after(30):
            while await health(self.http) != "READY":  # noqa: ASYNC110 - the server has no way to tell
                await trio.sleep(0.05)

    async def end(self) -> str:
        with trio.fail_after(30):
            await self.ended.wait()
        return self.reason


@asynccontextmanager
async def living(model: CogFolder) -> AsyncIterator[Living]:
    async with httpx.AsyncClient(base_url=model.url, trust_env=False) as http, trio.open_nursery() as nursery:
        life = Living(http)
        nursery.start_soon(life.live, model)
        yield life
        nursery.cancel_scope.cancel()


async def health(http: httpx.AsyncClient) -> str:
    try:
        return str((await http.get("/health-check")).json()["status"])
    except httpx.TransportError:
        return "UNREACHABLE"
