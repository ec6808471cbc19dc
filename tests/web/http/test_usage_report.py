"""GET /api/usage on a real server: one's own, and for operators anybody's."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.web.http.test_api import code, ended, made
from web.http.usage import first_day, total


def model_of_its_own(olga: httpx.Client) -> str:
    """A model that is priced, made for one test, so that the figures are the test's alone."""
    name = f"priced-{uuid4().hex[:8]}"
    model = {"name": name, "provider": "simulate", "slug": name, "version": "1", "category": "text"}
    answer = olga.post("/api/models", json={**model, "price": {"output_token": 0.01}})
    assert answer.status_code == 201, answer.text
    return name


def used(http: httpx.Client, model: str, **query: Any) -> list[dict[str, Any]]:
    """The rows of a model. An attempt's row reaches the database with the task's end."""
    body = http.get("/api/usage", params=query).json()
    return [row for row in body["usage"] if row["model"] == model]


def test_what_tasks_used_and_cost_is_summed_by_model_and_day(
    alice: httpx.Client, bob: httpx.Client, olga: httpx.Client
) -> None:
    model = model_of_its_own(olga)
    wish = {"model": model, "input": {"steps": 5, "interval": 0, "text": True}}
    for _ in range(2):
        ended(alice, made(alice, wish))
    ended(bob, made(bob, wish))
    (row,) = used(alice, model)
    assert (row["tasks"], row["attempts"], row["input_tokens"], row["output_tokens"]) == (2, 2, None, 10)
    assert row["cost"] == pytest.approx(0.1)
    assert date.fromisoformat(row["day"]) - datetime.now(UTC).date() in (timedelta(0), timedelta(-1))
    assert used(olga, model) == []
    assert used(olga, model, user="alice") == [row]


def test_others_usage_is_for_operators_and_days_have_bounds(alice: httpx.Client) -> None:
    assert code(alice.get("/api/usage", params={"user": "bob"})) == (403, "forbidden")
    for days in ("0", "367", "-1", "many"):
        assert code(alice.get("/api/usage", params={"days": days})) == (400, "invalid_request")
    body = alice.get("/api/usage", params={"days": 1}).json()
    assert body["since"] == first_day(time.time(), 1).isoformat()


def test_thirty_days_end_with_today() -> None:
    assert first_day(1_773_489_600.0, 1) == date(2026, 3, 14)
    assert first_day(1_773_489_600.0, 30) == date(2026, 2, 13)


def test_a_sum_of_what_nobody_told_is_null() -> None:
    rows: list[dict[str, Any]] = [
        {"attempts": 2, "input_tokens": None, "output_tokens": 0, "predict_seconds": None, "cost": 0.5},
        {"attempts": 1, "input_tokens": None, "output_tokens": 3, "predict_seconds": None, "cost": None},
    ]
    nothing: dict[str, Any] = {"input_tokens": None, "predict_seconds": None}
    assert total(rows) == {"attempts": 3, "output_tokens": 3, "cost": 0.5, **nothing}
    assert total([]) == {"attempts": 0, "output_tokens": None, "cost": None, **nothing}
