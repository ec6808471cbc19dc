"""Scenarios nobody thought of: random trees and steps in the language of scenarios.py, the same for the same seed."""

from __future__ import annotations

import random
from typing import Any

from .scenarios import Data, Scenario, Step, tree, worker


def random_scenario(seed: int) -> Scenario:
    """A tree of up to three levels, then some of what may happen to its workers and be asked of its supervisors."""
    dice = random.Random(seed)
    top = _tree(dice, "sup", depth=2)
    workers, supervisors = _ids(top)
    steps: list[Step] = [["start", top]]
    for _ in range(dice.randint(1, 8)):
        steps.append(_step(dice, workers, supervisors))
    steps.append(["count", "sup"] if dice.random() < 0.5 else ["which", "sup"])
    if dice.random() < 0.7:
        steps.append(["exit", "sup", "shutdown"])
    return Scenario(f"random {seed}", steps)


def _tree(dice: random.Random, id: str, depth: int) -> Data:
    prefix = "" if id == "sup" else id
    children = [_child(dice, f"{prefix}{letter}", depth) for letter in "abcd"[: dice.randint(1, 4)]]
    strategy = dice.choice(["one_for_one", "one_for_all", "rest_for_one"])
    options: dict[str, Any] = {"strategy": strategy, "intensity": dice.choice([0, 1, 2, 3, 5])}
    if depth < 2:
        options["restart"] = dice.choice(["permanent", "transient", "temporary"])
    return tree(*children, id=id, **options)


def _child(dice: random.Random, id: str, depth: int) -> Data:
    if depth and dice.random() < 0.25:
        return _tree(dice, id, depth - 1)
    options: dict[str, Any] = {
        "trap": True,
        "restart": dice.choice(["permanent", "permanent", "transient", "temporary"]),
    }
    if dice.random() < 0.2:
        options["shutdown"] = "brutal_kill"
    if dice.random() < 0.3:
        options["inits"] = ["ok", *dice.choices(["ok", "crash", "stop", "ignore"], [4, 1, 1, 1], k=3)]
    if dice.random() < 0.1:
        options["stop_crash"] = True
    return worker(id, **options)


def _ids(branch: Data) -> tuple[list[str], list[str]]:
    workers: list[str] = []
    supervisors = [str(branch["id"])]
    for child in branch["children"]:
        if "children" in child:
            below = _ids(child)
            workers += below[0]
            supervisors += below[1]
        else:
            workers.append(str(child["id"]))
    return workers, supervisors


def _step(dice: random.Random, workers: list[str], supervisors: list[str]) -> Step:
    """Of supervisors only the top one is asked things, and only if it lives: see play.py and interpreter.exs."""
    victim = dice.choice(workers or ["sup"])
    if not workers:
        return ["which", "sup"]
    return dice.choice(
        [
            ["cast", victim, "crash"],
            ["cast", victim, "crash"],
            ["cast", victim, "stop", dice.choice(["normal", "shutdown", "shutdown:over", "boom"])],
            ["exit", victim, "kill"],
            ["terminate_child", "sup", dice.choice([*workers, *supervisors])],
            ["restart_child", "sup", dice.choice([*workers, *supervisors])],
            ["delete_child", "sup", victim],
            ["start_child", "sup", worker("z", trap=True, restart=dice.choice(["permanent", "temporary"]))],
            ["which", "sup"],
            ["count", "sup"],
        ]
    )
