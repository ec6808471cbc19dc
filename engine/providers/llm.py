"""What the LLM services have in common: how an attempt is asked for, read, watched, and how it ends.

A service's file says how it is asked (`Ask`), what its stream means (a `Reader`), and what its client's exceptions mean
(`Explain`); `answered` does the rest. Text that arrived together is told together. May import `streaming` and `sse`.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

import msgspec
import trio

from engine.providers.failures import failed
from engine.providers.protocol import (
    Failed,
    FailureKind,
    Finished,
    Progress,
    ProviderEvent,
    ProviderRequest,
    TextDelta,
    UsageReported,
)
from engine.providers.sse import Decoder, EventTooLarge, ServerSentEvent
from engine.providers.streaming import Ask, Deadlines, Problem, Stream, check
from engine.tasks.events import Usage

T = TypeVar("T")

Explain = Callable[[Exception], Failed | None]
"""What an exception of a service's client means; None: it is not the client's, and goes on as a bug."""

USUAL_LIMIT = 1024
"""Tokens that an answer is measured against when the request sets no limit."""
FIGURES_EVERY = 0.25
"""Seconds between two reports of progress, and of what was used so far."""
CHARACTERS = 4
"""About so many of them make a token, where nobody has counted."""
THINKING = Progress(0.0, step="thinking")
"""The model works, and says nothing yet that is for the reader."""


class Reader(Protocol):
    """Reads one answer: pure, and made anew for each. `usage` is what is known to have been used so far."""

    usage: Usage | None

    def read(self, event: ServerSentEvent) -> Iterable[ProviderEvent]:
        """What an event means. `Finished` or `Failed` ends the attempt. Raises Problem: it cannot be read."""
        ...

    def end(self) -> ProviderEvent:
        """The response ended: `Finished` or `Failed`."""
        ...


async def answered(
    request: ProviderRequest, ask: Ask, reader: Reader, deadlines: Deadlines, explain: Explain
) -> AsyncGenerator[ProviderEvent, None]:
    """The attempt's events, ending in `Finished` or `Failed` whatever happens on the way.

    What was used is told before the end, a bad one too, and on the way, for those who close the stream early: the
    service's bill does not ask how it ended. What the service does not say is estimated.
    """
    told = _Told(reader, request)
    try:
        async with aclosing(_read(ask, told, deadlines)) as events:
            async for event in events:
                yield event
        end = told.end or reader.end()
    except Problem as problem:
        end = problem.failure
    except Exception as problem:
        failure = explain(problem)
        if failure is None:
            raise
        end = failure
    if (used := told.used) is not None:
        yield UsageReported(used)
    yield end


async def _read(ask: Ask, told: _Told, deadlines: Deadlines) -> AsyncGenerator[ProviderEvent, None]:
    stream = Stream(deadlines)
    response = await stream.open(ask)
    async with aclosing(response):
        await check(response)
        with stream.begun(response):
            while told.end is None and (piece := await stream.piece()):
                events = told.of(piece)
                for event in events:
                    yield event
                if any(isinstance(event, TextDelta | Progress) for event in events):
                    stream.heard(told.speaks)


class _Told:
    """What an answer has come to: how much was said, against the limit asked for, and the end, once there is one."""

    def __init__(self, reader: Reader, request: ProviderRequest) -> None:
        limit = request.input.get("max_tokens")
        self._limit = limit if isinstance(limit, int) and limit > 0 else USUAL_LIMIT
        self._asked = _length(request.input) // CHARACTERS
        self._reader = reader
        self._decoder = Decoder()
        self._pieces = 0
        self._characters = 0
        self._figures_at = -math.inf
        self.end: Finished | Failed | None = None

    @property
    def used(self) -> Usage | None:
        """What the service says was used; while, or where, it has not said it, what is to be seen."""
        known = self._reader.usage
        if (known is not None and known.output_tokens is not None) or not (known or self._pieces):
            return known
        asked = self._asked if known is None or known.input_tokens is None else known.input_tokens
        return Usage(asked, max(self._pieces, self._characters // CHARACTERS))

    @property
    def speaks(self) -> bool:
        """Whether there was any text."""
        return self._pieces > 0

    def of(self, piece: bytes) -> list[ProviderEvent]:
        """What a piece of the response means, text joined, now and then with progress."""
        before, events, texts = self._pieces, list[ProviderEvent](), list[str]()
        for event in self._meant(piece):
            if type(event) is TextDelta:
                texts.append(event.text)
            elif isinstance(event, Finished | Failed):
                self.end = event
                break
            elif event is not THINKING or event not in events:
                self._flush(texts, events)
                events.append(event)
        self._flush(texts, events)
        if self._pieces > before:
            events += self._figures()
        return events

    def _figures(self) -> list[ProviderEvent]:
        """How far the answer is, and what it has cost so far, now and then: no eye sees finer steps, and each costs as
        much as the text beside it."""
        now = trio.current_time()
        if now < self._figures_at:
            return []
        self._figures_at = now + FIGURES_EVERY
        done = Progress(min(1.0, self._pieces / self._limit), step=f"{self._pieces} tokens")
        return [done] if self.used is None else [done, UsageReported(self.used)]

    def _meant(self, piece: bytes) -> list[ProviderEvent]:
        """Ends with a failure at what cannot be read, after all that could."""
        meant: list[ProviderEvent] = []
        read = self._reader.read
        try:
            for event in self._decoder.feed(piece):
                meant += read(event)
        except EventTooLarge:
            meant.append(failed(FailureKind.RETRYABLE, "bad_response", raw="an event without end"))
        except Problem as problem:
            meant.append(problem.failure)
        return meant

    def _flush(self, texts: list[str], events: list[ProviderEvent]) -> None:
        if texts:
            text = "".join(texts)
            self._pieces += len(texts)
            self._characters += len(text)
            events.append(TextDelta(text))
            texts.clear()


def _length(given: Any) -> int:
    """The characters of all text in a request's input."""
    match given:
        case str():
            return len(given)
        case dict():
            return sum(map(_length, given.values()))
        case list():
            return sum(map(_length, given))
    return 0


