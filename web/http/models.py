"""The models that tasks may name."""

from __future__ import annotations

from engine.errors import UserError
from web.http.exchange import Answer, Ask, json
from web.http.house import House
from web.views import model_view


async def index(house: House, ask: Ask) -> Answer:
    """The models in use, with the schema of their input and their defaults."""
    models = house.runtime.models
    default = models.default_name()
    return json({"models": [model_view(model, model.name == default) for model in models.active()], "default": default})


async def show(house: House, ask: Ask) -> Answer:
    """One model, by name."""
    models = house.runtime.models
    model = models.find(ask.args["name"])
    if model is None:
        raise UserError("no_such_model", "There is no model of this name. GET /api/models lists those in use.")
    return json(model_view(model, model.name == models.default_name()))
