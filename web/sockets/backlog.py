"""How much of what a client said waits to be handled, over all its topics: the brake between a socket and its channels.

Pure; one for each socket, shared by its lanes.
"""

from __future__ import annotations

from typing import Final

MUCH: Final = 262_144
"""Weight that may wait; beyond, the socket reads no more…"""

LITTLE: Final = 65_536
"""…until no more than this is left."""

OVERHEAD: Final = 256
"""What a message weighs beside its bytes, so that many small ones count, too."""


class Backlog:
    """Weights in bytes. `paused`: the socket has stopped reading, and is told when there is room."""

    __slots__ = ("paused", "weight")

    def __init__(self) -> None:
        self.weight = 0
        self.paused = False

    def add(self, size: int) -> int:
        """A message of `size` bytes waits; answers its weight."""
        weight = size + OVERHEAD
        self.weight += weight
        return weight

    def take(self, weight: int) -> bool:
        """Something has been handled, or is given up; whether the socket is to read on now (it is said once)."""
        self.weight -= weight
        if not self.paused or self.weight > LITTLE:
            return False
        self.paused = False
        return True

    @property
    def full(self) -> bool:
        return self.weight > MUCH
