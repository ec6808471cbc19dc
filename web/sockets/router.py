"""Which channel serves a topic. Pure.

A pattern is a topic in full, or a beginning followed by `*`. The first pattern that fits wins, as declared.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from attrs import frozen

T = TypeVar("T")


@frozen
class Route(Generic[T]):
    """Topics that fit `pattern` are served by `target`."""

    pattern: str
    target: T

    def __attrs_post_init__(self) -> None:
        if "*" in self.pattern[:-1] or not self.pattern:
            raise ValueError(f"a pattern is a topic, or the beginning of topics and a final *: not {self.pattern!r}")

    def fits(self, topic: str) -> bool:
        if self.pattern.endswith("*"):
            return topic.startswith(self.pattern[:-1])
        return topic == self.pattern


@frozen
class Router(Generic[T]):
    """The routes of one socket endpoint, in the order in which they are tried."""

    routes: tuple[Route[T], ...]

    @classmethod
    def of(cls, *routes: tuple[str, T]) -> Router[T]:
        return cls(tuple(Route(pattern, target) for pattern, target in routes))

    def match(self, topic: str) -> T | None:
        return next((route.target for route in self.routes if route.fits(topic)), None)
