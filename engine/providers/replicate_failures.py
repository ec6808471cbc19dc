"""What goes wrong at Replicate: what an HTTP answer or a prediction's end means for the task and its queue. Pure.

Source: Replicate's pages on HTTP errors, rate limits and error codes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from engine.providers.failures import failed
from engine.providers.protocol import Failed, FailureKind
from engine.providers.replicate_wire import Prediction

AGAIN = "It is tried again."
LONGEST_WAIT = 3600.0
_RESETS = re.compile(r"resets in ~?(\d+(?:\.\d+)?)\s*s")
_CONTENT = re.compile(
    r"\bE005\b|\bNSFW\b|flagged (as|by)|safety (checker|filter|system)|content (policy|moderation)", re.IGNORECASE
)


def failure_of(prediction: Prediction) -> Failed:
    """What an unsuccessful end means."""
    match prediction.status:
        case "canceled":
            words = "The prediction was stopped at Replicate: by hand, or because it took longer than it may."
            return Failed(FailureKind.CANCELLED, "cancelled", words, "Start it again.", raw_status="canceled")
        case "aborted":
            words = "The model did not start before its deadline; nothing was billed."
            return Failed(FailureKind.RETRYABLE, "not_started", words, AGAIN, raw_status="aborted")
        case "failed" if _CONTENT.search(prediction.error or ""):
            return failed(FailureKind.PERMANENT, "content_policy", raw="failed")
    words = (prediction.error or "The model failed without saying why.")[:500]
    raw = prediction.status[:64]
    return Failed(FailureKind.RETRYABLE, "prediction_failed", words, "Change the input, or try again.", raw_status=raw)


def nothing_came() -> Failed:
    words = "The model reported success without any output."
    return Failed(FailureKind.RETRYABLE, "no_output", words, AGAIN, raw_status="succeeded")


def text_changed() -> Failed:
    words = "The model's final text differs from what it had streamed."
    return Failed(FailureKind.RETRYABLE, "output_changed", words, AGAIN, raw_status="succeeded")


def result_lost() -> Failed:
    """A prediction of an earlier life of this attempt is there no more, or what it gave is not."""
    words = "Replicate ran this prediction, and has deleted its result: it keeps them for one hour."
    action = "Try it again by hand; that is a new prediction, which is billed anew."
    return Failed(FailureKind.LOST, "result_lost", words, action, raw_status="succeeded")


def unreachable(why: str) -> Failed:
    """Nothing reached Replicate, so there is nothing to look after."""
    return Failed(FailureKind.RETRYABLE, "provider_unreachable", f"Replicate could not be reached ({why}).", AGAIN)


def out_of_sight(why: str) -> Failed:
    """A prediction that is at work, and of which nothing is heard any more."""
    words = f"Replicate could not be reached for long ({why})."
    return Failed(FailureKind.RETRYABLE, "provider_unreachable", words, AGAIN, in_doubt=True)


def answer_lost(why: str) -> Failed:
    """A prediction that was asked for, and may have been made."""
    words = f"Replicate's answer to the request was lost ({why}); it is looked for before another one is made."
    return Failed(FailureKind.RETRYABLE, "answer_lost", words, AGAIN, in_doubt=True)


def took_too_long() -> Failed:
    words = "The prediction took longer than it may, and was stopped."
    return Failed(FailureKind.PERMANENT, "timeout", words, "Ask for less at once.", raw_status="canceled")


def redirected() -> Failed:
    return failed(FailureKind.PERMANENT, "provider_misconfigured", raw="redirect")


def refusal(status: int, headers: Mapping[str, str], answer: Any, now: float = 0.0) -> Failed:
    """What an HTTP error means. `headers` in lower case; `answer` is the decoded JSON, or None; `now`: Unix time."""
    detail, raw = _detail(answer), str(status)
    match status:
        case 401 | 403:
            words, action = "Replicate refused our token.", "Check the server's Replicate token."
            return Failed(FailureKind.PERMANENT, "provider_auth", words, action, raw_status=raw)
        case 402:
            words, action = detail or "Replicate asks for payment.", "Add credit to the Replicate account."
            return Failed(FailureKind.QUOTA, "provider_quota", words, action, raw_status=raw)
        case 404:
            words = "Replicate has no such model, or it is not an official one, which needs a version."
            action = "Check its name; import the model to have its version pinned."
            return Failed(FailureKind.PERMANENT, "model_not_found", words, action, raw_status=raw)
        case 400 | 413 | 422:
            words = detail or "Replicate refused the input."
            return Failed(FailureKind.INVALID_INPUT, "invalid_input", words, "Change the input.", raw_status=raw)
        case 429:
            words = "Replicate takes no more requests for now."
            wait = retry_after(headers, answer, now)
            return Failed(FailureKind.UNAVAILABLE, "provider_throttled", words, AGAIN, wait, raw)
        case 408 | 409 | 425:
            return Failed(FailureKind.RETRYABLE, "provider_error", f"Replicate answered {status}.", AGAIN, None, raw)
        case _:
            action = "Tell the operator."
            return Failed(FailureKind.PERMANENT, "provider_error", f"Replicate answered {status}.", action, None, raw)


def _detail(answer: Any) -> str | None:
    detail = answer.get("detail") or answer.get("title") if isinstance(answer, Mapping) else None
    return detail[:500] if isinstance(detail, str) else None


def retry_after(headers: Mapping[str, str], answer: Any, now: float) -> float:
    """Seconds to wait: from the body, the header, or the words; bounded, for the figure is somebody else's."""
    body = answer.get("retry_after") if isinstance(answer, Mapping) else None
    words = _RESETS.search(_detail(answer) or "")
    header = headers.get("retry-after", "")
    for value in (body, header, words and words[1]):
        if (seconds := _seconds(value)) is not None:
            return seconds
    at = _date(header)
    return 5.0 if at is None else min(max(at - now, 0.5), LONGEST_WAIT)


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return None
    return min(max(seconds, 0.5), LONGEST_WAIT) if math.isfinite(seconds) else None


def _date(value: str) -> float | None:
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
