"""The model registry's rows. Implements `engine.ports.ModelStore`; the copy in memory is `engine.models`."""

from __future__ import annotations

from typing import LiteralString
from uuid import UUID

import psycopg
from attrs import define
from psycopg.rows import dict_row

from engine.ports import Model, NameTaken
from persistence.encoding import document
from persistence.pool import Pool

COLUMNS: LiteralString = """
    id, name, provider, owner, slug, version, category, description, documentation_url, input_schema, defaults,
    fallbacks, price, settings, is_active
"""
ALL: LiteralString = f"SELECT {COLUMNS} FROM models ORDER BY updated_at, name, version"
PUT: LiteralString = f"""
    INSERT INTO models ({COLUMNS})
    SELECT {COLUMNS.replace("fallbacks", "coalesce(fallbacks, '{}')")}
    FROM jsonb_to_record(%s) AS m(id uuid, name text, provider text, owner text, slug text, version text,
        category text, description text, documentation_url text, input_schema jsonb, defaults jsonb,
        fallbacks uuid[], price jsonb, settings jsonb, is_active boolean)
    ON CONFLICT (id) DO UPDATE SET name = excluded.name, provider = excluded.provider, owner = excluded.owner,
        slug = excluded.slug, version = excluded.version, category = excluded.category,
        description = excluded.description, documentation_url = excluded.documentation_url,
        input_schema = excluded.input_schema, defaults = excluded.defaults, fallbacks = excluded.fallbacks,
        price = excluded.price, settings = excluded.settings, is_active = excluded.is_active, updated_at = now()
"""


@define(eq=False)
class PostgresModelStore:
    """Every method raises StorageDown when the database is away."""

    pool: Pool

    async def all(self) -> tuple[Model, ...]:
        """Every model, active or not; what was registered last comes last."""
        async with self.pool.connection() as connection:
            cursor = connection.cursor(row_factory=dict_row)
            await cursor.execute(ALL)
            rows = await cursor.fetchall()
        return tuple(Model(**row | {"fallbacks": tuple(row["fallbacks"])}) for row in rows)

    async def put(self, model: Model) -> None:
        """Inserts or replaces by id. Raises NameTaken."""
        async with self.pool.connection() as connection:
            try:
                await connection.execute(PUT, (document(model),))
            except psycopg.errors.UniqueViolation as problem:
                raise NameTaken(f"{model.name} {model.version}") from problem

    async def remove(self, model_id: UUID) -> bool:
        """Deletes a model; False when there was none. Its tasks stay."""
        async with self.pool.connection() as connection:
            cursor = await connection.execute("DELETE FROM models WHERE id = %s", (model_id,))
        return cursor.rowcount > 0
