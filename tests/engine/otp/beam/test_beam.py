"""Our engine against a real BEAM: the same scenarios, the same events.

Besides those written down, ELWIFT_RANDOM_SCENARIOS random ones (60, always the same). Both have to tell the same in
every step; only notices to several processes may come in another order.
"""

from __future__ import annotations

import os

import pytest

from tests.programs import need

from .play import play
from .random_scenarios import random_scenario
from .real_beam import Events, play_on_beam
from .scenarios import SCENARIOS, Scenario

RANDOM = int(os.environ.get("ELWIFT_RANDOM_SCENARIOS", "60"))
ALL = [*SCENARIOS, *map(random_scenario, range(RANDOM))]


@pytest.fixture(scope="module")
def beam(tmp_path_factory: pytest.TempPathFactory) -> Events:
    """What the BEAM did in every scenario; one start for all."""
    return play_on_beam(need("elixir"), ALL, tmp_path_factory.mktemp("beam"))


NOTICES = ("down ", "exit ")


def told(events: list[str], unordered: bool) -> list[str]:
    """A step's events for comparison. Notices to several processes have no order among each other."""
    if unordered:
        return sorted(events)
    return [e for e in events if not e.startswith(NOTICES)] + sorted(e for e in events if e.startswith(NOTICES))


@pytest.mark.parametrize("scenario", ALL, ids=lambda scenario: scenario.name.replace(" ", "_"))
def test_both_tell_the_same_story(scenario: Scenario, beam: Events) -> None:
    ours = play(scenario)
    for step, expected, events in zip(scenario.steps, beam[scenario.name], ours, strict=True):
        assert told(events, scenario.unordered) == told(expected, scenario.unordered), step
