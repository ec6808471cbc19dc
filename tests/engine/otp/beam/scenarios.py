"""The scenarios played on a real BEAM and on our engine: trees and steps as plain data, with no opinion on the outcome.

What may stand in a worker, a tree and a step is in interpreter.exs and play.py, which do the same things. Workers and
supervisors log what happens to them (`init a`, `terminate b shutdown`, `exit c from a killed`); after each step both
sides wait for quiet, and the step's events are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

Data = Mapping[str, Any]
Step = list[Any]


@frozen
class Scenario:
    """`unordered`: several processes act at once, so the order of a step's events is nobody's promise."""

    name: str
    steps: list[Step]
    unordered: bool = False


def worker(id: str, **options: Any) -> Data:
    return {"id": id, **options}


def tree(*children: Data, id: str = "sup", **options: Any) -> Data:
    return {"id": id, "children": list(children), **options}


def dynamic(id: str = "dyn", **options: Any) -> Data:
    return {"id": id, "children": [], "dynamic": True, **options}


def trapping(*ids: str, **options: Any) -> list[Data]:
    return [worker(id, trap=True, **options) for id in ids]


CRASH = ["crash"]

STRATEGIES = [
    Scenario(
        f"{strategy} when {victim} {verb[0]}s",
        [
            ["start", tree(*trapping("a", "b", "c", "d"), strategy=strategy)],
            ["cast", victim, *verb],
            ["which", "sup"],
            ["exit", "sup", "shutdown"],
        ],
    )
    for strategy in ("one_for_one", "one_for_all", "rest_for_one")
    for victim, verb in (("a", CRASH), ("b", ["stop", "normal"]), ("d", CRASH))
]

RESTART_TYPES = [
    Scenario(
        f"a {restart} child that ends {reason}",
        [
            ["start", tree(worker("a"), worker("b", restart=restart), worker("c"))],
            ["cast", "b", "stop", reason],
            ["which", "sup"],
            ["count", "sup"],
            ["start_child", "sup", worker("b", restart=restart)],
            ["exit", "sup", "shutdown"],
        ],
    )
    for restart in ("permanent", "transient", "temporary")
    for reason in ("normal", "shutdown", "shutdown:over", "boom")
]

GROUPS = [
    Scenario(
        "a temporary sibling is not started again by a group restart",
        [
            [
                "start",
                tree(
                    *trapping("a"), worker("t", restart="temporary", trap=True), *trapping("c"), strategy="one_for_all"
                ),
            ],
            ["cast", "a", "crash"],
            ["which", "sup"],
            ["count", "sup"],
        ],
    ),
    Scenario(
        "a transient sibling is started again by a group restart",
        [
            ["start", tree(*trapping("a"), worker("t", restart="transient", trap=True), strategy="one_for_all")],
            ["cast", "a", "crash"],
            ["which", "sup"],
        ],
    ),
    Scenario(
        "all of a group die at once and that is one restart",
        [
            ["start", tree(worker("a"), worker("b"), worker("c"), strategy="one_for_all", intensity=1)],
            ["exit_all", ["a", "b", "c"], "kill"],
            ["which", "sup"],
            ["cast", "a", "crash"],
        ],
    ),
    Scenario(
        "a group whose second cannot start again at first",
        [
            [
                "start",
                tree(
                    worker("a", trap=True),
                    worker("b", inits=["ok", "crash"], trap=True),
                    worker("c", trap=True),
                    strategy="one_for_all",
                ),
            ],
            ["cast", "c", "crash"],
            ["which", "sup"],
            ["cast", "a", "crash"],
        ],
    ),
    Scenario(
        "the rest of a group whose second cannot start again at first",
        [
            [
                "start",
                tree(
                    worker("a", trap=True),
                    worker("b", inits=["ok", "stop"], trap=True),
                    worker("c", trap=True),
                    strategy="rest_for_one",
                ),
            ],
            ["cast", "b", "crash"],
            ["which", "sup"],
        ],
    ),
    Scenario(
        "a group with a sibling that is killed at shutdown",
        [
            [
                "start",
                tree(
                    worker("a", trap=True),
                    worker("b", trap=True, shutdown="brutal_kill"),
                    worker("c", trap=True, shutdown=30, stop_ms=5000),
                    strategy="one_for_all",
                ),
            ],
            ["cast", "a", "crash"],
            ["which", "sup"],
        ],
    ),
]

INTENSITY = [
    Scenario(
        f"intensity {allowed}",
        [
            ["start", tree(worker("a", trap=True), worker("b", trap=True), intensity=allowed)],
            *[["cast", "a" if n % 2 else "b", "crash"] for n in range(allowed + 1)],
        ],
    )
    for allowed in (0, 1, 3)
]
INTENSITY += [
    Scenario(
        "a restart that fails is tried again until it works",
        [
            ["start", tree(worker("a", inits=["ok", "crash", "stop", "ok"]), worker("b"))],
            ["cast", "a", "crash"],
            ["which", "sup"],
        ],
    ),
    Scenario(
        "a restart that never works uses the intensity up",
        [["start", tree(worker("a", inits=["ok", *["crash"] * 9]), worker("b", trap=True))], ["cast", "a", "crash"]],
    ),
    Scenario(
        "a restart that says ignore leaves the child empty",
        [
            ["start", tree(worker("a", inits=["ok", "ignore"]), worker("b"))],
            ["cast", "a", "crash"],
            ["which", "sup"],
            ["restart_child", "sup", "a"],
        ],
    ),
    Scenario(
        "children ended and started by hand do not count",
        [
            ["start", tree(worker("a", trap=True), intensity=1)],
            *[["terminate_child", "sup", "a"], ["restart_child", "sup", "a"]] * 3,
            ["cast", "a", "crash"],
            ["which", "sup"],
        ],
    ),
    Scenario(
        "an inner supervisor that gives up is restarted by the outer",
        [
            [
                "start",
                tree(
                    worker("x"),
                    tree(worker("a", trap=True), worker("b", trap=True), id="inner", intensity=1),
                    intensity=1,
                ),
            ],
            ["cast", "a", "crash"],
            ["cast", "a", "crash"],
            ["which", "sup"],
            ["which", "inner"],
            ["cast", "b", "crash"],
            ["cast", "b", "crash"],
        ],
    ),
    Scenario(
        "a transient inner supervisor that gives up stays down",
        [
            ["start", tree(tree(worker("a"), id="inner", intensity=0, restart="transient"), worker("x"))],
            ["cast", "a", "crash"],
            ["which", "sup"],
        ],
    ),
]

STARTS = [
    Scenario(
        f"the third of four says {answer} at start",
        [["start", tree(worker("a", trap=True), worker("b", trap=True), worker("c", inits=[answer]), worker("d"))]],
    )
    for answer in ("crash", "stop")
]
STARTS += [
    Scenario(
        "ignored children",
        [
            [
                "start",
                tree(worker("a", inits=["ignore"]), worker("t", inits=["ignore"], restart="temporary"), worker("c")),
            ],
            ["which", "sup"],
            ["count", "sup"],
            ["restart_child", "sup", "a"],
            ["delete_child", "sup", "a"],
        ],
    ),
    Scenario(
        "a lone worker that crashes in init",
        [["worker", worker("a", inits=["crash"])], ["linked_worker", worker("b", inits=["crash"])]],
    ),
    Scenario(
        "a lone worker that stops in init",
        [["worker", worker("a", inits=["stop"])], ["linked_worker", worker("b", inits=["stop"])]],
    ),
    Scenario(
        "a lone worker that ignores",
        [["worker", worker("a", inits=["ignore"])], ["linked_worker", worker("b", inits=["ignore"])]],
    ),
]

SHUTDOWN = [
    Scenario(
        "in reverse order, one after another",
        [["start", tree(*trapping("a", "b", "c", stop_ms=15))], ["exit", "sup", "shutdown"]],
    ),
    Scenario(
        "those who do not trap are not told",
        [["start", tree(worker("a"), worker("b", trap=True), worker("c"))], ["exit", "sup", "shutdown"]],
    ),
    Scenario(
        "brutal kill",
        [
            ["start", tree(worker("a", trap=True), worker("b", trap=True, shutdown="brutal_kill"))],
            ["exit", "sup", "shutdown"],
        ],
    ),
    Scenario(
        "a child that is too slow is killed",
        [
            ["start", tree(worker("a", trap=True), worker("b", trap=True, shutdown=30, stop_ms=5000))],
            ["exit", "sup", "shutdown"],
        ],
    ),
    Scenario(
        "a child that crashes at shutdown",
        [
            ["start", tree(worker("a", trap=True), worker("b", trap=True, stop_crash=True), worker("c", trap=True))],
            ["exit", "sup", "shutdown"],
        ],
    ),
    Scenario(
        "trees within trees",
        [
            ["start", tree(worker("a", trap=True), tree(*trapping("b", "c"), id="inner"), worker("d", trap=True))],
            ["exit", "sup", "shutdown"],
        ],
    ),
    Scenario(
        "a killed supervisor cannot shut down its children",
        [["start", tree(worker("a"), worker("b", trap=True))], ["exit", "sup", "kill"]],
        unordered=True,
    ),
    Scenario(
        "a supervisor ignores exits of strangers",
        [
            ["start", tree(worker("a", trap=True))],
            ["worker", worker("x")],
            ["cast", "x", "link", "sup"],
            ["cast", "x", "stop", "boom"],
            ["which", "sup"],
        ],
    ),
    Scenario(
        "a supervisor stopped with a reason", [["start", tree(*trapping("a", "b"))], ["stop", "sup", "normal", 1000]]
    ),
    Scenario(
        "a supervisor stopped by shutdown", [["start", tree(*trapping("a", "b"))], ["stop", "sup", "shutdown", 1000]]
    ),
    Scenario(
        "a supervisor left without children lives",
        [["start", tree(worker("a", restart="temporary"))], ["cast", "a", "crash"], ["which", "sup"]],
    ),
]

AUTO_SHUTDOWN = [
    Scenario(
        f"{mode} when significant ones end {reason}",
        [
            [
                "start",
                tree(
                    worker("a", restart="transient", significant=True),
                    worker("b", restart="transient", significant=True),
                    worker("c", trap=True),
                    auto_shutdown=mode,
                ),
            ],
            ["cast", "a", "stop", reason],
            ["cast", "b", "stop", reason],
        ][: 2 if mode == "any_significant" and reason == "normal" else 3],
    )
    for mode in ("any_significant", "all_significant")
    for reason in ("normal", "boom")
]
AUTO_SHUTDOWN += [
    Scenario(
        "ending a significant child by hand",
        [
            [
                "start",
                tree(worker("a", restart="transient", significant=True), worker("b"), auto_shutdown="any_significant"),
            ],
            ["terminate_child", "sup", "a"],
            ["which", "sup"],
        ],
    ),
    Scenario(
        "a significant temporary child that crashes",
        [
            [
                "start",
                tree(
                    worker("a", restart="temporary", significant=True),
                    worker("b", trap=True),
                    auto_shutdown="any_significant",
                ),
            ],
            ["cast", "a", "crash"],
        ],
    ),
]

MANAGEMENT = [
    Scenario(
        "children managed by hand",
        [
            ["start", tree(worker("a", trap=True), worker("b", restart="temporary"))],
            ["restart_child", "sup", "a"],
            ["delete_child", "sup", "a"],
            ["terminate_child", "sup", "a"],
            ["terminate_child", "sup", "a"],
            ["start_child", "sup", worker("a")],
            ["count", "sup"],
            ["restart_child", "sup", "a"],
            ["terminate_child", "sup", "a"],
            ["delete_child", "sup", "a"],
            ["delete_child", "sup", "a"],
            ["restart_child", "sup", "nobody"],
            ["terminate_child", "sup", "nobody"],
            ["terminate_child", "sup", "b"],
            ["restart_child", "sup", "b"],
            ["start_child", "sup", worker("z")],
            ["start_child", "sup", worker("y", inits=["crash"])],
            ["start_child", "sup", worker("w", inits=["stop"])],
            ["start_child", "sup", worker("v", inits=["ignore"])],
            ["start_child", "sup", worker("u", inits=["ignore"], restart="temporary")],
            ["which", "sup"],
            ["count", "sup"],
        ],
    ),
    Scenario(
        "a child started late is the first to stop",
        [
            ["start", tree(*trapping("a", "b"))],
            ["start_child", "sup", worker("z", trap=True)],
            ["exit", "sup", "shutdown"],
        ],
    ),
    Scenario(
        "counts of a mixed tree",
        [
            ["start", tree(worker("a"), tree(worker("b"), id="inner"), worker("t", inits=["ignore"]))],
            ["count", "sup"],
            ["which", "sup"],
        ],
    ),
]

DYNAMIC = [
    Scenario(
        "dynamic children",
        [
            ["start", tree(dynamic(max_children=2))],
            ["start_dynamic", "dyn", worker("a", restart="permanent")],
            ["start_dynamic", "dyn", worker("b", restart="temporary")],
            ["start_dynamic", "dyn", worker("c")],
            ["cast", "a", "crash"],
            ["cast", "b", "crash"],
            ["count_dynamic", "dyn"],
            ["start_dynamic", "dyn", worker("d", inits=["ignore"])],
            ["start_dynamic", "dyn", worker("e", inits=["stop"])],
            ["terminate_dynamic", "dyn", "a"],
            ["terminate_dynamic", "dyn", "a"],
            ["count_dynamic", "dyn"],
        ],
    ),
    Scenario(
        "dynamic children stop together",
        [
            ["start", tree(dynamic())],
            *[["start_dynamic", "dyn", worker(id, trap=True, stop_ms=20)] for id in "abc"],
            ["exit", "sup", "shutdown"],
        ],
        unordered=True,
    ),
    Scenario(
        "dynamic children use the intensity up",
        [
            ["start", tree(dynamic(intensity=1))],
            ["start_dynamic", "dyn", worker("a")],
            ["start_dynamic", "dyn", worker("b", trap=True)],
            ["cast", "a", "crash"],
            ["cast", "b", "crash"],
            ["count_dynamic", "dyn"],
        ],
        unordered=True,
    ),
]

LINKS = [
    Scenario(
        f"linked when one ends {reason}",
        [
            ["worker", worker("a")],
            ["worker", worker("b")],
            ["worker", worker("t", trap=True)],
            ["cast", "b", "link", "a"],
            ["cast", "t", "link", "a"],
            ["cast", "a", "link", "t"],
            ["cast", "a", "stop", reason],
        ],
        unordered=True,
    )
    for reason in ("normal", "shutdown", "shutdown:over", "boom")
]
LINKS += [
    Scenario(
        "linked when one crashes",
        [
            ["worker", worker("a")],
            ["worker", worker("t", trap=True)],
            ["cast", "t", "link", "a"],
            ["cast", "a", "crash"],
        ],
        unordered=True,
    ),
    *[
        Scenario(
            f"an exit signal {reason} from another",
            [["worker", worker("a")], ["worker", worker("t", trap=True)], ["exit", "a", reason], ["exit", "t", reason]],
            unordered=True,
        )
        for reason in ("normal", "shutdown", "kill", "boom", "killed")
    ],
    Scenario(
        "a chain of links",
        [
            ["worker", worker("a")],
            ["worker", worker("b")],
            ["worker", worker("c")],
            ["worker", worker("t", trap=True)],
            ["cast", "b", "link", "a"],
            ["cast", "c", "link", "b"],
            ["cast", "t", "link", "c"],
            ["exit", "a", "kill"],
        ],
        unordered=True,
    ),
    Scenario(
        "unlinked in time",
        [
            ["worker", worker("a")],
            ["worker", worker("b")],
            ["cast", "b", "link", "a"],
            ["cast", "a", "unlink", "b"],
            ["cast", "a", "crash"],
            ["call", "b", "echo", 500],
        ],
    ),
    Scenario(
        "linking the dead",
        [
            ["worker", worker("a")],
            ["worker", worker("b")],
            ["worker", worker("t", trap=True)],
            ["exit", "a", "kill"],
            ["cast", "t", "link", "a"],
            ["cast", "b", "link", "a"],
        ],
    ),
    Scenario(
        "a started worker is linked to its starter",
        [
            ["linked_worker", worker("a")],
            ["linked_worker", worker("b")],
            ["cast", "a", "stop", "normal"],
            ["cast", "b", "crash"],
        ],
    ),
]

MONITORS = [
    Scenario(
        f"monitored until it ends {reason}",
        [
            ["worker", worker("a")],
            ["worker", worker("m")],
            ["cast", "m", "monitor", "a"],
            ["cast", "m", "monitor", "a"],
            ["cast", "a", "stop", reason],
        ],
        unordered=True,
    )
    for reason in ("normal", "shutdown", "boom")
]
MONITORS += [
    Scenario(
        "monitoring the dead",
        [["worker", worker("a")], ["worker", worker("m")], ["exit", "a", "kill"], ["cast", "m", "monitor", "a"]],
    ),
    Scenario(
        "a monitor taken back",
        [
            ["worker", worker("a")],
            ["worker", worker("m")],
            ["cast", "m", "monitor", "a"],
            ["cast", "m", "demonitor", "a"],
            ["exit", "a", "kill"],
        ],
    ),
    Scenario(
        "a monitor taken back too late",
        [
            ["worker", worker("a")],
            ["worker", worker("m")],
            ["cast", "m", "monitor", "a"],
            ["cast", "m", "await_down_then_demonitor", "a"],
            ["call", "m", "echo", 500],
        ],
    ),
]

SERVERS = [
    Scenario(
        f"a call that is answered by {what}",
        [["worker", worker("a", trap=True)], ["call", "a", what, 500], ["call", "a", "echo", 500]],
        unordered=True,
    )
    for what in (
        "echo",
        "crash",
        "stop_reply",
        "stop_noreply",
        "stop_shutdown",
        "throw_reply",
        "bad",
        "exit_normal",
        "self",
        "deferred",
    )
]
SERVERS += [
    Scenario(
        "a call that is never answered",
        [["worker", worker("a")], ["call", "a", "noreply", 20], ["call", "a", "echo", 500]],
    ),
    Scenario(
        "a call that is answered too late",
        [["worker", worker("a")], ["call", "a", "slow", 20], ["call", "a", "echo", 500]],
    ),
    Scenario(
        "a caller whose server crashes",
        [["worker", worker("a")], ["worker", worker("b")], ["cast", "b", "call", "a", "crash", 500]],
        unordered=True,
    ),
    Scenario(
        "a caller whose call times out",
        [["worker", worker("a")], ["worker", worker("b", trap=True)], ["cast", "b", "call", "a", "noreply", 20]],
    ),
    *[
        Scenario(f"a cast that ends by {op}", [["worker", worker("a")], ["cast", "a", *op.split()]], unordered=True)
        for op in ("crash", "stop normal", "stop shutdown", "stop boom", "exit normal", "exit boom", "bad", "throw")
    ],
    Scenario(
        "messages before an exit signal are handled, those after are not",
        [
            ["worker", worker("t", trap=True)],
            ["casts", "t", [["say", "one"], ["say", "two"], ["EXIT"], ["say", "three"]]],
        ],
    ),
    Scenario(
        "an exit signal overtakes messages of one who does not trap",
        [["worker", worker("a")], ["casts", "a", [["say", "one"], ["say", "two"], ["EXIT"], ["say", "three"]]]],
    ),
    Scenario(
        "a parent's exit ends a trapping server after what came before",
        [
            ["start", tree(worker("a", trap=True))],
            ["together", ["cast", "a", "sleep", 30], ["cast", "a", "say", "one"], ["exit", "sup", "shutdown"]],
        ],
    ),
    Scenario(
        "continue goes before what is queued",
        [["worker", worker("a", inits=["continue"])], ["cast", "a", "continue", "more"]],
    ),
    Scenario(
        "a timeout after init", [["worker", worker("a", inits=["timeout"])], ["sleep", 300], ["cast", "a", "say", "hi"]]
    ),
    Scenario(
        "a timeout is cancelled by a message",
        [["worker", worker("a")], ["casts", "a", [["timeout", 150], ["say", "hi"]]], ["sleep", 300]],
    ),
    Scenario("a timeout that comes", [["worker", worker("a")], ["cast", "a", "timeout", 150], ["sleep", 300]]),
    Scenario(
        "hibernation keeps the state",
        [
            ["worker", worker("a")],
            ["cast", "a", "hibernate"],
            ["call", "a", "echo", 500],
            ["cast", "a", "hibernate"],
            ["exit", "a", "kill"],
        ],
    ),
    Scenario(
        "stopping a server",
        [["worker", worker("a", trap=True)], ["stop", "a", "normal", 500], ["stop", "a", "normal", 500]],
    ),
    Scenario("stopping a server for a reason", [["worker", worker("a")], ["stop", "a", "boom", 500]]),
    Scenario(
        "stopping a server that is too slow",
        [["worker", worker("a", stop_ms=400)], ["stop", "a", "normal", 40], ["sleep", 500]],
    ),
    Scenario(
        "stopping a server that crashes in terminate",
        [["worker", worker("a", stop_crash=True)], ["stop", "a", "normal", 500]],
    ),
    Scenario(
        "calling the dead",
        [["worker", worker("a")], ["exit", "a", "kill"], ["call", "a", "echo", 500], ["cast", "a", "say", "hi"]],
    ),
]

SCENARIOS = [
    *STRATEGIES,
    *RESTART_TYPES,
    *GROUPS,
    *INTENSITY,
    *STARTS,
    *SHUTDOWN,
    *AUTO_SHUTDOWN,
    *MANAGEMENT,
    *DYNAMIC,
    *LINKS,
    *MONITORS,
    *SERVERS,
]
