"""The models that tasks may name: everybody reads them, operators write them."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import msgspec
from attrs import evolve

from engine.errors import UserError
from engine.ports import Model
from web.http.body import JsonObject, decode
from web.http.exchange import Answer, Ask, json
from web.http.house import House
from web.views import model_view

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=r"^[^\x00/]+$")]
_Word = Annotated[str, msgspec.Meta(min_length=1, max_length=500, pattern=r"^[^\x00]+$")]
_Text = Annotated[str, msgspec.Meta(max_length=4000, pattern=r"^[^\x00]*$")]


class WriteModel(msgspec.Struct, forbid_unknown_fields=True):
    """What an operator says of a model. `price` is in US dollars a unit, `fallbacks` are ids in order."""

    name: Name
    provider: _Word
    slug: _Word
    version: Name
    category: Literal["image", "video", "audio", "text", "code"]
    owner: _Word | None = None
    description: _Text | None = None
    documentation_url: _Text | None = None
    input_schema: JsonObject = {}
    defaults: JsonObject = {}
    fallbacks: list[UUID] = []
    price: dict[str, float] = {}
    settings: JsonObject = {}
    is_active: bool = True


class ChangeModel(msgspec.Struct, forbid_unknown_fields=True):
    """What an operator changes of a model; what is not named stays. `price` and `settings` are replaced whole."""

    name: Name | msgspec.UnsetType = msgspec.UNSET
    category: Literal["image", "video", "audio", "text", "code"] | msgspec.UnsetType = msgspec.UNSET
    description: _Text | msgspec.UnsetType | None = msgspec.UNSET
    documentation_url: _Text | msgspec.UnsetType | None = msgspec.UNSET
    input_schema: JsonObject | msgspec.UnsetType = msgspec.UNSET
    defaults: JsonObject | msgspec.UnsetType = msgspec.UNSET
    fallbacks: list[UUID] | msgspec.UnsetType = msgspec.UNSET
    price: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    settings: JsonObject | msgspec.UnsetType = msgspec.UNSET
    is_active: bool | msgspec.UnsetType = msgspec.UNSET


_write_model = msgspec.json.Decoder(WriteModel)
_change_model = msgspec.json.Decoder(ChangeModel)


async def index(house: House, ask: Ask) -> Answer:
    """The models in use, with the schema of their input and their defaults; operators see the others too."""
    models = house.runtime.models
    default = models.default()
    seen = [model for model in models.all() if model.is_active or ask.identity.operator]
    return json(
        {
            "models": [view(house, model, ask.identity.operator) for model in seen],
            "default": default.name if default else None,
        }
    )


async def show(house: House, ask: Ask) -> Answer:
    """One model, by `name` or `name:version`."""
    model = house.runtime.models.find(ask.args["name"])
    if model is None:
        raise UserError("no_such_model", "There is no model of this name. GET /api/models lists those in use.")
    return json(view(house, model, ask.identity.operator))


async def create(house: House, ask: Ask) -> Answer:
    """Adds a model."""
    model = _model(uuid4(), ask)
    await house.runtime.models.put(model)
    return json(view(house, model, operator=True), 201, (("Location", f"/api/models/{model.name}"),))


async def replace(house: House, ask: Ask) -> Answer:
    """Replaces what is known of a model; tasks made before keep what they were made with."""
    known = _known(house, ask)
    model = _model(known.id, ask)
    await house.runtime.models.put(model)
    return json(view(house, model, operator=True))


async def change(house: House, ask: Ask) -> Answer:
    """Changes what is named of a model, such as its price, and nothing else."""
    known = _known(house, ask)
    wish = decode(ask.headers.get("content-type"), ask.body, _change_model)
    given = {name: getattr(wish, name) for name in wish.__struct_fields__}
    named = {name: value for name, value in given.items() if value is not msgspec.UNSET}
    if "fallbacks" in named:
        named["fallbacks"] = tuple(named["fallbacks"])
    model = evolve(known, **named)
    await house.runtime.models.put(model)
    return json(view(house, model, operator=True))


async def remove(house: House, ask: Ask) -> Answer:
    """Removes a model. Those that belong to the system can only be switched off."""
    await house.runtime.models.remove(_known(house, ask).id)
    return Answer(status=204)


def view(house: House, model: Model, operator: bool = False) -> dict[str, Any]:
    """The model as JSON, marked when it is the default; operators see how it is run, too."""
    default = house.runtime.models.default()
    seen = model_view(model, default is not None and model.id == default.id)
    if operator:
        seen |= {"fallbacks": [str(other) for other in model.fallbacks], "settings": model.settings}
    return seen


def _model(model_id: UUID, ask: Ask) -> Model:
    written = decode(ask.headers.get("content-type"), ask.body, _write_model)
    given = {name: getattr(written, name) for name in written.__struct_fields__}
    return Model(id=model_id, **{**given, "fallbacks": tuple(written.fallbacks)})


def _known(house: House, ask: Ask) -> Model:
    try:
        model = house.runtime.models.get(UUID(ask.args["model_id"]))
    except ValueError:
        model = None
    if model is None:
        raise UserError("no_such_model", "There is no model with this id. GET /api/models lists them.")
    return model
