"""Answers that were given before, for the very same input, of models that opt in (`rules`).

In memory, bounded, newest kept; a restart forgets them. Pure but for its state.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any
from uuid import UUID

import msgspec
from attrs import define, field, frozen

Key = tuple[UUID, str, bytes]
_canonical = msgspec.json.Encoder(order="sorted")


@frozen
class Kept:
    """A text answer; `at` is of the same clock that asks."""

    text: str
    at: float


def key_of(model_id: UUID, version: str, given: dict[str, Any]) -> Key:
    """The same for the same input, whatever the order of its fields."""
    return model_id, version, _canonical.encode(given)


@define
class AnswerCache:
    """At most `most` answers and `most_characters` of text."""

    most: int = 10_000
    most_characters: int = 50_000_000
    _kept: OrderedDict[Key, Kept] = field(factory=OrderedDict)
    _characters: int = 0

    def get(self, key: Key, oldest: float) -> Kept | None:
        """The answer, if it was given at `oldest` or later."""
        kept = self._kept.get(key)
        if kept is None or kept.at < oldest:
            return None
        self._kept.move_to_end(key)
        return kept

    def put(self, key: Key, kept: Kept) -> None:
        self._drop(key)
        self._kept[key] = kept
        self._characters += len(kept.text)
        while len(self._kept) > self.most or self._characters > self.most_characters:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: Key) -> None:
        gone = self._kept.pop(key, None)
        if gone is not None:
            self._characters -= len(gone.text)
