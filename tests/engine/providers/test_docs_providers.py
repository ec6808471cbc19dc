"""The guide's example, installed as a package is, in a whole server, against a service that speaks as it says."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import tempfile
import tomllib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import trio
from structlog.testing import capture_logs

from engine.providers import plugins
from engine.providers.protocol import Finished, Provider, ProviderEvent, ProviderRequest
from engine.tasks import lookup
from engine.tasks.state import Status, TaskState
from scripts.http_client import http_client
from tests.engine.providers import raw_http
from tests.engine.providers.raw_http import Reply, Request
from web.serve import running
from web.settings import Settings

GUIDE = (Path(__file__).parents[3] / "docs" / "providers.md").read_text()
KEY = "a key of Acme's"


def block(language: str) -> str:
    """The guide's one block of code in a language."""
    (code,) = re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)
    return str(code)


def install(folder: Path, module: str, code: str, points: dict[str, str]) -> None:
    """Puts a module and its entry points where an installer would."""
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    lines = [f"[{plugins.GROUP}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages, empty at first."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", "") and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def guide(site: Path) -> Path:
    """The guide's package, installed."""
    points = tomllib.loads(block("toml"))["project"]["entry-points"][plugins.GROUP]
    install(site, "acme_elwift", block("python"), points)
    return site


class Acme:
    """The service of the guide: `answers` are met in turn, the last one again and again."""

    def __init__(self, *answers: tuple[int, list[dict[str, Any]]]) -> None:
        self.answers = list(answers)
        self.requests: list[Request] = []

    async def handle(self, request: Request, reply: Reply) -> None:
        self.requests.append(request)
        status, said = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        await reply.begin(status, {"retry-after": "0"})
        for each in said:
            await reply.piece(json.dumps(each).encode() + b"\n")
        await reply.end()


POEM: tuple[int, list[dict[str, Any]]] = (200, [{"text": "a "}, {"text": "poem"}, {"tokens": 2}])


@asynccontextmanager
async def task_of(acme: Acme, monkeypatch: pytest.MonkeyPatch, **given: str) -> AsyncIterator[TaskState]:
    """A task of the guide's model, once it is over, on a server that has the guide's provider."""
    with tempfile.TemporaryDirectory(prefix="elwift-plugin-") as folder:
        os.chmod(folder, 0o755)
        async with raw_http.serving(acme.handle) as (url, _):
            monkeypatch.setenv("ELWIFT_PROVIDER_ACME_URL", url)
            monkeypatch.setenv("ELWIFT_PROVIDER_ACME_API_KEY", KEY)
            settings = Settings(port=0, data_dir=Path(folder) / "data", local_model=False, preempt_budget=0)
            async with running(settings) as application, http_client(application.endpoint.urls[0], 1) as http:
                status, row = await http.post("/api/models", json.loads(block("json")))
                assert status == 201, row
                status, made = await http.post("/api/tasks", {"model": row["name"], **given})
                assert status == 202, made
                with trio.fail_after(30):
                    while True:
                        task = await lookup.find(application.runtime, UUID(made["task_id"]))
                        assert task is not None
                        if task.status.terminal:
                            break
                        await trio.sleep(0.02)
                yield task


async def test_the_guides_provider_answers_a_task(guide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acme = Acme(POEM)
    async with task_of(acme, monkeypatch, prompt="A poem") as task:
        assert (task.status, task.text, task.attempt) == (Status.COMPLETED, "a poem", 1)
        assert task.usage is not None
        assert task.usage.output_tokens == 2
    (asked,) = acme.requests
    assert json.loads(asked.body) == {"model": "poet-2", "input": {"prompt": "A poem"}}
    assert asked.headers["authorization"] == f"Bearer {KEY}"


async def test_what_the_guides_provider_refuses_fails_in_its_words(
    guide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acme = Acme((422, []))
    async with task_of(acme, monkeypatch, prompt="A poem") as task:
        assert task.status is Status.FAILED
        assert task.error is not None
        assert (task.error.code, task.error.action) == ("invalid_request", "Change the input.")
    assert len(acme.requests) == 1


def load(environment: dict[str, str], *taken: str) -> tuple[dict[str, list[Provider]], list[str]]:
    """The providers that are found, and why others are not."""
    with capture_logs() as said:
        found = plugins.providers(plugins.installed(), environment, httpx.AsyncClient(), taken)
    return found, [entry["why"] for entry in said if entry["event"] == "provider not loaded"]


def test_a_factory_without_its_settings_is_not_wanted(guide: Path) -> None:
    assert load({}) == ({}, [])


def test_a_provider_sees_its_own_settings_alone() -> None:
    environment = {"ELWIFT_PROVIDER_MY_AI_KEY": "1", "ELWIFT_PROVIDER_ACME_KEY": "2", "ELWIFT_OPENAI_API_KEY": "3"}
    assert plugins.settings_of("my-ai", environment) == {"key": "1"}


BROKEN = """
class Silent:
    name = "silent"

def raises(settings, http):
    raise RuntimeError("no")

def silent(settings, http):
    return Silent()
"""


def test_broken_packages_are_said_and_keep_no_other_out(guide: Path) -> None:
    points = {"absent": "nowhere:made", "raises": "broken:raises", "silent": "broken:silent", "other": "broken:silent"}
    install(guide, "broken", BROKEN, points)
    found, why = load({"ELWIFT_PROVIDER_ACME_API_KEY": KEY})
    assert list(found) == ["acme"]
    assert sorted(why) == [
        "No module named 'nowhere'",
        "its `name` is not 'other'",
        "its `run` is not an async generator",
        "no",
    ]


def test_nobody_takes_the_name_of_a_provider_that_is_there(guide: Path) -> None:
    assert load({"ELWIFT_PROVIDER_ACME_API_KEY": KEY}, "acme") == ({}, ["there is another provider 'acme'"])


def test_several_credentials_are_several_providers() -> None:
    point = EntryPoint("acme", "tests.engine.providers.test_docs_providers:two", plugins.GROUP)
    assert len(plugins.providers([point], {}, httpx.AsyncClient(), ())["acme"]) == 2


class Empty:
    name = "acme"

    async def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        yield Finished()


def two(settings: object, http: object) -> list[Empty]:
    return [Empty(), Empty()]
