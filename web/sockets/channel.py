"""How a channel is written: a class with the callbacks it needs, one instance for each joined topic.

    class Room(Channel):
        intercepts = frozenset({"shout"})

        async def join(self, params):
            if params.get("name") is None:
                return Refused({"reason": "who_are_you"})
            return {"topic": self.topic}

        async def handle_in(self, event, payload):
            match event:
                case "shout":
                    self.broadcast("shout", payload)
                    return None
                case "count":
                    self.later = self.asked()           # answered by self.reply(self.later, ok(…)) when it is known
                    return None
                case "bye":
                    return End(reply=ok())
            return error({"reason": "unknown_event"})

Each instance belongs to one process and to nothing else (see `channel_server`): its attributes are its state, its
callbacks run one at a time, and a callback that raises ends this channel alone: the client is sent `phx_error` and
joins again. What happens elsewhere arrives at `handle_info`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from attrs import field, frozen

from engine.otp import NORMAL, Reason
from web.auth import Identity
from web.sockets.event import Event
from web.sockets.frames import Ref
from web.sockets.lane import Lane
from web.sockets.pubsub import PubSub
from web.sockets.transport import Upgrade


@frozen
class Connection:
    """What a socket's channels know of its client.

    `params` are those of the URL, a later one wins; `variables` those of the path, where it has some.
    """

    identity: Identity
    upgrade: Upgrade
    params: Mapping[str, str]
    pubsub: PubSub = field(repr=False)
    variables: Mapping[str, str] = field(factory=dict)


@frozen
class Reply:
    """An answer to a client's message; `response` may be any JSON, but objects are what all clients understand."""

    status: str
    response: Any


def ok(response: Any = None) -> Reply:
    return Reply("ok", {} if response is None else response)


def error(response: Any = None) -> Reply:
    return Reply("error", {} if response is None else response)


@frozen
class Refused:
    """A join that is not allowed; the client is told `response` and tries again by its own schedule."""

    response: Mapping[str, Any]


@frozen
class End:
    """The channel ends: after `reply`, `phx_close` for a clean reason, `phx_error` for any other."""

    reason: Reason = NORMAL
    reply: Reply | None = None


@frozen
class Asked:
    """Names a client's message, so that it can be answered after its handler has returned."""

    join_ref: Ref
    ref: Ref


class Channel:
    """Override what is needed. `lane` and `connection` are there from the beginning."""

    intercepts: ClassVar[frozenset[str]] = frozenset()
    """Broadcast events that are handed to `handle_out` instead of being sent as they are."""

    def __init__(self, lane: Lane, connection: Connection) -> None:
        self.lane = lane
        self.connection = connection
        self._asked: Asked | None = None

    # --- callbacks ------------------------------------------------------------------------------------

    async def join(self, params: Any) -> Mapping[str, Any] | Refused:
        """Whether the client may join; the answer is its `response`. What is pushed here follows the reply."""
        return {}

    async def handle_in(self, event: str, payload: Any) -> Reply | End | None:
        """A message from the client. None: no answer now."""
        return error({"reason": "unknown_event"})

    async def handle_info(self, message: Any) -> End | None:
        """A message from another process."""
        return None

    async def handle_out(self, event: str, payload: Any) -> End | None:
        """A broadcast that this channel intercepts: push what this client is to see of it."""
        self.push(event, payload)
        return None

    async def terminate(self, reason: Reason) -> None:
        """The channel ends by itself, is left, or crashed. Not called when its socket goes, or on a kill."""

    # --- what a channel may do ------------------------------------------------------------------------

    @property
    def topic(self) -> str:
        return self.lane.topic

    @property
    def identity(self) -> Identity:
        return self.connection.identity

    def push(self, event: str, payload: Any) -> None:
        """Sends an event (a JSON object, or bytes) to this client. Raises Unencodable."""
        self.lane.push(Event(self.topic, event, payload, alone=True))

    def asked(self) -> Asked:
        """Names the message that `handle_in` is handling. Raises RuntimeError anywhere else."""
        if self._asked is None:
            raise RuntimeError("no message of the client is being handled")
        return self._asked

    def reply(self, to: Asked, answer: Reply) -> None:
        """Answers a message of the client, at any time after it came. Raises Unencodable."""
        self.lane.reply(to.join_ref, to.ref, answer.status, answer.response)

    def broadcast(self, event: str, payload: Any) -> None:
        """Sends an event to everybody on this topic, this client too. Raises Unencodable."""
        self.connection.pubsub.broadcast(self.topic, event, payload)

    def broadcast_from(self, event: str, payload: Any) -> None:
        """Sends an event to everybody else on this topic. Raises Unencodable."""
        self.connection.pubsub.broadcast(self.topic, event, payload, but=self.lane)


MakeChannel = Callable[[Lane, Connection], Channel]
"""Makes the channel of a join: a class, or a function that hands it what else it needs."""