def decoded(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    """An event's data, read by its service's shape. Raises Problem: the service sent what is not its format."""
    try:
        return decoder.decode(data)
    except UnicodeDecodeError:
        return decoded(decoder, data.decode("utf-8", "replace").encode())  # as the standard has event streams read
    except msgspec.MsgspecError as wrong:
        raise Problem(failed(FailureKind.RETRYABLE, "bad_response", raw=type(wrong).__name__)) from None


class _Typed(msgspec.Struct):
    type: str = ""


_typed = msgspec.json.Decoder(_Typed)


def kind_of(data: bytes) -> str:
    """What an event says it is: kinds that are not known may be of any shape. Raises Problem."""
    return decoded(_typed, data).type


def cut_short() -> Failed:
    """The response ended before the answer did."""
    return failed(FailureKind.RETRYABLE, "stream_broken", raw="ended without its last word")


def declined(why: str) -> Failed:
    """The service, or the model, would not answer this."""
    return failed(FailureKind.PERMANENT, "content_policy", raw=why)


def turns(request: ProviderRequest) -> tuple[str | None, list[dict[str, str]]]:
    """The system text, and the conversation as `{role, content}`: `messages` as given, or made of the prompt."""
    given = request.input
    messages = given.get("messages") or [{"role": "user", "content": given.get("prompt") or ""}]
    said = [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in messages]
    system = [turn["content"] for turn in said if turn["role"] == "system"]
    if given.get("system"):
        system.insert(0, str(given["system"]))
    return "\n\n".join(system) or None, [turn for turn in said if turn["role"] != "system"]


def chosen(request: ProviderRequest, names: Iterable[str]) -> dict[str, Any]:
    """Those of the input's fields that go into the service's request as they are."""
    return {name: request.input[name] for name in names if request.input.get(name) is not None}
