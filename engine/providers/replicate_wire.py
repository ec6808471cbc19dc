"""Replicate's words, read and written: predictions, statuses, errors, progress in logs. Pure.

Source: Replicate's HTTP API reference. Nothing here talks to the network. What comes from outside is believed as little
as can be: ids end up in paths, figures in the database, logs may have ten megabytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec
from attrs import field, frozen

from engine.providers.protocol import OutputReady, ProviderRequest
from engine.tasks.events import Usage

RANK = {"starting": 0, "processing": 1, "succeeded": 2, "failed": 2, "canceled": 2, "aborted": 2}
TERMINAL = frozenset(word for word, rank in RANK.items() if rank == 2)
OUTPUT_HOSTS = ("*.replicate.delivery",)
LOG_TAIL = 64 * 1024
"""Bytes of the logs' end that are decoded: all that progress is read from."""
MOST_INPUT = 1024 * 1024
LONGEST_URL = 2048
LARGEST = 2**53
"""Figures beyond this are nonsense, and would not fit into the database's columns."""
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_VERSION = re.compile(r"[0-9a-f]{64}")
_PERCENT = re.compile(r"(?<![\d.])(\d{1,3})(?:\.\d+)?\s?%")


@frozen
class Prediction:
    """What a prediction's JSON says, as far as we use it. `metrics` and `output` are as they came.

    `log_size` is the length of all logs, of which `logs` is the end; `over` is set when it has ended, whatever the word
    for that is.
    """

    id: str
    status: str
    output: Any = field(default=None, repr=False)
    logs: str = field(default="", repr=False)
    error: str | None = field(default=None, repr=False)
    metrics: dict[str, Any] | None = None
    version: str | None = None
    model: str | None = None
    input: Any = field(default=None, repr=False)
    created_at: str | None = None
    deployment: str | None = None
    webhook: str | None = field(default=None, repr=False)
    data_removed: bool = False
    over: bool = False
    log_size: int = 0

    @property
    def terminal(self) -> bool:
        return self.over or self.status in TERMINAL


class BadPrediction(ValueError):
    """The answer is not a prediction. `is_json`: whether it was at least that."""

    def __init__(self, why: str, is_json: bool = True) -> None:
        super().__init__(why)
        self.is_json = is_json


class _Wire(msgspec.Struct):
    """As it stands on the wire. Logs and input are left undecoded: they may be long, and are rarely wanted whole."""

    id: Any = None
    status: Any = None
    output: Any = None
    logs: msgspec.Raw = msgspec.Raw(b"null")
    error: Any = None
    metrics: Any = None
    version: Any = None
    model: Any = None
    input: msgspec.Raw = msgspec.Raw(b"null")
    created_at: Any = None
    completed_at: Any = None
    deployment: Any = None
    webhook: Any = None
    data_removed: Any = None


_wire = msgspec.json.Decoder(_Wire)


def read_body(body: bytes) -> Prediction:
    """A prediction from the bytes of its JSON, in a time that hardly depends on its logs. Raises BadPrediction."""
    try:
        wire = _wire.decode(body)
    except msgspec.ValidationError as problem:
        if body.lstrip()[:1] != b"{":
            raise BadPrediction("an object was expected") from problem
        return read_prediction(read_json(body))  # a number beyond all bounds
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return read_prediction(read_json(body))
    logs, given = bytes(wire.logs), bytes(wire.input)
    said = {name: getattr(wire, name) for name in wire.__struct_fields__}
    said["input"] = msgspec.json.decode(given) if len(given) <= MOST_INPUT else None
    said["logs"] = tail_of(logs)
    return read_prediction(said, log_size=len(logs))


def read_json(body: bytes) -> Any:
    """What msgspec will not read and others write all the same: half surrogates, NaN, endless numbers.

    Raises BadPrediction.
    """
    try:
        return _mended(json.loads(body.decode("utf-8", "replace")))
    except (ValueError, RecursionError) as problem:
        raise BadPrediction("it is not JSON", is_json=False) from problem


def _mended(value: Any) -> Any:
    match value:
        case str():
            return value if value.isascii() else value.encode("utf-8", "replace").decode()
        case list():
            return [_mended(item) for item in value]
        case dict():
            return {_mended(key): _mended(item) for key, item in value.items()}
        case float() if not math.isfinite(value):
            return None
        case _:
            return value


def tail_of(raw: bytes) -> str:
    """The end of a JSON string that was left undecoded, cut where its escapes allow it; empty for anything else."""
    if raw[:1] != b'"':
        return ""
    if len(raw) <= LOG_TAIL:
        return str(msgspec.json.decode(raw))
    cut = raw[-LOG_TAIL:]
    for start in range(13):  # the longest unit is a pair of surrogates, of twelve bytes
        try:
            return str(msgspec.json.decode(b'"' + cut[start:]))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return ""


def read_prediction(answer: Any, log_size: int | None = None) -> Prediction:
    """A prediction from its JSON. A status that nobody knows yet counts as one of work. Raises BadPrediction."""
    if not isinstance(answer, Mapping):
        raise BadPrediction("an object was expected")
    identifier, status, logs, error = (answer.get(name) for name in ("id", "status", "logs", "error"))
    if not isinstance(identifier, str) or not _ID.fullmatch(identifier):
        raise BadPrediction("an id was expected, of letters, digits, - and _")
    if not isinstance(status, str) or not status or len(status) > 64:
        raise BadPrediction("a status was expected")
    text = logs if isinstance(logs, str) else ""
    metrics = answer.get("metrics")
    return Prediction(
        id=identifier,
        status=status,
        output=answer.get("output"),
        logs=text[-LOG_TAIL:],
        error=None if error is None else str(error),
        metrics=dict(metrics) if isinstance(metrics, Mapping) else None,
        version=_word(answer.get("version")),
        model=_word(answer.get("model")),
        input=answer.get("input"),
        created_at=_word(answer.get("created_at")),
        deployment=_word(answer.get("deployment")),
        webhook=_word(answer.get("webhook")),
        data_removed=answer.get("data_removed") is True,
        over=status not in RANK and bool(answer.get("completed_at")),
        log_size=len(text) if log_size is None else log_size,
    )


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def newer(a: Prediction, b: Prediction) -> bool:
    """Whether `a` tells more than `b`. Deliveries repeat and overtake each other; a status never goes back."""
    return _extent(a) > _extent(b)


