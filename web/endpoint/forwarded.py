"""Who is behind a proxy: the client's address and scheme, as proxies that we trust tell of them.

Anybody can write these headers, so they count only when they come from a trusted network, and are read from the right:
each proxy adds at that end what it saw itself. The first address from there that is not a trusted proxy's is the
client's; what stands left of it is hearsay. One of the two notations is read, the one that our proxies write: the other
comes through them unseen, from whoever likes to lie. Pure; imports nothing of ours but errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from attrs import frozen

from engine.errors import UserError

Address = IPv4Address | IPv6Address
Headers = Iterable[tuple[bytes, bytes]]

SCHEMES = frozenset({"http", "https"})
_TOKEN = r"[-!#$%&'*+.^_`|~0-9A-Za-z]+"
_PAIR = re.compile(rf'\s*({_TOKEN})=(?:({_TOKEN})|"((?:[^"\\]|\\.)*)")\s*(?:;|$)')
_ELEMENT = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')
_WITH_PORT = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::\d{1,5})?|(\d{1,3}(?:\.\d{1,3}){3}):\d{1,5}")


@frozen
class Hop:
    """What one proxy says of who came to it. None: it does not say, or not in a way that can be read."""

    client: Address | None
    scheme: str | None = None


@frozen
class Proxies:
    """`networks` are trusted; `standard`: they write `Forwarded` (RFC 7239), and not the older X-Forwarded-*."""

    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    standard: bool = False

    @classmethod
    def parse(cls, networks: str, header: str) -> Proxies:
        """Reads `10.0.0.0/8, ::1` and `x-forwarded-for` or `forwarded`. Raises UserError (`bad_settings`)."""
        if header not in ("x-forwarded-for", "forwarded"):
            raise UserError("bad_settings", "proxy_header must be x-forwarded-for or forwarded.")
        try:
            found = tuple(ip_network(word.strip()) for word in networks.split(",") if word.strip())
        except ValueError as problem:
            raise UserError("bad_settings", f"trusted_proxies: {problem}.") from problem
        return cls(found, header == "forwarded")

    def __bool__(self) -> bool:
        return bool(self.networks)

    def trusts(self, peer: str) -> bool:
        """Whether whoever is connected from this address may speak for others."""
        address = read_address(peer)
        return address is not None and self._trusted(address)

    def _trusted(self, address: Address) -> bool:
        return any(address in network for network in self.networks)

    def seen(self, peer: str, scheme: str, headers: Headers) -> tuple[str, str]:
        """The client's address and scheme of a request that `peer` sent over `scheme`."""
        if not self.trusts(peer):
            return peer, scheme
        for hop in reversed(self._hops(headers)):
            scheme = hop.scheme or scheme
            if hop.client is None:
                break  # whoever it was, the last one who is known stands for them
            peer = str(hop.client)
            if not self._trusted(hop.client):
                break
        return peer, scheme

    def _hops(self, headers: Headers) -> list[Hop]:
        return list(standard_hops(headers) if self.standard else older_hops(headers))


def standard_hops(headers: Headers) -> Iterator[Hop]:
    """The hops of `Forwarded`, first to last. An element that cannot be read says nothing."""
    for element in _ELEMENT.findall(_joined(headers, b"forwarded")):
        pairs = _pairs(element)
        scheme = pairs.get("proto", "").lower()
        yield Hop(read_address(pairs.get("for", "")), scheme if scheme in SCHEMES else None)


def _pairs(element: str) -> dict[str, str]:
    found: dict[str, str] = {}
    at = 0
    while at < len(element):
        pair = _PAIR.match(element, at)
        if pair is None or pair[1].lower() in found:
            return {}
        found[pair[1].lower()] = pair[2] or re.sub(r"\\(.)", r"\1", pair[3] or "")
        at = pair.end()
    return found


def older_hops(headers: Headers) -> Iterator[Hop]:
    """The hops of X-Forwarded-For, with the schemes of X-Forwarded-Proto: one a hop, or one that the last proxy set."""
    headers = list(headers)
    clients = _words(headers, b"x-forwarded-for")
    schemes: list[str | None] = [
        word.lower() if word.lower() in SCHEMES else None for word in _words(headers, b"x-forwarded-proto")
    ]
    if len(schemes) != len(clients):
        unsaid: list[str | None] = [None] * len(clients)
        schemes = unsaid[1:] + schemes[-1:] if clients and schemes else unsaid
    return (Hop(read_address(client), scheme) for client, scheme in zip(clients, schemes, strict=True))


def _words(headers: Headers, name: bytes) -> list[str]:
    text = _joined(headers, name)
    return [word.strip() for word in text.split(",")] if text else []


def _joined(headers: Headers, name: bytes) -> str:
    return ",".join(value.decode("latin-1") for found, value in headers if found == name)


def read_address(text: str) -> Address | None:
    """An address, with or without a port; None for anything else (`unknown`, `_hidden`). An IPv4 address that came in
    the clothes of IPv6 is itself."""
    ported = _WITH_PORT.fullmatch(text)
    try:
        address = ip_address((ported[1] or ported[2]) if ported else text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
