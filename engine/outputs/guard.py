"""Where outputs may be fetched from: host rules as pure functions, and a network backend that connects to nothing else.

A provider's answer names the URL, so the URL is untrusted: it could point into our own network. The host must be one of
the provider's; the address that it resolves to must be public; and the connection goes to the very address that was
checked, so that a second look-up cannot answer differently. May import httpcore and trio.
"""

from __future__ import annotations

import ssl
import typing
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import SplitResult, quote, urlsplit

import httpcore
import trio
from attrs import frozen
from httpcore._backends.trio import TrioBackend

from engine.outputs.errors import OutputRefused

SocketOptions = Iterable[typing.Any]
LONGEST_URL = 8192
NAT64 = IPv6Network("64:ff9b::/96")
SAFE = "!#$%&'()*+,/:;=?@[]~-._"
"""Characters of a URL that stay as they are; anything else is percent-encoded."""


@frozen
class Policy:
    """What a provider's outputs may be fetched from.

    `hosts`: names; `*.example.com` means every name below it and the name itself; `*` any public host. They are
    spoken to by https, on port 443 or on the one that is named (`example.com:8443`). `private`: `host:port` of servers
    of our own (a Cog server on this machine), which may have any address and speak plain HTTP.
    """

    hosts: tuple[str, ...] = ()
    private: tuple[str, ...] = ()

    def is_private(self, parts: SplitResult) -> bool:
        return f"{parts.hostname}:{parts.port or _default_port(parts.scheme)}" in self.private

    def allows(self, host: str, port: int | None) -> bool:
        return any(_matches(pattern, host, port or 443) for pattern in self.hosts)


def check_url(url: str, policy: Policy) -> SplitResult:
    """The parts of a URL that the policy lets us fetch, in ASCII. Raises OutputRefused (`forbidden_url`)."""
    if len(url) > LONGEST_URL:
        raise _forbidden("its URL is too long")
    try:
        parts = urlsplit(quote(url, safe=SAFE))
        host = (parts.hostname or "").rstrip(".").lower()
        port = parts.port
    except ValueError:
        raise _forbidden("it is not a URL") from None
    if parts.username is not None or parts.password is not None or not host:
        raise _forbidden("its URL has no host, or has credentials")
    if parts.scheme in ("http", "https") and policy.is_private(parts):
        return parts
    if parts.scheme != "https":
        raise _forbidden("it is not an https URL")
    if not policy.allows(host, port):
        raise _forbidden(f"the host {host[:100]} is not one of the provider's")
    return parts


def is_public(address: str) -> bool:
    """Whether an IP address is one that the world can reach; IPv4 inside IPv6 is looked at as what it is."""
    ip = ip_address(address.partition("%")[0])
    inner = _inner(ip)
    return ip.is_global and not ip.is_multicast and (inner is None or is_public(str(inner)))


def _inner(ip: IPv4Address | IPv6Address) -> IPv4Address | None:
    if isinstance(ip, IPv4Address):
        return None
    return IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else ip.ipv4_mapped or ip.sixtofour


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects by name, but only to a public address (or to a host:port that the policy names as ours)."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._inner = TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: SocketOptions | None = None,
    ) -> httpcore.AsyncNetworkStream:
        address = host if f"{host}:{port}" in self._policy.private else await _public_address(host, port)
        return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


def guarded_pool(policy: Policy, context: ssl.SSLContext | None = None) -> httpcore.AsyncConnectionPool:
    """A pool for fetching outputs: HTTP/1.1, no proxies, no redirects followed by themselves."""
    return httpcore.AsyncConnectionPool(
        ssl_context=context or ssl.create_default_context(),
        max_connections=32,
        max_keepalive_connections=8,
        keepalive_expiry=10.0,
        network_backend=GuardedBackend(policy),
    )


async def _public_address(host: str, port: int) -> str:
    """The one address that is connected to. One private address among several is enough to refuse them all."""
    found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(map(is_public, addresses)):
        raise _forbidden(f"the host {host[:100]} has an address inside a private network")
    return addresses[0]


def _matches(pattern: str, host: str, port: int) -> bool:
    name, _, named = pattern.partition(":")
    if port != int(named or 443):
        return False
    if name.startswith("*."):
        return host == name[2:] or host.endswith(name[1:])
    return name in ("*", host)


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _forbidden(why: str) -> OutputRefused:
    return OutputRefused(
        "forbidden_url",
        f"The provider's output was not fetched: {why}.",
        "Report this to whoever runs the server; the provider answered with a URL that it should not have.",
    )
