"""Refusals as problem documents."""

from __future__ import annotations

import json

import pytest

from engine.errors import Problem, UserError
from web.http import problems
from web.http.perform import refusal


def test_a_problem_says_what_it_is_and_what_to_do() -> None:
    error = UserError("invalid_input", "/input/steps must be positive.", (Problem("must be positive", "/input/steps"),))
    body = json.loads(problems.document(error, "r-1"))
    assert body == {
        "type": "/docs/problems#invalid_input",
        "title": "The input does not fit the model",
        "status": 422,
        "detail": "/input/steps must be positive.",
        "code": "invalid_input",
        "request_id": "r-1",
        "details": [{"message": "must be positive", "where": "/input/steps"}],
    }


@pytest.mark.parametrize(("seconds", "header"), [(0.2, "1"), (7.4, "7"), (90.0, "90")])
def test_retry_after_is_a_header_in_whole_seconds_and_never_zero(seconds: float, header: str) -> None:
    answer = refusal(UserError("over_capacity", "Later.", retry_after=seconds), "r-1")
    assert (answer.status, dict(answer.headers)["Retry-After"]) == (429, header)


def test_a_401_says_which_scheme_is_wanted() -> None:
    assert dict(refusal(UserError("unauthorized", "A token is needed."), "r-1").headers)["WWW-Authenticate"] == "Bearer"


def test_an_unlisted_code_is_the_users_fault() -> None:
    assert refusal(UserError("something_new", "No."), "r-1").status == 400


def test_every_code_has_an_error_status() -> None:
    assert all(400 <= kind.status < 600 and kind.title for kind in problems.KNOWN.values())
