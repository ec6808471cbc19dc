"""How long a finished prediction's files are waited for: in place, then again and again, but not for ever. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen


@frozen
class Patience:
    """Seconds. Within `in_place` the attempt keeps its worker and tries again by itself, from every `first` to every
    `longest`. Then it is set aside, for `aside` at first and longer each time, up to `aside_longest`. What exists in
    this process alone is not set aside before `at_most`; nothing is waited for longer than `all_in_all`."""

    first: float = 0.5
    longest: float = 10.0
    in_place: float = 30.0
    aside: float = 5.0
    aside_longest: float = 300.0
    at_most: float = 3600.0
    all_in_all: float = 24 * 3600.0

    def pauses(self) -> Iterator[float]:
        """How long to wait after each try that failed; whoever tries sets the deadline."""
        pause = self.first
        while True:
            yield pause
            pause = min(pause * 2, self.longest)

    def until(self, since: float, now: float) -> float | None:
        """When a result that waits since `since` is tried again (Unix times); None: it has waited long enough."""
        waited = now - since
        if waited >= self.all_in_all:
            return None
        return now + min(max(waited / 2, self.aside), self.aside_longest)
