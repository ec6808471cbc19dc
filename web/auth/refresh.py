"""The process that keeps a guard's keys fresh when its key set is at a URL. May import `engine.otp`.

A key set that cannot be fetched is not fatal: the keys known so far stay good, and the next round tries again.
"""

from __future__ import annotations

import logging

import httpx
import trio
from attrs import define, field

from engine.otp import ChildSpec, Start, init_ack
from web.auth.guard import Guard
from web.auth.keys import LARGEST, parse_keys

log = logging.getLogger("elwift.auth")

PERIOD = 600.0
"""Seconds between two fetches when nothing presses."""
AT_MOST_EVERY = 15.0
"""Seconds; unknown keys, which anybody can make up, do not bring the next fetch closer than this."""
PATIENCE = 10.0


@define
class KeyRefresher:
    """`spec` puts it into the tree, before the endpoint: it is up once the first fetch has succeeded or failed."""

    guard: Guard
    period: float = PERIOD
    at_most_every: float = AT_MOST_EVERY
    _wanted: trio.Event = field(factory=trio.Event, init=False)

    @staticmethod
    def needed(guard: Guard) -> bool:
        return "://" in guard.settings.key_set

    def spec(self) -> ChildSpec:
        return ChildSpec(id="keys", start=Start.process(self.run, name="keys"))

    async def run(self) -> None:
        self.guard.on_unknown_key = self._want
        async with httpx.AsyncClient(timeout=PATIENCE, http2=False, follow_redirects=False) as client:
            await self._fetch(client)
            init_ack()
            while True:
                await trio.sleep(self.at_most_every)
                with trio.move_on_after(max(0.0, self.period - self.at_most_every)):
                    await self._wanted.wait()
                self._wanted = trio.Event()
                await self._fetch(client)

    def _want(self) -> None:
        self._wanted.set()

    async def _fetch(self, client: httpx.AsyncClient) -> None:
        url = self.guard.settings.key_set
        try:
            self.guard.keys = parse_keys(await self._get(client, url))
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as problem:
            log.warning("the key set at %s was not fetched, %d keys stay: %s", url, len(self.guard.keys), problem)

    async def _get(self, client: httpx.AsyncClient, url: str) -> bytes:
        async with client.stream("GET", url) as response:
            response.raise_for_status()
            found = b""
            async for chunk in response.aiter_bytes():
                found += chunk
                if len(found) > LARGEST:
                    raise ValueError("the key set is too large")
            return found
