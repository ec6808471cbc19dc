"""What the overview makes of figures. Pure."""

from __future__ import annotations

from web.operators.doors import Doors
from web.operators.overview import rested
from web.operators.tree import read_pid, spoken


def route(provider: str, model: str, rests: float) -> dict[str, object]:
    return {"provider": provider, "model": model, "rests_for_seconds": rests}


def test_a_provider_rests_when_all_its_routes_do() -> None:
    providers = [{"name": name, "state": "ready"} for name in ("a", "b", "c")]
    routes = [route("a", "x", 5.0), route("b", "x", 5.0), route("b", "y", 0.0)]
    assert [known["state"] for known in rested(providers, routes)] == ["resting", "ready", "ready"]


def test_a_pid_is_read_as_it_is_shown() -> None:
    assert [read_pid(text) for text in ("<0.42>", "0.42", "42")] == [42, 42, 42]
    assert [read_pid(text) for text in ("", "<0.x>", "1.2", "-1", "4" * 30)] == [None] * 5


def test_names_are_spoken() -> None:
    assert (spoken(("task", 7)), spoken("names")) == ("task:7", "names")


def test_the_doors_tell_connections_and_faults_as_they_are_counted() -> None:
    counted = {"bad_request": 2}
    doors = Doors(lambda: 7, counted)
    counted["slow_body"] = 1
    assert doors.view() == {"connections": 7, "faults": {"bad_request": 2, "slow_body": 1}}
    values = {tuple(sample.labels.values()): sample.value for metric in doors.metrics() for sample in metric.samples}
    assert values == {(): 7, ("bad_request",): 2, ("slow_body",): 1}
