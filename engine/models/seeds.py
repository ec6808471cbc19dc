"""The models that are always there. Their ids are fixed, so that every database has the same ones. Pure data."""

from __future__ import annotations

from uuid import UUID

from engine.ports import Model
from engine.providers import local, simulate

LOCAL = Model(
    id=UUID("0199aa00-0000-7000-8000-000000000001"),
    name=local.NAME,
    provider=local.NAME,
    slug=local.MODEL,
    version="q4_1",
    category="text",
    owner="HuggingFaceTB",
    description="SmolLM2 135M Instruct: a small language model that runs on this machine's processor.",
    documentation_url="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
    input_schema=local.INPUT_SCHEMA,
    defaults=local.DEFAULTS,
    settings={"queue": "local"},
)

SIMULATE = Model(
    id=UUID("0199aa00-0000-7000-8000-000000000002"),
    name=simulate.NAME,
    provider=simulate.NAME,
    slug=simulate.NAME,
    version="1",
    category="text",
    owner="elwift",
    description="Steps on a clock instead of generating: for demonstrations, load tests and fault tests.",
    input_schema=simulate.INPUT_SCHEMA,
    defaults=simulate.DEFAULTS,
    settings={"typical_seconds": simulate.DEFAULTS["steps"] * simulate.DEFAULTS["interval"]},
)

SEEDS = (LOCAL, SIMULATE)
