"""The handshake: who may connect, over which wire, and the Socket process that is started for them.

The order of the checks is phoenix's: origin, token, subprotocol, version, and what the application says. A refusal
is made before anything is accepted, for a client that is let in and then thrown out comes back at once, for ever.

May import `engine.otp`, `web.auth` and the Socket process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from urllib.parse import parse_qsl

from attrs import evolve, field, frozen

from engine.otp import TEMPORARY, Address, Pid, start_child, worker
from web.auth import Credentials, Denied, Guard, Identity, OriginPolicy, negotiate
from web.endpoint.faults import FaultLog
from web.sockets import serializers
from web.sockets.channel import Connection
from web.sockets.pubsub import PubSub
from web.sockets.serializers import Serializer
from web.sockets.socket import Protocol, Socket
from web.sockets.transport import Accept, Transport, Upgrade

SPOKEN = ("phoenix",)
"""The subprotocols that are answered; a client that offers others alone is refused."""

MOST_PARAMS = 100

KEPT_HEADERS = frozenset({"traceparent", "tracestate"})
"""What a channel may still want to know; a browser's other headers weigh more than its whole connection."""


@frozen
class Refusal:
    """An HTTP status and no body: the client learns no more, and the log has the reason."""

    status: int
    why: str


def everybody(identity: Identity, upgrade: Upgrade) -> int:
    return 0


@frozen
class Door:
    """Where clients connect. `admit` has the last word: 0 lets in, any other number is the status of the refusal."""

    protocol: Protocol
    pubsub: PubSub = field(repr=False)
    guard: Guard = field(repr=False)
    origins: OriginPolicy
    faults: FaultLog = field(factory=FaultLog, repr=False)
    sockets: Address = "sockets"
    spoken: tuple[str, ...] = SPOKEN
    admit: Callable[[Identity, Upgrade], int] = everybody

    def decide(self, upgrade: Upgrade, variables: Mapping[str, str] | None = None) -> Accept | Refusal:
        """The answer to an upgrade. `variables` are those of the route's path."""
        if not self.origins.allows(upgrade.header("origin"), upgrade.header("host")):
            return self._refuse(upgrade, 403, "origin not allowed")
        identity = self.guard.authenticate(Credentials.of(upgrade.headers, upgrade.query, upgrade.subprotocols))
        if isinstance(identity, Denied):
            return self._refuse(upgrade, 403, f"token {identity.code}")
        spoken, subprotocol = negotiate(upgrade.subprotocols, self.spoken)
        if not spoken:
            return self._refuse(upgrade, 403, "no subprotocol in common")
        params = params_of(upgrade.query)
        serializer = None if params is None else _serializer(params)
        if params is None or serializer is None:
            return self._refuse(upgrade, 403, "unknown version of the wire")
        status = self.admit(identity, upgrade)
        if status:
            return self._refuse(upgrade, status, "not admitted")
        kept = tuple((name, value) for name, value in upgrade.headers if name in KEPT_HEADERS)
        connection = Connection(identity, evolve(upgrade, headers=kept), params, self.pubsub, variables or {})
        return self._accept(connection, serializer, subprotocol)

    def _accept(self, connection: Connection, serializer: Serializer, subprotocol: str | None) -> Accept:
        identity = connection.identity
        start = partial(self._start, serializer, connection)
        return Accept(start, subprotocol, identity.user, identity.socket_id, identity.expires_at)

    async def _start(self, serializer: Serializer, connection: Connection, transport: Transport) -> Pid:
        spec = worker(Socket, transport, serializer, connection, self.protocol, id="socket", restart=TEMPORARY)
        return await start_child(self.sockets, spec)

    def _refuse(self, upgrade: Upgrade, status: int, why: str) -> Refusal:
        self.faults.client("socket_refused", upgrade.client, why)
        return Refusal(status, why)


def _serializer(params: Mapping[str, str]) -> Serializer | None:
    """A `vsn` that is written as a list or a map (`vsn[]=2.0.0`) is no version, rather than a missing one."""
    if any(name.startswith("vsn[") for name in params):
        return None
    return serializers.negotiate(params.get("vsn"))


def params_of(query: str) -> dict[str, str] | None:
    """The parameters of a URL, the last of equal names; None when there are too many. `+` is a space."""
    try:
        return dict(parse_qsl(query, keep_blank_values=True, max_num_fields=MOST_PARAMS))
    except ValueError:
        return None