def _extent(prediction: Prediction) -> tuple[int, int, int]:
    output = prediction.output
    length = len(output) if isinstance(output, list | str) else int(output is not None)
    rank = 2 if prediction.terminal else RANK.get(prediction.status, 1)
    return rank, length, max(prediction.log_size, len(prediction.logs))


def creation(request: ProviderRequest) -> tuple[str, dict[str, Any]]:
    """The path and the body that create a prediction.

    `slug` is `owner/name`, or `deployments/owner/name`; with a `version` that is a hash, that version runs.
    """
    slug, version = request.slug.strip("/"), request.version
    if slug.startswith("deployments/"):
        return f"/v1/{quote(slug)}/predictions", {"input": request.input}
    if _VERSION.fullmatch(version):
        return "/v1/predictions", {"version": version, "input": request.input}
    return f"/v1/models/{quote(slug)}/predictions", {"input": request.input}


def is_pinned(version: str | None) -> bool:
    """Whether this is one version of a model, by its hash."""
    return bool(_VERSION.fullmatch(version or ""))


def webhook_url(public_url: str, request: ProviderRequest) -> str:
    """Task and attempt stand in the query, so that a delivery finds its attempt even if our POST's answer was lost."""
    query = urlencode({"task": str(request.task_id), "attempt": str(request.attempt_id)})
    return f"{public_url.rstrip('/')}/webhooks/replicate?{query}"


def progress_in(logs: str) -> float | None:
    """The last percentage in the logs (tqdm writes them so), as 0.0-1.0."""
    found = [int(match[1]) for match in _PERCENT.finditer(logs[-4096:])]
    return min(found[-1], 100) / 100 if found else None


# --- outputs ----------------------------------------------------------------------------------------------


def text_of(output: Any) -> str | None:
    """The text of a text model's output, None for anything else. A list of strings is text in pieces, unless all of
    them are files: a text may well have a piece that looks like one."""
    pieces = [output] if isinstance(output, str) else output
    if not isinstance(pieces, list) or not all(isinstance(piece, str) for piece in pieces):
        return None
    said = [piece for piece in pieces if piece]
    if said and all(map(_is_file, said)):
        return None
    return "".join(said)


def files_of(output: Any) -> list[OutputReady]:
    """The files of an output, in order, wherever they stand in it."""
    return [OutputReady(index, url=url) for index, url in enumerate(_urls(output))]


def structure_of(output: Any) -> str | None:
    """An output that is neither text nor files alone, as JSON, in which `output:0` stands for the first file.

    None: it is text, or files alone, or nothing.
    """
    if output is None or text_of(output) is not None:
        return None
    said, left = _named(output, iter(range(LARGEST)))
    return msgspec.json.encode(said).decode() if left else None


def _named(value: Any, numbers: Iterator[int]) -> tuple[Any, bool]:
    """The value with its files numbered, and whether there is anything else in it."""
    match value:
        case str() if _is_file(value):
            return f"output:{next(numbers)}", False
        case list():
            items = [_named(item, numbers) for item in value]
            return [item for item, _ in items], any(left for _, left in items)
        case dict():
            named = {str(key): _named(item, numbers) for key, item in value.items()}
            return {key: item for key, (item, _) in named.items()}, any(left for _, left in named.values())
        case _:
            return value, value is not None and value != ""


def _urls(output: Any) -> Iterator[str]:
    match output:
        case str() if _is_file(output):
            yield output
        case list():
            for item in output:
                yield from _urls(item)
        case dict():
            for item in output.values():
                yield from _urls(item)


def _is_file(value: str) -> bool:
    """Whether a string is the address of a file, or the file itself as a data URL (which may have megabytes)."""
    if value.startswith("data:"):
        return "," in value[:LONGEST_URL] and not _has_space(value[:LONGEST_URL])
    if not value.startswith(("https://", "http://")) or len(value) > LONGEST_URL or _has_space(value):
        return False
    try:
        return bool(urlsplit(value).hostname)
    except ValueError:
        return False


def _has_space(value: str) -> bool:
    return value != "".join(value.split())


# --- figures ----------------------------------------------------------------------------------------------


def usage_of(metrics: Mapping[str, Any] | None) -> Usage | None:
    """Run time and tokens, as far as the metrics tell."""
    said = metrics or {}
    usage = Usage(
        input_tokens=_whole(said.get("input_token_count", said.get("token_input_count"))),
        output_tokens=_whole(said.get("output_token_count", said.get("token_output_count"))),
        predict_seconds=_figure(said.get("predict_time")),
    )
    return None if usage == Usage() else usage


def counts_of(prediction: Prediction) -> dict[str, float]:
    """All that may have a price, by Replicate's own names, and `run`: 1 for a prediction that succeeded."""
    found = {name: _figure(value) for name, value in (prediction.metrics or {}).items()}
    counts = {name: value for name, value in found.items() if value is not None}
    return {**counts, "run": float(prediction.status == "succeeded")}


def _figure(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) and 0 <= value < LARGEST else None


def _whole(value: Any) -> int | None:
    figure = _figure(value)
    return None if figure is None else int(figure)
