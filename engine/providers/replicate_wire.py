"""Replicate's words, read and written: predictions, statuses, errors, progress in logs. Pure.

Source: Replicate's HTTP API reference. Nothing here talks to the network.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from attrs import frozen

from engine.providers.protocol import Failed, FailureKind, OutputReady, ProviderRequest
from engine.tasks.events import Usage

RANK = {"starting": 0, "processing": 1, "succeeded": 2, "failed": 2, "canceled": 2, "aborted": 2}
TERMINAL = frozenset(word for word, rank in RANK.items() if rank == 2)
OUTPUT_HOSTS = ("*.replicate.delivery",)
LOG_TAIL = 64 * 1024
_PERCENT = re.compile(r"(?<![\d.])(\d{1,3})(?:\.\d+)?\s?%")
_RESETS = re.compile(r"resets in ~?(\d+(?:\.\d+)?)\s*s")


@frozen
class Prediction:
    """What a prediction's JSON says, as far as we use it. `metrics` and `output` are as they came."""

    id: str
    status: str
    output: Any = None
    logs: str = ""
    error: str | None = None
    metrics: dict[str, Any] | None = None
    version: str | None = None
    model: str | None = None
    input: Any = None
    created_at: str | None = None

    @property
    def terminal(self) -> bool:
        return self.status in TERMINAL


class BadPrediction(ValueError):
    """The answer is not a prediction."""


def read_prediction(answer: Any) -> Prediction:
    """A prediction from its JSON. Raises BadPrediction."""
    if not isinstance(answer, Mapping) or not isinstance(answer.get("id"), str) or answer.get("status") not in RANK:
        raise BadPrediction("an object with an id and a known status was expected")
    logs, error, metrics = answer.get("logs"), answer.get("error"), answer.get("metrics")
    return Prediction(
        id=answer["id"],
        status=answer["status"],
        output=answer.get("output"),
        logs=logs[-LOG_TAIL:] if isinstance(logs, str) else "",
        error=None if error is None else str(error),
        metrics=dict(metrics) if isinstance(metrics, Mapping) else None,
        version=answer.get("version"),
        model=answer.get("model"),
        input=answer.get("input"),
        created_at=answer.get("created_at"),
    )


def newer(a: Prediction, b: Prediction) -> bool:
    """Whether `a` tells more than `b`. Deliveries repeat and overtake each other; a status never goes back."""
    return _extent(a) > _extent(b)


def _extent(prediction: Prediction) -> tuple[int, int, int]:
    output = prediction.output
    length = len(output) if isinstance(output, list | str) else int(output is not None)
    return RANK[prediction.status], length, len(prediction.logs)


def creation(request: ProviderRequest) -> tuple[str, dict[str, Any]]:
    """The path and the body that create a prediction.

    `slug` is `owner/name`, or `deployments/owner/name`; with a `version` that is a hash, that version runs.
    """
    slug, version = request.slug.strip("/"), request.version
    if slug.startswith("deployments/"):
        return f"/v1/{quote(slug)}/predictions", {"input": request.input}
    if re.fullmatch(r"[0-9a-f]{64}", version):
        return "/v1/predictions", {"version": version, "input": request.input}
    return f"/v1/models/{quote(slug)}/predictions", {"input": request.input}


def webhook_url(public_url: str, request: ProviderRequest) -> str:
    """Task and attempt stand in the query, so that a delivery finds its attempt even if our POST's answer was lost."""
    query = urlencode({"task": str(request.task_id), "attempt": str(request.attempt_id)})
    return f"{public_url.rstrip('/')}/webhooks/replicate?{query}"


def progress_in(logs: str) -> float | None:
    """The last percentage in the logs (tqdm writes them so), as 0.0-1.0."""
    found = [int(match[1]) for match in _PERCENT.finditer(logs[-4096:])]
    return min(found[-1], 100) / 100 if found else None


