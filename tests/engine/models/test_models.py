"""The model registry: which model is meant, whether an input fits it, and what may be registered."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from attrs import evolve

from engine.errors import UserError
from engine.models import LOCAL, SIMULATE, Models
from engine.ports import Model, StorageDown
from tests.engine.fakes import MemoryModels

PAINTER = Model(
    id=uuid4(), name="painter", provider="replicate", slug="paint", version="1", category="image", owner="me",
    defaults={"size": 512},
    input_schema={
        "type": "object",
        "required": ["prompt"],
        "properties": {
            "prompt": {"type": "string", "minLength": 1},
            "size": {"type": "integer", "enum": [256, 512]},
            "seed": {"type": ["integer", "null"], "minimum": 0},
            "tags": {"type": "array", "maxItems": 2, "items": {"type": "string"}},
        },
        "additionalProperties": False,
    },
)  # fmt: skip


@pytest.fixture
async def models() -> Models:
    registry = Models(MemoryModels())
    await registry.put(PAINTER)
    return registry


def problems(models: Models, name: str | None, given: dict[str, Any]) -> dict[str | None, str]:
    with pytest.raises(UserError) as refused:
        models.fit(name, given)
    assert refused.value.code == "invalid_input"
    return {problem.where: problem.message for problem in refused.value.details}


# --- which model -------------------------------------------------------------------------------------------


async def test_no_name_means_the_default_text_model(models: Models) -> None:
    assert models.fit(None, {"prompt": "hi"}).model == LOCAL
    assert Models(MemoryModels(), default="simulate").fit(None, {}).model == SIMULATE


async def test_a_name_may_carry_a_version_and_else_means_the_active_one_registered_last(models: Models) -> None:
    second = evolve(PAINTER, id=uuid4(), version="2")
    third = evolve(PAINTER, id=uuid4(), version="3", is_active=False)
    await models.put(second)
    await models.put(third)
    assert models.find("painter") == second
    assert models.find("painter:1") == PAINTER
    assert models.find("painter:9") is None


@pytest.mark.parametrize("name", ["nobody", "", "painter:7"])
async def test_an_unknown_model_is_said_to_be_so(models: Models, name: str) -> None:
    with pytest.raises(UserError, match="unknown_model"):
        models.fit(name, {"prompt": "hi"})


async def test_a_model_that_is_switched_off_runs_nothing(models: Models) -> None:
    await models.put(evolve(PAINTER, is_active=False))
    with pytest.raises(UserError, match="inactive_model"):
        models.fit("painter", {"prompt": "hi"})


# --- which input -------------------------------------------------------------------------------------------


async def test_defaults_are_merged_under_what_is_given(models: Models) -> None:
    assert models.fit("painter", {"prompt": "a"}).input == {"prompt": "a", "size": 512}
    assert models.fit("painter", {"prompt": "a", "size": 256}).input["size"] == 256
    assert models.fit("simulate", {}).input == SIMULATE.defaults


async def test_every_wrong_field_is_named_with_what_it_must_be(models: Models) -> None:
    given = {"size": 300, "seed": -1, "tags": ["a", 2, "c"], "colour": "red"}
    assert problems(models, "painter", given) == {
        "/prompt": "is missing",
        "/input/size": "must be one of 256, 512",
        "/input/seed": "must be at least 0",
        "/input/tags": "must have at most 2 items",
        "/input/tags/1": "must be text",
        "/input/colour": "is not a field of this model's input",
    }


@pytest.mark.parametrize(
    ("given", "where", "message"),
    [
        ({"prompt": 5}, "/prompt", "must be text"),
        ({"prompt": ""}, "/prompt", "must not be empty"),
        ({"prompt": "a\0b"}, "/prompt", "must not contain a NUL character"),
        ({"prompt": "\ud800"}, "/prompt", "must be text that UTF-8 can carry: it contains half of a surrogate pair"),
        ({"prompt": "a", "max_tokens": 0}, "/input/max_tokens", "must be at least 1"),
        ({"prompt": "a", "max_tokens": True}, "/input/max_tokens", "must be a whole number"),
        ({}, "/input", "needs prompt or messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "/input/messages/0/role",
         "must be one of system, user, assistant"),
    ],
)  # fmt: skip
async def test_the_local_models_input_is_checked(models: Models, given: Any, where: str, message: str) -> None:
    assert problems(models, "local", given)[where] == message


@pytest.mark.parametrize(
    "given",
    [{"steps": 0}, {"steps": 1e9}, {"interval": -1}, {"interval": "1"}, {"text": 1}, {"fail_at": 0}, {"stepz": 1}],
)
async def test_simulates_input_has_bounds(models: Models, given: dict[str, Any]) -> None:
    (name,) = given
    assert list(problems(models, "simulate", given)) == [f"/input/{name}"]


async def test_no_word_about_a_wrong_input_repeats_it(models: Models) -> None:
    secret = "my diary " * 30_000
    for given in ({"prompt": secret, "seed": secret}, {"prompt": [secret]}, {"prompt": secret}):
        with pytest.raises(UserError) as refused:
            models.fit("local", given)
        assert "diary" not in str(refused.value) + repr(refused.value.details)


async def test_input_nested_beyond_reason_is_refused(models: Models) -> None:
    deep: Any = {}
    for _ in range(5000):
        deep = {"a": deep}
    await models.put(evolve(PAINTER, input_schema={}))
    assert "deeper" in next(iter(problems(models, "painter", {"x": deep}).values()))


# --- what may be registered --------------------------------------------------------------------------------


async def test_a_schema_that_is_none_is_refused_with_the_reason(models: Models) -> None:
    with pytest.raises(UserError, match="invalid_schema"):
        await models.put(evolve(PAINTER, input_schema={"type": "nonsense"}))
    assert models.get(PAINTER.id) == PAINTER


async def test_a_schema_cannot_make_the_server_fetch_anything(models: Models) -> None:
    with pytest.raises(UserError, match=r"invalid_schema.*outside itself"):
        await models.put(evolve(PAINTER, input_schema={"$ref": "http://127.0.0.1:9/secret"}))


async def test_a_rule_behind_a_reference_is_told(models: Models) -> None:
    schema = {"properties": {"n": {"$ref": "#/$defs/small"}}, "$defs": {"small": {"type": "integer", "maximum": 3}}}
    await models.put(evolve(PAINTER, input_schema=schema))
    assert problems(models, "painter", {"n": 4})["/input/n"] == "must be at most 3"


async def test_names_and_origins_are_unique(models: Models) -> None:
    for twin in (
        evolve(PAINTER, id=uuid4(), slug="other"),  # the same name and version
        evolve(PAINTER, id=uuid4(), name="other"),  # the same provider, owner, slug and version
    ):
        with pytest.raises(UserError, match="name_taken"):
            await models.put(twin)


async def test_what_is_not_stored_is_not_registered() -> None:
    store = MemoryModels()
    models = Models(store)
    store.down = True
    with pytest.raises(StorageDown):
        await models.put(PAINTER)
    assert models.find("painter") is None


async def test_loading_takes_over_the_store_and_gives_it_the_seeds_it_lacks() -> None:
    store = MemoryModels({PAINTER.id: PAINTER, SIMULATE.id: evolve(SIMULATE, description="edited")})
    models = Models(store)
    await models.load()
    assert set(store.models) == {PAINTER.id, SIMULATE.id, LOCAL.id}
    assert models.find("painter") == PAINTER
    edited = models.find("simulate")
    assert edited is not None
    assert edited.description == "edited"


async def test_seeds_cannot_be_removed_others_can(models: Models) -> None:
    with pytest.raises(UserError, match="seeded_model"):
        await models.remove(SIMULATE.id)
    assert await models.remove(PAINTER.id)
    assert not await models.remove(PAINTER.id)
    assert models.find("painter") is None


async def test_what_another_server_has_changed_is_taken_over() -> None:
    store = MemoryModels()
    here, there = Models(store, "simulate"), Models(store, "simulate")
    await here.load()
    mine = evolve(SIMULATE, id=uuid4(), name="mine", slug="mine")
    other = evolve(SIMULATE, id=uuid4(), name="other", slug="other")
    await there.put(mine)
    await there.put(other)
    await here.refresh()
    assert here.fit("other", {"steps": 2}).model == other
    await there.put(evolve(other, is_active=False))
    await there.remove(mine.id)
    await here.refresh()
    assert here.find("mine") is None
    with pytest.raises(UserError, match="switched off"):
        here.fit("other", {})
    assert here.find("simulate") == SIMULATE
