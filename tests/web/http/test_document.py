"""docs/http.md names every call and every code that can be met there; the OpenAPI document is sound."""

from __future__ import annotations

from pathlib import Path

import pytest

from web.http import problems
from web.http.bills import BillRoutes
from web.http.imports import ImportRoutes
from web.http.openapi import describe, refusals
from web.http.removal import RemovalRoutes
from web.http.route import Route
from web.http.routes import ROUTES
from web.http.usage import UsageRoutes
from web.operators.alarms import NAMES
from web.operators.routes import Operators

DOCS = (Path(__file__).parents[3] / "docs" / "http.md").read_text()

# of those that stand over a store, the table alone is looked at
ALL = (
    *ROUTES,
    *Operators(None).routes,
    *UsageRoutes(None).routes,
    *RemovalRoutes(None).routes,
    *BillRoutes(None).routes,
    *ImportRoutes(None).routes,
)  # type: ignore[arg-type]


@pytest.mark.parametrize("route", ALL, ids=lambda route: route.name)
def test_every_call_is_documented(route: Route) -> None:
    path = route.path.replace("<task_id>", "<id>").replace("<model_id>", "<id>").replace("<path:user>", "<user>")
    path = path.replace("<job_id>", "<id>")
    assert f"`{route.method} {path}`" in DOCS


@pytest.mark.parametrize("route", ALL, ids=lambda route: route.name)
def test_every_refusal_of_a_call_is_a_known_code_and_documented(route: Route) -> None:
    for code in refusals(route):
        assert code in problems.KNOWN
        assert f"`{code}`" in DOCS


def test_every_reference_of_the_document_leads_somewhere() -> None:
    document = describe(ALL, "0")
    schemas = document["components"]["schemas"]

    def references(value: object) -> set[str]:
        match value:
            case {"$ref": str(reference)}:
                return {reference.rpartition("/")[2]}
            case dict():
                return set().union(*map(references, value.values()))
            case list():
                return set().union(*map(references, value))
            case _:
                return set()

    assert references(document) <= schemas.keys()


def test_operation_ids_are_unique() -> None:
    document = describe(ALL, "0")
    ids = [call["operationId"] for calls in document["paths"].values() for call in calls.values()]
    assert len(ids) == len(set(ids))


def test_every_alarm_is_documented() -> None:
    assert all(f"| `{name}` |" in DOCS for name in NAMES)
