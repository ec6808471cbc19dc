"""Cog's words, read: servers as the settings name them, health, refusals, ends. Pure.

Source: Cog's page "HTTP API"; what it leaves open was seen on Cog 0.23.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from attrs import define, evolve, field, frozen

from engine.providers.failures import failed
from engine.providers.protocol import Failed, FailureKind, ProviderEvent, ProviderRequest
from engine.providers.replicate import Story
from engine.providers.replicate_wire import BadPrediction, Prediction, files_of, read_prediction, text_of

ILL = frozenset({"UNHEALTHY", "DEFUNCT", "SETUP_FAILED"})
"""What a server says of itself that only a new life mends."""
UNREACHABLE = "UNREACHABLE"
BUSY_AGAIN, BUSY_LONGEST = 1.0, 15.0
STARTING_AGAIN = 2.0
_SERVER = re.compile(r"(?P<name>[^=;]+)=(?P<url>https?://[^;]+?)(?:;slots=(?P<slots>[1-9]\d*))?")
_INVALID = re.compile(r"input validation error:?\s*", re.IGNORECASE)


@define(eq=False)
class Life:
    """How a server that is started here fares: `vain` starts in a row after which it was never ready."""

    vain: int = 0

    @property
    def hopeless(self) -> bool:
        """Whether there is no sense in waiting for it."""
        return self.vain >= 3


@frozen
class Server:
    """A Cog server. `slots`: how many predictions it takes at once, None when nobody has said. `life`: of one that is
    started here, which is starting when it does not answer."""

    name: str
    url: str
    slots: int | None = None
    life: Life | None = None


def read_servers(text: str) -> list[Server]:
    """Servers as they stand in the settings: `name=http://host:port`, `;slots=4` behind it. Raises ValueError."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    found = [_SERVER.fullmatch(part) for part in parts]
    if not all(found):
        raise ValueError("Cog servers are written as name=http://host:port or name=http://host:port;slots=4.")
    return [
        Server(match["name"].strip(), match["url"].strip().rstrip("/"), int(match["slots"]) if match["slots"] else None)
        for match in found
        if match
    ]


@frozen
class Health:
    """`born` tells one life of a server from the next; None when it does not say."""

    status: str
    born: str | None = None
    last_words: str = field(default="", repr=False)
    """The end of what the model's setup had printed."""


def read_health(answer: Any) -> Health:
    """The answer of /health-check; what is no such answer counts as unreachable."""
    if not isinstance(answer, Mapping) or not isinstance(answer.get("status"), str):
        return Health(UNREACHABLE)
    setup = answer.get("setup")
    setup = setup if isinstance(setup, Mapping) else {}
    born, said = setup.get("started_at"), setup.get("logs")
    lines = said[-2000:].strip().splitlines() if isinstance(said, str) else []
    return Health(answer["status"], born if isinstance(born, str) else None, lines[-1][:200] if lines else "")


def read_news(identifier: str, answer: Any) -> Prediction:
    """A prediction as the server tells of it. Ids are ours: what it calls it does not matter. Raises BadPrediction."""
    if not isinstance(answer, Mapping):
        raise BadPrediction("an object was expected")
    return read_prediction({**answer, "id": identifier})


def tell(story: Story, news: Prediction, adopted: bool = False) -> list[ProviderEvent]:
    """What is new in the news. A model that answers in numbers or objects has its answer told as JSON; one that has
    no answer would have none another time either, and is not run again for it. `adopted`: it was begun by an earlier
    life of ours, with which its connection may have ended, and so it."""
    if news.status == "succeeded":
        news = evolve(news, output=_legible(news.output))
    events = story.tell(news)
    last = events[-1] if events else None
    if isinstance(last, Failed):
        events[-1] = died() if adopted and last.kind is FailureKind.CANCELLED else _judged(last)
    return events


def _legible(output: Any) -> Any:
    if output is None or isinstance(output, str) or text_of(output) is not None or files_of(output):
        return output
    return msgspec.json.encode(output).decode()


def _judged(end: Failed) -> Failed:
    if end.code == "no_output":
        return evolve(end, kind=FailureKind.PERMANENT, action="Change the input, or tell the operator.")
    if end.code == "prediction_failed" and (said := _INVALID.match(end.message)):
        words = end.message[said.end() :] or "The model refused the input."
        return Failed(FailureKind.INVALID_INPUT, "invalid_input", words, "Change the input.", None, end.raw_status)
    return end


# --- what is said of failures ----------------------------------------------------------------------------


def refusal(status: int, answer: Any) -> Failed:
    """What it means that a server does not take a prediction. 409 and 503 are `busy`'s and `starting`'s matter."""
    match status:
        case 400 | 422:
            return Failed(FailureKind.INVALID_INPUT, "invalid_input", _details(answer), "Change the input.")
        case 401 | 403:
            return failed(FailureKind.PERMANENT, "provider_auth", raw=str(status))
        case 404 | 405:
            words = "The model server knows no predictions: its address is wrong."
            return Failed(FailureKind.PERMANENT, "provider_misconfigured", words, "Tell the operator.")
        case _ if 300 <= status < 400:
            return failed(FailureKind.PERMANENT, "provider_misconfigured", raw=str(status))
        case _:
            words = f"The model server answered {status}."
            return Failed(FailureKind.RETRYABLE, "provider_error", words, "It is tried again by itself.")


def _details(answer: Any) -> str:
    """Which field is wrong, as the server says it."""
    try:
        found = [f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in answer["detail"]]
    except (KeyError, TypeError):
        found = []
    return "; ".join(found)[:500] or "The model server refused the input."


def busy(request: ProviderRequest) -> Failed:
    """No slot. A task that has come in vain before comes back less often."""
    pause = min(BUSY_AGAIN * 1.5 ** (request.attempt - 1), BUSY_LONGEST) if request.attempt < 20 else BUSY_LONGEST
    words = "The model server has no free slot."
    return Failed(FailureKind.UNAVAILABLE, "provider_busy", words, "It is tried again by itself.", pause)


def starting() -> Failed:
    words = "The model server is still starting."
    return Failed(FailureKind.UNAVAILABLE, "provider_starting", words, "It is tried again by itself.", STARTING_AGAIN)


def ill(health: str) -> Failed:
    code = "provider_unreachable" if health == UNREACHABLE else "provider_unhealthy"
    words = f"The model server does not work at present ({health.lower()})."
    return Failed(FailureKind.RETRYABLE, code, words, "It is tried again by itself.")


def died() -> Failed:
    words = "The model server or its connection ended while it worked on this."
    return Failed(FailureKind.RETRYABLE, "model_server_restarted", words, "It is tried again by itself.")


def lost() -> Failed:
    words = "The model has run, but the model server's word of the result did not arrive."
    action = "It is run once more, which may be paid twice."
    return Failed(FailureKind.RETRYABLE, "result_lost", words, action)


def too_long(seconds: float) -> Failed:
    words = f"The prediction took longer than {seconds:.0f} seconds and was stopped."
    return Failed(FailureKind.RETRYABLE, "prediction_timeout", words, "It is tried again by itself.")


def unreadable() -> Failed:
    return failed(FailureKind.RETRYABLE, "bad_response")


def broken() -> Failed:
    return failed(FailureKind.RETRYABLE, "stream_broken")


def unknown_server() -> Failed:
    words = "No model server of this name is known here."
    return Failed(FailureKind.PERMANENT, "no_provider", words, "Choose another model; tell the operator.")
