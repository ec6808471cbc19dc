"""The tutorial's examples run as they stand, one after another, each `main` in a node of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.otp import Node
from tests.engine.otp.servers import settle

TUTORIAL = Path(__file__).parents[3] / "docs" / "engine.md"


def examples() -> Iterator[Any]:
    text = TUTORIAL.read_text()
    for number, match in enumerate(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL), 1):
        heading = re.findall(r"^## (.*)$", text[: match.start()], re.MULTILINE)[-1]
        line = text[: match.start(1)].count("\n")
        yield pytest.param(number, match.group(1), line, id=f"{number} {heading}")


def names_before(number: int) -> dict[str, Any]:
    """What the examples before this one have defined."""
    names: dict[str, Any] = {"settle": settle, "__name__": "tutorial"}
    for example in examples():
        earlier, code, line = example.values
        if earlier < number:
            exec(compile("\n" * line + code, str(TUTORIAL), "exec"), names)
    return names


@pytest.mark.parametrize(("number", "code", "line"), list(examples()))
async def test_an_example_of_the_tutorial_runs(number: int, code: str, line: int) -> None:
    reports: list[object] = []
    names = names_before(number)
    names.pop("main", None)
    exec(compile("\n" * line + code, str(TUTORIAL), "exec"), names)
    async with Node.open(report=reports.append):
        await names["main"]()
        await settle()
    crashes = [report for report in reports if type(report).__name__ == "CrashReport" and "nonsense" not in str(report)]
    assert crashes == []


def test_there_are_examples() -> None:
    assert len(list(examples())) >= 8
