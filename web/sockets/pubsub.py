"""Who listens to a topic, and telling them all: an event is encoded once and written to each member's lane.

A broadcast does not pass through the members' processes, unless a member's channel intercepts the event. May import
`engine.otp` and the lanes.
"""

from __future__ import annotations

from typing import Any

from attrs import frozen

from engine.otp import DUPLICATE, ChildSpec, Registry, send
from web.sockets.event import Event
from web.sockets.lane import Lane


@frozen
class Intercepted:
    """A broadcast on its way through a member's own process (`Channel.handle_out`)."""

    event: str
    payload: Any


@frozen
class Member:
    """A joined channel: how to write to it, and which events it wants to see first."""

    lane: Lane
    intercepts: frozenset[str]


class PubSub:
    """The members of all topics of one server. A process that ends is forgotten by itself."""

    def __init__(self, name: str = "pubsub") -> None:
        self._members: Registry = Registry(keys=DUPLICATE, name=name)

    def spec(self) -> ChildSpec:
        """The registry underneath, for the supervision tree; it stands before the sockets."""
        return self._members.spec()

    def subscribe(self, lane: Lane, intercepts: frozenset[str]) -> None:
        """The calling process becomes a member of the lane's topic."""
        self._members.register(lane.topic, Member(lane, intercepts))

    def broadcast(self, topic: str, event: str, payload: Any, but: Lane | None = None) -> None:
        """Tells all members, except the one that writes through `but`. Raises Unencodable, with nothing sent."""
        told = Event(topic, event, payload)
        for pid, member in self._members.lookup(topic):
            if event in member.intercepts:
                if member.lane is not but:
                    send(pid, Intercepted(event, payload))
            elif member.lane is not but:
                member.lane.push(told)

    def count(self, topic: str) -> int:
        return len(self._members.lookup(topic))
