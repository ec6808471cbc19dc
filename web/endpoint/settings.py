"""How the endpoint listens and what it lets a client do. Pure data."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

from web.endpoint.forwarded import Proxies

KIB = 1024
MIB = 1024 * KIB


@frozen
class EndpointSettings:
    """Times are in seconds, sizes in bytes. A limit of 0 means: none.

    The limits bound what one client can make the server hold: at most `max_header` + `max_body` while it speaks
    HTTP, and `max_message` + `max_outbox` once it is a WebSocket.
    """

    host: str = "127.0.0.1"
    port: int = 0
    backlog: int = 1024
    certificate: str = ""
    key: str = ""
    key_password: str = ""

    # how many may be connected: in all, from one address (an IPv6 /64 counts as one), of one user (WebSockets)
    max_connections: int = 20_000
    max_per_address: int = 0
    max_per_user: int = 0

    proxies: Proxies = field(factory=Proxies)
    """Who may say whom they speak for. Their own connections count towards no address."""

    max_buffered: int = 256 * MIB
    """Bodies and messages that are still on their way, of all clients together."""

    # HTTP
    max_header: int = 16 * KIB
    max_body: int = 1 * MIB
    large_bodies: Mapping[bytes, int] = field(factory=dict)
    """Paths that take more, and how much. The application reads such a body as it comes, within bounds of its own."""
    header_timeout: float = 10.0
    """From a request's first byte (or a connection's beginning) to the end of its headers."""
    keep_alive_timeout: float = 60.0
    body_timeout: float = 20.0
    """A body may take this long, and longer only while it comes faster than `min_body_rate` bytes a second."""
    min_body_rate: int = 1 * KIB
    write_timeout: float = 15.0
    """A client that takes no byte for so long is dropped; so is one that does not end a TLS handshake."""
    linger: float = 1.0
    """After a refusal the client's bytes are thrown away for so long, so that it gets to read the answer."""

    # WebSocket
    max_message: int = 1 * MIB
    max_outbox: int = 1 * MIB
    high_water: int = 64 * KIB
    idle_timeout: float = 60.0
    close_timeout: float = 5.0
    """How long a closing handshake may take."""
    compression: bool = False
    """Whether permessage-deflate is accepted: about 70 KiB of memory a connection that uses it."""

    # the end
    drain_timeout: float = 10.0
    """From the beginning of a drain until whoever is still there is dropped."""

    def most_for(self, target: bytes) -> int:
        """Bytes that a body sent to this request target may have."""
        return self.large_bodies.get(target.partition(b"?")[0], self.max_body) if self.large_bodies else self.max_body
