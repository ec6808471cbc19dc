"""The model registry in memory, written through to the store. One object a node; every lookup is a dictionary's.

May import the ports and the errors. The check of an input against its model's schema is in `check`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any
from uuid import UUID

from attrs import frozen

from engine.errors import UserError
from engine.models.check import InputCheck
from engine.models.limits import check_price, check_settings
from engine.models.seeds import SEEDS
from engine.ports import Model, ModelStore, NameTaken


@frozen
class Fitted:
    """A model and an input that fits it, with the model's defaults merged in."""

    model: Model
    input: dict[str, Any]


class Models:
    """What can be asked for. `default` names the model of a task that asks for none."""

    def __init__(
        self,
        store: ModelStore,
        default: str = "local",
        seeds: Iterable[Model] = SEEDS,
        queues: Collection[str] = (),
    ) -> None:
        """`queues`: those that there are, for models that name one; none: any name is taken."""
        self._store = store
        self._queues = tuple(queues)
        self._default = default
        self._seeds = tuple(seeds)
        self._models: dict[UUID, Model] = {}
        self._checks: dict[UUID, InputCheck] = {}
        self._changes = 0
        self.on_change: Callable[[], None] = lambda: None
        for model in self._seeds:
            self._keep(model)

    async def load(self) -> None:
        """Takes over what the store has, and gives it the seeds that it lacks. Raises StorageDown."""
        stored = await self._store.all()
        known = {model.id for model in stored}
        for model in stored:
            self._keep(model)
        for model in self._seeds:
            if model.id not in known:
                await self._store.put(model)

    async def refresh(self) -> None:
        """Takes over what other servers have changed in the store. Raises StorageDown."""
        changes = -1
        while changes != self._changes:  # else something was changed here while the store was being read
            changes = self._changes
            stored = await self._store.all()
        known, checks = self._models, self._checks
        self._models = {model.id: model for model in stored}
        self._checks = {
            model.id: checks[model.id] if known.get(model.id) == model else InputCheck(model.input_schema)
            for model in stored
        }

    def all(self) -> tuple[Model, ...]:
        """Every model, by name and version."""
        return tuple(sorted(self._models.values(), key=lambda model: (model.name, model.version)))

    def get(self, model_id: UUID) -> Model | None:
        return self._models.get(model_id)

    def find(self, name: str) -> Model | None:
        """The model called `name` or `name:version`; without a version, the active one that was registered last."""
        bare, _, version = name.partition(":")
        named = [model for model in self._models.values() if model.name == bare]
        if version:
            named = [model for model in named if model.version == version]
        return next((model for model in reversed(named) if model.is_active), named[-1] if named else None)

    def default(self) -> Model | None:
        """The model of tasks that name none: the configured one, or else any active text model."""
        configured = self.find(self._default)
        if configured is not None and configured.is_active:
            return configured
        return next((model for model in self.all() if model.is_active and model.category == "text"), None)

    def fit(self, name: str | None, given: dict[str, Any]) -> Fitted:
        """The model that is meant and the input as it will be run.

        Raises:
            UserError: `unknown_model`, `inactive_model`, or `invalid_input` with a Problem for each wrong field.
        """
        model = self.default() if name is None else self.find(name)
        if model is None:
            raise UserError("unknown_model", f"There is no model {name!r}." if name else "There is no model to run.")
        if not model.is_active:
            raise UserError("inactive_model", f"The model {model.name!r} is switched off.")
        merged = {**model.defaults, **given}
        self._checks[model.id](merged)
        return Fitted(model, merged)

    async def put(self, model: Model) -> None:
        """Adds or replaces a model, here once it is stored.

        Raises:
            UserError: `invalid_schema`, `invalid_request` or `name_taken`.
            StorageDown: the database is away; nothing changed.
        """
        check = InputCheck(model.input_schema)
        check_settings(model.settings, self._queues)
        check_price(model.price)
        try:
            self._refuse_a_taken_name(model)
            await self._store.put(model)
        except NameTaken as taken:
            raise UserError("name_taken", f"Another model is called {model.name!r} ({model.version}).") from taken
        self._changed()
        self._models.pop(model.id, None)  # so that it becomes the one registered last
        self._models[model.id], self._checks[model.id] = model, check

    def of_origin(self, provider: str, owner: str | None, slug: str) -> tuple[Model, ...]:
        """Every version of one model of a provider's; the one that was registered last stands last."""
        wanted = (provider, owner, slug)
        return tuple(model for model in self._models.values() if (model.provider, model.owner, model.slug) == wanted)

    async def remove(self, model_id: UUID) -> bool:
        """Removes a model; False when there was none. Raises UserError (`seeded_model`) and StorageDown."""
        if any(model.id == model_id for model in self._seeds):
            raise UserError("seeded_model", "This model belongs to the system; switch it off instead.")
        removed = await self._store.remove(model_id)
        self._changed()
        self._models.pop(model_id, None)
        self._checks.pop(model_id, None)
        return removed

    def _changed(self) -> None:
        self._changes += 1
        self.on_change()

    def _keep(self, model: Model) -> None:
        self._models[model.id] = model
        self._checks[model.id] = InputCheck(model.input_schema)

    def _refuse_a_taken_name(self, model: Model) -> None:
        for other in self._models.values():
            if other.id != model.id and (_name(other) == _name(model) or _origin(other) == _origin(model)):
                raise NameTaken(model.name)


def _name(model: Model) -> tuple[str, str]:
    return model.name, model.version


def _origin(model: Model) -> tuple[str, str | None, str, str]:
    return model.provider, model.owner, model.slug, model.version
