"""Runs the scenarios on a real BEAM: one start for all of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from .scenarios import Scenario

Events = dict[str, list[list[str]]]
_INTERPRETER = Path(__file__).with_name("interpreter.exs")
_AT_MOST = 120.0


def elixir_term(value: object) -> str:
    """A value of the scenarios' language as Elixir source."""
    match value:
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case str():
            return json.dumps(value)
        case Mapping():
            return "%{" + ", ".join(f"{key}: {elixir_term(item)}" for key, item in value.items()) + "}"
        case Sequence():
            return "[" + ", ".join(map(elixir_term, value)) + "]"
        case _:
            raise TypeError(f"no Elixir for {value!r}")


def play_on_beam(elixir: str, scenarios: Sequence[Scenario], folder: Path) -> Events:
    """For each scenario's name, its events step by step."""
    source = folder / "scenarios.term"
    source.write_text(elixir_term([{"name": scenario.name, "steps": scenario.steps} for scenario in scenarios]))
    done = subprocess.run(
        [elixir, str(_INTERPRETER), str(source)], capture_output=True, text=True, timeout=_AT_MOST, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"the BEAM ended with {done.returncode}: {done.stderr[-4000:]}")
    events: Events = {scenario.name: [[] for _ in scenario.steps] for scenario in scenarios}
    for line in done.stdout.splitlines():
        name, step, event = line.split("\t")
        events[name][int(step)].append(event)
    return events
