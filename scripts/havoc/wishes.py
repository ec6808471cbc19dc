"""What the clients of chaos ask for, and what has to come of it. Pure, but for the dice.

Most are tasks of the model `simulate`: steps, text, crashes of the TaskServer and of the worker, failures that are
tried again or not. Some make a file, at a service that this script runs itself.
"""

from __future__ import annotations

import base64
import hashlib
import random
from typing import Any
from uuid import uuid4

from engine.providers.simulate import word
from scripts.havoc.record import Wish

PAINTER = "flux-schnell"
"""A model of the service that makes files."""


def wish(chance: random.Random, files: bool) -> Wish:
    """One wish; `files`: whether there is a service that makes them."""
    return _file(chance) if files and chance.random() < 0.15 else _steps(chance)


def _steps(chance: random.Random) -> Wish:
    steps = chance.randint(1, 15)
    text = chance.random() < 0.5
    given: dict[str, Any] = {"steps": steps, "interval": round(chance.uniform(0.0, 0.2), 3), "text": text}
    ends, failure = frozenset({"completed"}), ""
    match chance.random():
        case dice if dice < 0.08:
            given["crash_at"] = chance.randint(1, steps)
        case dice if dice < 0.16:
            given["fail_at"], ends, failure = chance.randint(1, steps), frozenset({"failed"}), "simulated_failure"
        case dice if dice < 0.22:
            given |= {"fail_at": chance.randint(1, steps), "fail_kind": "retryable", "fail_attempts": 1}
            ends, failure = frozenset({"completed"}), "simulated_failure"
        case dice if dice < 0.26:
            given["worker_crash_at"] = chance.randint(1, steps)
    body = {"prompt": f"chaos {chance.random()}", "model": "simulate", "input": given}
    told = "".join(word(step) for step in range(1, steps + 1)) if text else ""
    return Wish(str(uuid4()), body, ends, told, failure=failure)


def _file(chance: random.Random) -> Wish:
    contents = [chance.randbytes(chance.randint(100, 20_000)) for _ in range(chance.randint(1, 2))]
    urls = ["data:application/octet-stream;base64," + base64.b64encode(content).decode() for content in contents]
    script = {"steps": chance.randint(1, 4), "interval": round(chance.uniform(0.02, 0.3), 3), "output": urls}
    body = {"prompt": f"chaos {chance.random()}", "model": PAINTER, "input": {"script": script}}
    return Wish(str(uuid4()), body, outputs=tuple(hashlib.sha256(content).hexdigest() for content in contents))
