"""The one way in which an output can fail. Imports nothing of ours."""

from __future__ import annotations

from attrs import frozen


@frozen
class OutputRefused(Exception):
    """An output could not be kept. `code` is stable; `retryable` says whether another attempt may do better."""

    code: str
    message: str
    action: str
    retryable: bool = False

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"