def text_of(output: Any) -> str | None:
    """The text of a text model's output, None for one that is files. A list of strings is text in pieces."""
    pieces = [output] if isinstance(output, str) else output
    if not isinstance(pieces, list) or not all(isinstance(piece, str) for piece in pieces):
        return None
    if any(_is_file(piece) for piece in pieces):
        return None
    return "".join(pieces)


def files_of(output: Any) -> list[OutputReady]:
    """The files of an output, in order, wherever they stand in it."""
    urls = list(_urls(output))
    return [OutputReady(index, url=url) for index, url in enumerate(urls)]


def _urls(output: Any) -> list[str]:
    if isinstance(output, str):
        return [output] if _is_file(output) else []
    if isinstance(output, Mapping):
        output = list(output.values())
    return [url for item in output for url in _urls(item)] if isinstance(output, list) else []


def _is_file(value: str) -> bool:
    return value.startswith(("https://", "http://", "data:")) and not any(map(str.isspace, value))


def usage_of(metrics: Mapping[str, Any] | None) -> Usage | None:
    """Run time and tokens, as far as the metrics tell."""
    metrics = metrics or {}
    usage = Usage(
        input_tokens=_number(metrics.get("input_token_count"), int),
        output_tokens=_number(metrics.get("output_token_count"), int),
        predict_seconds=_number(metrics.get("predict_time"), float),
    )
    return None if usage == Usage() else usage


def _number(value: Any, kind: type) -> Any:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return kind(value) if good else None


def failure_of(prediction: Prediction) -> Failed:
    """What an unsuccessful end means."""
    if prediction.status == "canceled":
        return Failed(
            FailureKind.CANCELLED, "cancelled", "The prediction was cancelled.", "Start it again.", None, "canceled"
        )
    if prediction.status == "aborted":
        words = "The model did not start before its deadline; nothing was billed."
        return Failed(FailureKind.RETRYABLE, "not_started", words, "It is tried again.", None, "aborted")
    words = (prediction.error or "The model failed without saying why.")[:500]
    action = "Change the input, or try again."
    return Failed(FailureKind.RETRYABLE, "prediction_failed", words, action, None, "failed")


def refusal(status: int, headers: Mapping[str, str], answer: Any) -> Failed:
    """What an HTTP error means. `headers` in lower case; `answer` is the decoded JSON, or None."""
    detail = _detail(answer)
    match status:
        case 401 | 403:
            words, action = "Replicate refused our token.", "Check the server's Replicate token."
            return Failed(FailureKind.PERMANENT, "provider_auth", words, action)
        case 402:
            action = "Add credit to the Replicate account."
            return Failed(FailureKind.QUOTA, "provider_quota", detail or "Replicate asks for payment.", action)
        case 404:
            return Failed(FailureKind.PERMANENT, "model_not_found", "Replicate has no such model.", "Check its name.")
        case 422 | 400:
            words = detail or "Replicate refused the input."
            return Failed(FailureKind.INVALID_INPUT, "invalid_input", words, "Change the input.")
        case 429:
            words = "Replicate takes no more requests for now."
            wait = _retry_after(headers, answer)
            return Failed(FailureKind.UNAVAILABLE, "provider_throttled", words, "It is tried again.", wait)
        case _:
            words = f"Replicate answered {status}."
            return Failed(FailureKind.RETRYABLE, "provider_error", words, "It is tried again.")


def _detail(answer: Any) -> str | None:
    detail = answer.get("detail") or answer.get("title") if isinstance(answer, Mapping) else None
    return detail[:500] if isinstance(detail, str) else None


def _retry_after(headers: Mapping[str, str], answer: Any) -> float:
    """Seconds to wait: from the body, the header, or the words; bounded, for the figure is somebody else's."""
    body = answer.get("retry_after") if isinstance(answer, Mapping) else None
    words = _RESETS.search(_detail(answer) or "")
    for value in (body, headers.get("retry-after"), words and words[1]):
        try:
            return min(max(float(value), 0.5), 3600.0)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
    return 5.0
