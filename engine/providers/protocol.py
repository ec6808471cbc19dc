"""What every provider is: one method that turns a request into a stream of typed events.

A provider is a class with `run`, an async generator, always closed with `aclosing`; closing it early
(cancellation) must stop the provider's work. It retries nothing: retries are the job queue's.
A failure is an event, `Failed`, and ends the stream; an exception that escapes is a bug and counts as a crash.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from enum import StrEnum
from typing import Any, Protocol
from uuid import UUID

from attrs import field, frozen

from engine.tasks.events import Usage


class FailureKind(StrEnum):
    """What a failure means for the queue."""

    RETRYABLE = "retryable"
    PERMANENT = "permanent"
    QUOTA = "quota"
    INVALID_INPUT = "invalid_input"
    CANCELLED = "cancelled"
    UNAVAILABLE = "unavailable"
    """No capacity: try again later, without burning an attempt."""
    LOST = "lost"
    """The work was done and its result is gone: whether to pay for it again is not decided here."""


@frozen
class ProviderRequest:
    """One attempt at one task. `attempt_id` was written down before the call: the intent."""

    task_id: UUID
    attempt: int
    attempt_id: UUID
    model: str
    slug: str
    version: str
    input: dict[str, Any] = field(repr=False)
    external_id: str | None = None
    """The provider's id of a prediction to adopt instead of making a new one."""
    intent_at: float | None = None
    """Unix time at which an earlier life of this attempt wrote down that it would call, and may have."""
    trace_parent: str | None = None
    """The W3C trace context of the call, for providers that take it."""


@frozen
class Accepted:
    """The provider took the work under its own id."""

    external_id: str
    status: str = "starting"
    repeats: int | None = None
    """Set when this call was made although an earlier one of the same attempt had no answer: 1 when that one may have
    been taken too, and is paid beside this; 0 when it was looked for and not found."""


@frozen
class Progress:
    """`fraction` 0.0-1.0 of this attempt."""

    fraction: float
    step: str | None = None
    message: str | None = None
    eta_seconds: float | None = None


@frozen
class TextDelta:
    """More text, to be appended."""

    text: str = field(repr=False)


@frozen
class OutputReady:
    """A file is ready: at `url` (the provider's, short-lived) or as `data`."""

    index: int
    url: str | None = field(default=None, repr=False)
    data: bytes | None = field(default=None, repr=False)
    content_type: str | None = None
    name: str | None = None
    provider: str | None = None
    """Whose file it is, when not that of the provider who was asked: files are fetched under its rules."""


@frozen
class UsageReported:
    """`counts`: what else the provider counts, under its own names (`image_output_count`), for prices by such units."""

    usage: Usage
    counts: Mapping[str, float] = field(factory=dict)


CACHED = "cached"
"""The raw status of an answer that was given before."""


@frozen
class Finished:
    """The last event of a good attempt. `raw_status` is the provider's own word, or CACHED."""

    raw_status: str = "succeeded"
    metrics: dict[str, Any] | None = None
    in_doubt: bool = False
    """As with `Failed`: of a route that was left before this one worked."""


@frozen
class Failed:
    """The last event of a bad attempt. `action` tells the person what to do; `retry_after` is in seconds."""

    kind: FailureKind
    code: str
    message: str
    action: str = "Try again later."
    retry_after: float | None = None
    raw_status: str | None = None
    in_doubt: bool = False
    """Whether the provider may be at work all the same, or may have taken what we do not know of: then the next attempt
    goes on with the same prediction, and when there is none, somebody looks after what is left."""


@frozen
class Sabotage:
    """Asks the TaskServer to crash: how the `simulate` model shows what supervision does."""

    reason: str


ProviderEvent = Accepted | Progress | TextDelta | OutputReady | UsageReported | Finished | Failed | Sabotage


class Provider(Protocol):
    """A back end that generates."""

    @property
    def name(self) -> str:
        """As models name their provider."""
        ...

    def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """Runs one attempt; the last event is `Finished` or `Failed`."""
        ...
