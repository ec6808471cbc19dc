"""What goes wrong at a provider, in words for a person: one place, so that no provider's own text leaks out.

Pure. The provider's word stays in `raw_status`, which reaches the predictions table and no client.
"""

from __future__ import annotations

import re
from typing import Any

from engine.providers.protocol import Failed, FailureKind

_WORDS = {
    "content_policy": ("The model's provider declined this content.", "Change the prompt."),
    "context_length": ("The prompt is longer than the model can take.", "Shorten the prompt, or choose another model."),
    "invalid_request": ("The provider did not understand the input.", "Check the input's fields for this model."),
    "unknown_model": ("The provider does not know this model.", "Choose another model; tell the operator."),
    "provider_auth": ("The provider did not accept our credentials.", "Tell the operator."),
    "provider_misconfigured": ("The provider's address is wrong: it answered with a redirect.", "Tell the operator."),
    "quota": ("The provider's quota is used up for now.", "It is tried again by itself; or choose another model."),
    "provider_error": ("The provider had an internal error.", "It is tried again by itself."),
    "bad_response": ("The provider sent something that cannot be read.", "It is tried again by itself."),
    "stream_broken": ("The connection to the provider broke.", "It is tried again by itself."),
    "provider_down": ("The provider cannot be reached.", "It is tried again by itself."),
    "model_server_down": ("The local model is not running.", "It is tried again by itself."),
    "timeout": ("The provider did not answer in time.", "It is tried again by itself."),
}


_TOO_LONG = re.compile("prompt is too long|token count .*exceeds|maximum context length|exceed context limit")
_DECLINED = re.compile("content filtering policy|content management policy|rejected .*safety system|usage polic")


def failed(kind: FailureKind, code: str, retry_after: float | None = None, raw: str | None = None) -> Failed:
    """The failure `code` with its words; `retry_after` in seconds."""
    message, action = _WORDS[code]
    return Failed(kind, code, message, action, retry_after, raw)


def classify(status: int, error: dict[str, Any], retry_after: float | None) -> Failed:
    """What an HTTP status and an OpenAI-style error object mean for the task and its queue."""
    words = f"{error.get('code')} {error.get('type')}"
    message = str(error.get("message", "")).lower()  # where the service has no word of its own for it
    raw = f"{status} {words}"
    lengthy = status == 413 or any(word in words for word in ("context_length", "context_size", "string_above_max"))
    if lengthy or _TOO_LONG.search(message):
        return failed(FailureKind.INVALID_INPUT, "context_length", raw=raw)
    if "content_policy" in words or "content_filter" in words or _DECLINED.search(message):
        return failed(FailureKind.PERMANENT, "content_policy", raw=raw)
    if status == 429 or status == 402 or "insufficient_quota" in words:
        return failed(FailureKind.QUOTA, "quota", retry_after, raw)
    if status in (401, 403) or "api key not valid" in message:
        return failed(FailureKind.PERMANENT, "provider_auth", raw=raw)
    if status == 404:
        return failed(FailureKind.PERMANENT, "unknown_model", raw=raw)
    if status in (408, 409, 425) or status >= 500:
        return failed(FailureKind.RETRYABLE, "provider_error", retry_after, raw)
    if 300 <= status < 400:
        return failed(FailureKind.PERMANENT, "provider_misconfigured", raw=raw)
    return failed(FailureKind.INVALID_INPUT, "invalid_request", raw=raw)
