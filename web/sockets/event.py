"""An event on its way out: encoded once for each wire, however many members it goes to.

Pure; may import `frames` and `serializers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

from web.sockets.frames import Wire
from web.sockets.serializers import Serializer


class Merge(Enum):
    """What may become of an event while its client reads too slowly."""

    NEVER = "never"
    NEWEST = "newest"
    """A newer one takes its place."""
    JOIN = "join"
    """Neighbours become one (`Event.joined`)."""


class Event:
    """One event of one topic. Two of the same `event` name on one topic are of the same kind, for merging.

    `alone`: it is for one member only, and says so where the wire makes a difference (binary payloads).
    """

    __slots__ = ("_tails", "alone", "event", "merge", "payload", "topic")

    def __init__(
        self, topic: str, event: str, payload: Any, merge: Merge = Merge.NEVER, *, alone: bool = False
    ) -> None:
        self.topic = topic
        self.event = event
        self.payload = payload
        self.merge = merge
        self.alone = alone
        self._tails: dict[str, Wire] = {}

    def tail(self, serializer: Serializer) -> Wire:
        """See `Serializer.tail`. Raises Unencodable."""
        found = self._tails.get(serializer.version)
        if found is None:
            found = self._tails[serializer.version] = serializer.tail(self.topic, self.event, self.payload)
        return found

    @property
    def weight(self) -> int:
        """About how many bytes a held event of kind JOIN adds to what is held."""
        return 0

    def joined(self, later: Sequence[Event]) -> Event:
        """This event and the later ones as one; only events of kind JOIN are asked."""
        raise NotImplementedError(self.event)
