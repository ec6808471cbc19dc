"""What the LLM services have in common, whichever SDK speaks to them: deadlines, progress, and how an attempt ends.

A service's file gives a stream of provider events and says what its SDK's exceptions mean; `watched` does the rest.
May import `protocol` and `failures`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any

import trio

from engine.providers.failures import failed
from engine.providers.protocol import Failed, FailureKind, Finished, Progress, ProviderEvent, ProviderRequest, TextDelta
from engine.providers.streaming import Deadlines, new_percent, silent

Explain = Callable[[Exception], Failed | None]


async def watched(
    request: ProviderRequest, events: AsyncGenerator[ProviderEvent, None], deadlines: Deadlines, explain: Explain
) -> AsyncGenerator[ProviderEvent, None]:
    """The attempt's events with progress added, ending in `Finished` or `Failed` whatever happens on the way.

    `explain` says what an exception of the SDK means; None: it is not the SDK's, and goes on as a bug.
    """
    seconds, shown = deadlines.first_token, _Shown(request)
    async with aclosing(events):
        while True:
            try:
                with trio.move_on_after(seconds) as scope:
                    event = await anext(events, None)
            except Exception as problem:
                failure = explain(problem)
                if failure is None:
                    raise
                event = failure
            if scope.cancelled_caught:
                event = silent("a word", seconds)
            event = event or failed(FailureKind.RETRYABLE, "stream_broken", raw="ended without a word")
            yield event
            if isinstance(event, Finished | Failed):
                return
            if isinstance(event, TextDelta):
                seconds = deadlines.between_tokens
                if (progress := shown.more()) is not None:
                    yield progress


class _Shown:
    """How far an answer is, told from the pieces that came (about a token each) against the limit asked for."""

    def __init__(self, request: ProviderRequest) -> None:
        limit = request.input.get("max_tokens")
        self._limit = limit if isinstance(limit, int) and limit > 0 else 1024
        self._pieces = 0

    def more(self) -> Progress | None:
        self._pieces += 1
        if not new_percent(self._pieces, self._limit):
            return None
        return Progress(min(0.99, self._pieces / self._limit), step=f"{self._pieces} tokens")


def turns(request: ProviderRequest) -> tuple[str | None, list[dict[str, str]]]:
    """The system text, and the conversation as `{role, content}`: `messages` as given, or made of the prompt."""
    given = request.input
    messages = given.get("messages") or [{"role": "user", "content": given.get("prompt") or ""}]
    said = [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in messages]
    system = [turn["content"] for turn in said if turn["role"] == "system"]
    if given.get("system"):
        system.insert(0, str(given["system"]))
    return "\n\n".join(system) or None, [turn for turn in said if turn["role"] != "system"]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, when the header says so; its date form is not used by these services."""
    try:
        return max(0.0, float(headers.get("retry-after") or ""))
    except ValueError:
        return None


def chosen(request: ProviderRequest, names: Iterable[str]) -> dict[str, Any]:
    """Those of the input's fields that go into the service's request as they are."""
    return {name: request.input[name] for name in names if request.input.get(name) is not None}
