"""Users' preferences, read through a cache in memory and written through it. Implements `engine.ports.UserStore`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Any, LiteralString

from attrs import define, field

from persistence.encoding import clean_text, document
from persistence.pool import Pool

CACHED = 10_000
FRESH = 60.0
"""Seconds for which a cached entry is believed: another server on the same database may have changed the row."""

GET: LiteralString = "SELECT preferences FROM users WHERE external_id = %s"
PUT: LiteralString = """
    INSERT INTO users (external_id, preferences) VALUES (%s, %s)
    ON CONFLICT (external_id) DO UPDATE SET preferences = excluded.preferences, updated_at = now()
"""


@define(eq=False)
class PostgresUserStore:
    """Reads raise StorageDown only for users who are not in the cache; writes whenever the database is away."""

    pool: Pool
    clock: Callable[[], float] = monotonic
    _cache: OrderedDict[str, tuple[float, dict[str, Any]]] = field(init=False, factory=OrderedDict)

    async def preferences(self, user: str) -> dict[str, Any]:
        """The user's preferences; empty when none were ever stored."""
        known = self._cache.get(user)
        if known and (self.clock() - known[0] < FRESH or not self.pool.up):
            self._cache.move_to_end(user)
            return known[1]
        async with self.pool.connection() as connection:
            cursor = await connection.execute(GET, (clean_text(user),))
            row = await cursor.fetchone()
        return self._keep(user, row[0] if row else {})

    async def put_preferences(self, user: str, preferences: dict[str, Any]) -> None:
        """Stores all preferences of the user in place of the old ones; in the cache only once they are stored."""
        async with self.pool.connection() as connection:
            await connection.execute(PUT, (clean_text(user), document(preferences)))
        self._keep(user, preferences)

    def _keep(self, user: str, preferences: dict[str, Any]) -> dict[str, Any]:
        self._cache[user] = (self.clock(), preferences)
        self._cache.move_to_end(user)
        while len(self._cache) > CACHED:
            self._cache.popitem(last=False)
        return preferences
