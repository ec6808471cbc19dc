"""The one way in which an output can fail, and what may help. Imports nothing of ours."""

from __future__ import annotations

from enum import StrEnum

from attrs import frozen


class Cure(StrEnum):
    """What may help an output that could not be kept. Only one of these costs anything at the provider."""

    NONE = "none"
    """Nothing: it will be the same every time."""
    WAIT = "wait"
    """The same again, a little later."""
    FRESH = "fresh"
    """Another URL of the same output, which the provider may still give."""
    ANEW = "anew"
    """Another prediction: what this one made is no good."""


@frozen
class OutputRefused(Exception):
    """An output could not be kept. `code` is stable."""

    code: str
    message: str
    action: str
    cure: Cure = Cure.NONE

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def unavailable(why: str) -> OutputRefused:
    """The provider's file server, or the way to it, fails for now."""
    words = f"The provider's output could not be fetched ({why})."
    return OutputRefused("output_unavailable", words, "It is tried again by itself.", Cure.WAIT)


def not_stored(why: str) -> OutputRefused:
    """The place where outputs are kept fails for now."""
    words = f"The output could not be stored ({why})."
    return OutputRefused("store_failed", words, "It is tried again by itself; nothing is bought again.", Cure.WAIT)


def bad(words: str) -> OutputRefused:
    """What the provider made cannot be used."""
    return OutputRefused("bad_output", words, "Try again: it is made, and paid for, once more.", Cure.ANEW)
