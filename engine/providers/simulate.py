"""The model that generates nothing: steps on a clock, for demos, load tests and fault tests.

Its faults are real ones: a worker that crashes crashes, a TaskServer that is made to crash is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from typing import Any

import trio
from attrs import frozen

from engine.providers.protocol import (
    Failed,
    FailureKind,
    Finished,
    Progress,
    ProviderEvent,
    ProviderRequest,
    Sabotage,
    TextDelta,
    UsageReported,
)
from engine.tasks.events import Usage

NAME = "simulate"
DEFAULTS: dict[str, Any] = {"steps": 5, "interval": 2.0, "text": False, "fail_at": None, "crash_at": None}

_STEP = {"type": ["integer", "null"], "minimum": 1, "maximum": 100_000}
INPUT_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "prompt": {"type": "string", "maxLength": 200_000},
        "steps": {"type": "integer", "minimum": 1, "maximum": 100_000, "description": "How many steps."},
        "interval": {"type": "number", "minimum": 0, "maximum": 3600, "description": "Seconds a step takes."},
        "text": {"type": "boolean", "description": "Whether words are streamed, one or more a step."},
        "fail_at": {**_STEP, "description": "The step that fails."},
        "fail_kind": {"enum": ["permanent", "retryable", "quota", "unavailable"], "description": "How it fails."},
        "fail_attempts": {"type": "integer", "minimum": 1, "maximum": 100, "description": "Later attempts succeed."},
        "retry_after": {"type": "number", "minimum": 0, "maximum": 3600, "description": "Seconds until the next one."},
        "crash_at": {**_STEP, "description": "The step at which the task's TaskServer crashes, once."},
        "worker_crash_at": {**_STEP, "description": "The step at which the worker crashes, in the first attempt."},
    },
}

_SENTENCE = "Every task is a small process that is watched over, and when one falls another takes its place."
_WORDS = _SENTENCE.split()


class SimulatedCrash(Exception):
    """The worker was asked to crash (`worker_crash_at`)."""


@frozen
class Simulate:
    """The provider of the model `simulate`; its input is described by INPUT_SCHEMA."""

    name: str = NAME

    async def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """Runs one attempt: each step takes `interval` seconds and ends with its progress."""
        given = {**DEFAULTS, **request.input}
        steps = int(given["steps"])  # 3.0 is a whole number, too
        start = trio.current_time()
        for step in range(1, steps + 1):
            await trio.sleep_until(start + step * given["interval"])
            if given.get("worker_crash_at") == step and request.attempt == 1:
                raise SimulatedCrash(f"at step {step}")
            if given["fail_at"] == step and request.attempt <= given.get("fail_attempts", request.attempt):
                yield _failure(given, step)
                return
            for event in _step(given, step, steps):
                yield event
        yield UsageReported(Usage(output_tokens=steps if given["text"] else None))
        yield Finished()


def _step(given: dict[str, Any], step: int, steps: int) -> Iterator[ProviderEvent]:
    if given["crash_at"] == step:
        yield Sabotage(f"simulated at step {step}")
    if given["text"]:
        yield TextDelta(word(step))
    eta = (steps - step) * given["interval"]
    yield Progress(step / steps, step=f"{step}/{steps}", eta_seconds=eta)


def word(step: int) -> str:
    """The text of a step (from 1), with the space before it."""
    return ("" if step == 1 else " ") + _WORDS[(step - 1) % len(_WORDS)]


def _failure(given: dict[str, Any], step: int) -> Failed:
    kind = FailureKind(given.get("fail_kind", "permanent"))
    action = "Try it with another fail_at." if kind is FailureKind.PERMANENT else "It is tried again by itself."
    message = f"Step {step} failed, as it was asked to."
    return Failed(kind, "simulated_failure", message, action, given.get("retry_after"))
