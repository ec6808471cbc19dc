"""How many connections there may be, in all and from one address, and how much they may make us hold.

Pure bookkeeping; imports nothing of ours.
"""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

from attrs import define, field

SPARE_FILES = 256
"""File descriptors kept for everything that is not a client: the database, models, logs."""


def neighbourhood(client: str) -> str:
    """What counts as one address: an IPv4 address, or an IPv6 /64, since one host has as many of those as it likes."""
    try:
        address = ip_address(client.partition("%")[0])
    except ValueError:
        return client
    if not isinstance(address, IPv6Address):
        return client
    return str(address.ipv4_mapped or IPv6Address(int(address) >> 64 << 64))


def allow_files(wanted: int) -> int:
    """Raises this process's limit of open files as far as `wanted` connections need; how many it then allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = wanted + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < need:
        soft = need if hard == resource.RLIM_INFINITY else min(need, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - SPARE_FILES))


@define
class Census:
    """Who is connected now. 0 means: no limit. `spared` are addresses that many come from, as a proxy's."""

    max_connections: int
    max_per_address: int = 0
    spared: Callable[[str], bool] = lambda client: False
    total: int = field(default=0, init=False)
    _by_address: Counter[str] = field(factory=Counter, init=False)

    def enter(self, client: str) -> int:
        """Counts a newcomer and answers 0; or counts nothing and answers the status to refuse it with."""
        if self.max_connections and self.total >= self.max_connections:
            return 503
        if self.max_per_address and not self.spared(client):
            place = neighbourhood(client)
            if self._by_address[place] >= self.max_per_address:
                return 429
            self._by_address[place] += 1
        self.total += 1
        return 0

    def leave(self, client: str) -> None:
        """Undoes `enter`."""
        self.total -= 1
        if self.max_per_address and not self.spared(client):
            place = neighbourhood(client)
            self._by_address[place] -= 1
            if not self._by_address[place]:
                del self._by_address[place]


@define
class Budget:
    """Bytes of bodies and messages that are still on their way, of all clients together. 0 means: no limit.

    Each client has limits of its own, but twenty thousand times one megabyte is more than there is.
    """

    limit: int = 0
    held: int = field(default=0, init=False)

    def change(self, by: int) -> bool:
        """Counts bytes more, or less; whether that is within the limit."""
        self.held += by
        return not self.limit or self.held <= self.limit
