"""Who has been shut out: one row a user, few in all. The doors ask a copy in `web.auth.guard`. May import psycopg."""

from __future__ import annotations

from attrs import define

from persistence.encoding import storable
from persistence.pool import Pool

PUT = """
    INSERT INTO revocations (external_id, revoked_by) VALUES (%s, %s)
    ON CONFLICT (external_id) DO UPDATE SET revoked_by = excluded.revoked_by, updated_at = now()
"""


@define(eq=False)
class RevocationStore:
    """Every method raises StorageDown when the database is away."""

    pool: Pool

    async def all(self) -> frozenset[str]:
        """The users who are shut out."""
        async with self.pool.connection() as connection:
            cursor = await connection.execute("SELECT external_id FROM revocations")
            return frozenset(user for (user,) in await cursor.fetchall())

    async def put(self, user: str, by: str) -> None:
        """Shuts a user out; `by` is the operator. A name that no row can have has no tasks here either."""
        if storable(user) and storable(by):
            async with self.pool.connection() as connection:
                await connection.execute(PUT, (user, by))

    async def remove(self, user: str) -> None:
        """Lets a user in again."""
        if storable(user):
            async with self.pool.connection() as connection:
                await connection.execute("DELETE FROM revocations WHERE external_id = %s", (user,))
