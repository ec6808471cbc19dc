"""Importing a model of Replicate's into the registry, and refreshing it. `ImportRoutes` is made by the application."""

from __future__ import annotations

from typing import Annotated
from uuid import uuid4

import msgspec
import structlog
from attrs import define, evolve

from engine.errors import UserError
from engine.models.imported import Reference, read_model, refreshed
from engine.ports import Model
from engine.providers.protocol import FailureKind
from engine.providers.replicate import Replicate
from engine.providers.replicate_api import Lost, Refusal
from web.http.body import decode
from web.http.exchange import Answer, Ask, json
from web.http.house import House
from web.http.models import Name, view
from web.http.route import Route

audit = structlog.get_logger("elwift.audit")


class ImportModel(msgspec.Struct, forbid_unknown_fields=True):
    """`model` is `owner/name`, or `owner/name:version`; `name` is what it is called here, its own name if not given."""

    model: Annotated[str, msgspec.Meta(min_length=3, max_length=300)]
    name: Name | None = None
    price: dict[str, float] | None = None


_import_model = msgspec.json.Decoder(ImportModel)


@define(eq=False)
class ImportRoutes:
    """The call. `provider` is None when there is no token for Replicate."""

    provider: Replicate | None

    @property
    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                "POST",
                "/api/models/import",
                self.bring,
                "Import a model of Replicate's, or refresh it",
                answer="Model",
                status=201,
                body="ImportModel",
                refusals=(
                    "body_too_large",
                    "unsupported_media_type",
                    "invalid_json",
                    "invalid_encoding",
                    "invalid_request",
                    "import_unavailable",
                    "import_failed",
                    "not_importable",
                    "no_such_model",
                    "name_taken",
                    "storage_down",
                ),
                operator=True,
                tag="models",
            ),
        )

    async def bring(self, house: House, ask: Ask) -> Answer:
        """201 for a model or version that was not here; 200 for one that was, with what operators had changed of it."""
        wish = decode(ask.headers.get("content-type"), ask.body, _import_model)
        wanted = Reference.parse(wish.model)
        said, version = await self._asked(wanted)
        fresh = read_model(uuid4(), wanted, said, version, wish.name)
        model, known = _merged(house, fresh, wish)
        await house.runtime.models.put(model)
        audit.info("operator", action="import_model", user=ask.identity.user, model=model.slug, version=model.version)
        location = (("Location", f"/api/models/{model.name}"),)
        return json(view(house, model, operator=True), 200 if known else 201, location)

    async def _asked(self, wanted: Reference) -> tuple[object, object]:
        if self.provider is None:
            words = "There is no token for Replicate. Set ELWIFT_REPLICATE_API_TOKEN and start the server again."
            raise UserError("import_unavailable", words)
        try:
            return await self.provider.api.model(wanted.slug, wanted.version)
        except Refusal as no:
            raise _refused(wanted, no) from no
        except Lost as lost:
            words = f"Replicate gave no answer that can be read ({lost.why}). Try again."
            raise UserError("import_failed", words, retry_after=5.0) from lost


def _merged(house: House, fresh: Model, wish: ImportModel) -> tuple[Model, bool]:
    """The row to write, and whether this version was here before. A new version takes over what operators set."""
    versions = house.runtime.models.of_origin(fresh.provider, fresh.owner, fresh.slug)
    same = next((model for model in versions if model.version == fresh.version), None)
    known = same or (versions[-1] if versions else None)
    model = fresh if known is None else refreshed(known, fresh)
    if same is None:
        model = evolve(model, id=fresh.id)
    model = model if wish.name is None else evolve(model, name=wish.name)
    return model if wish.price is None else evolve(model, price=wish.price), same is not None


def _refused(wanted: Reference, no: Refusal) -> UserError:
    if no.gone:
        which = f"{wanted.slug}:{wanted.version}" if wanted.version else wanted.slug
        return UserError("no_such_model", f"Replicate has no model {which}, or it is not for our token to see.")
    failed = no.failed
    later = failed.kind in (FailureKind.UNAVAILABLE, FailureKind.RETRYABLE)
    return UserError(
        "import_failed", f"{failed.message} {failed.action}", retry_after=(failed.retry_after or 5.0) if later else None
    )
