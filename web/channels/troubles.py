"""What may go wrong for a moment, as the refusals that clients are told. Pure."""

from __future__ import annotations

from engine.errors import UserError
from engine.otp import CallFailed
from engine.ports import JournalFull, StorageDown
from web.channels.payloads import Payload, refusal

Trouble = UserError | StorageDown | JournalFull | CallFailed
TROUBLES = (UserError, StorageDown, JournalFull, CallFailed)
"""Everything else is a bug: the channel crashes and its client joins again."""


def as_refusal(trouble: Trouble) -> Payload:
    """`reason`, `message` and, where waiting helps, `retry_after` in seconds."""
    match trouble:
        case UserError():
            return refusal(trouble)
        case JournalFull():
            message = "The server cannot take more now. Try again later."
            return refusal(UserError("journal_full", message, retry_after=trouble.retry_after))
        case StorageDown():
            return refusal(UserError("storage_down", "The database is away. Try again in a moment.", retry_after=2.0))
        case CallFailed():
            return refusal(UserError("overloaded", "The task did not answer in time. Try again.", retry_after=2.0))
