"""The models a node starts with fit its providers, and each other."""

from __future__ import annotations

from engine.models.catalogue import CATALOGUE, seeds_for
from engine.models.check import InputCheck


def test_a_node_starts_with_the_models_of_its_providers_alone() -> None:
    assert {model.name for model in seeds_for({"simulate"})} == {"simulate"}
    assert {model.provider for model in seeds_for({"local", "anthropic"})} == {"local", "anthropic"}


def test_every_fallback_is_a_model_of_the_catalogue_and_none_leads_back() -> None:
    known = {model.id: model for model in CATALOGUE}
    assert len(known) == len(CATALOGUE)
    for model in CATALOGUE:
        seen = {model.id}
        while model.fallbacks:
            model = known[model.fallbacks[0]]
            assert model.id not in seen
            seen.add(model.id)


def test_every_schema_takes_a_prompt_and_the_models_defaults() -> None:
    for model in CATALOGUE:
        InputCheck(model.input_schema)({"prompt": "hi", **model.defaults})
