"""The README's examples, taken from its text and run against a server."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
import trio

from scripts.server import ROOT, ServerProcess, serving
from tests.held import held
from tests.programs import need
from tests.real.clients.clients import node_modules
from tests.real.conftest import data_dir_for_module as data_dir_for_module

README = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    """The first block of the README in this language."""
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found
    return found[1]


@pytest.fixture(scope="module")
def server(data_dir_for_module: Path) -> Iterator[ServerProcess]:
    with held(lambda: serving(data_dir_for_module)) as server:
        yield server


async def run(*command: str, **environment: str) -> str:
    whole = {**os.environ, **environment}
    with trio.fail_after(120):
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, env=whole)
    return done.stdout.decode()


async def test_the_curl_example_answers_as_the_readme_shows(server: ServerProcess) -> None:
    need("curl")
    said = await run("sh", "-c", block("sh").replace("http://localhost:4000", server.url))
    answer, shown = json.loads(said), json.loads(block("json"))
    assert answer.keys() == shown.keys()
    assert answer["topic"] == f"task:{UUID(answer['task_id'])}"
    assert answer["durability"] == shown["durability"]


async def test_the_javascript_example_watches_a_task_to_its_end(server: ServerProcess) -> None:
    node, folder = need("node"), node_modules()
    script = folder / "readme.mjs"
    script.write_text(block("js").replace('from "phoenix"', 'from "phoenix-1-8-16"'))
    said = await run(node, str(script), "Why is the sky blue?", ELWIFT_URL=server.url)
    assert "output_tokens" in said
    assert len(said) > 40


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_every_file_that_the_readme_names_is_there(link: str) -> None:
    assert "://" in link or (ROOT / link).exists()
