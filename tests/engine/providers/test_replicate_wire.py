"""Replicate's words: what is read of a prediction, whatever was written, and what its failures mean. Pure."""

from __future__ import annotations

import json
import time
from typing import Any
from uuid import uuid4

import pytest

from engine.models.price import priced, together
from engine.providers.protocol import FailureKind
from engine.providers.replicate_failures import failure_of, refusal, retry_after
from engine.providers.replicate_search import Wanted, is_it, same_input
from engine.providers.replicate_wire import (
    LOG_TAIL,
    BadPrediction,
    Prediction,
    counts_of,
    files_of,
    newer,
    progress_in,
    read_body,
    structure_of,
    text_of,
    usage_of,
)
from engine.tasks.events import Usage

URL = "https://replicate.delivery/a.png"


def body(**more: Any) -> bytes:
    return json.dumps({"id": "p1", "status": "processing", **more}).encode()


def test_ten_megabytes_of_logs_are_read_from_their_end() -> None:
    logs = '"\\é\n' * 2_500_000 + " 42%|####  | 21/50"
    raw = body(logs=logs)
    began = time.process_time()
    prediction = read_body(raw)
    assert time.process_time() - began < 1.0
    assert progress_in(prediction.logs) == 0.42
    assert len(prediction.logs) <= LOG_TAIL
    more = read_body(body(logs=logs + "\n 44%|####  | 22/50"))
    assert newer(more, prediction)
    assert not newer(prediction, more)


@pytest.mark.parametrize("cut", range(14))
def test_the_end_of_the_logs_is_cut_where_their_escapes_allow_it(cut: int) -> None:
    logs = '\\😀"é\n\t' * 20_000 + "x" * cut
    tail = read_body(body(logs=logs)).logs
    assert len(tail) > 1000
    assert logs.endswith(tail[12:])  # the first character may be half of one


@pytest.mark.parametrize(
    ("raw", "is_json"),
    [
        (b"", False),
        (b"{", False),
        (b"\xff\xfe", False),
        (b"[]", True),
        (b"7", True),
        (b"null", True),
        (b"{}", True),
        (body(id="../../v1/account"), True),
        (body(id="a?b"), True),
        (body(id=""), True),
        (body(id="x" * 200), True),
        (body(id=7), True),
        (body(status=None), True),
        (body(status="x" * 100), True),
        (b'{"id": ' + b"[" * 100_000, False),
    ],
)
def test_what_is_no_prediction_is_said_to_be_none(raw: bytes, is_json: bool) -> None:
    with pytest.raises(BadPrediction) as refused:
        read_body(raw)
    assert refused.value.is_json is is_json


def test_what_should_not_be_written_is_read_all_the_same() -> None:
    odd = read_body(b'{"id":"p1","status":"succeeded","output":"a\\ud800b","metrics":{"predict_time":NaN,"x":1e999}}')
    assert odd.output == "a?b"
    assert usage_of(odd.metrics) is None
    assert read_body(body(logs=7, input=[], metrics=[], version={}, output=None)).logs == ""


def test_a_status_that_nobody_knows_is_work_until_it_says_that_it_is_over() -> None:
    assert not read_body(body(status="booting")).terminal
    over = read_body(body(status="expired", completed_at="2026-01-01T00:00:00Z"))
    assert over.terminal
    assert newer(over, read_body(body(status="booting")))
    assert failure_of(over).raw_status == "expired"


@pytest.mark.parametrize(
    ("output", "text", "files", "structure"),
    [
        ("words", "words", 0, None),
        (["wo", "rds"], "words", 0, None),
        (["see ", "https://example.com", " there"], "see https://example.com there", 0, None),
        (["https://"], "https://", 0, None),
        ([URL, URL], None, 2, None),
        (URL, None, 1, None),
        ("data:image/png;base64,AAAA", None, 1, None),
        ({"image": URL, "mask": None}, None, 1, None),
        ({"image": URL, "score": 0.5}, None, 1, '{"image":"output:0","score":0.5}'),
        ([[URL], [{"deep": [URL, 1]}]], None, 2, '[["output:0"],[{"deep":["output:1",1]}]]'),
        (0.5, None, 0, "0.5"),
        (False, None, 0, "false"),
        ({}, None, 0, None),
        ([], "", 0, None),
        (None, None, 0, None),
    ],
)
def test_what_came_out_is_text_files_or_a_structure(output: Any, text: Any, files: int, structure: Any) -> None:
    assert text_of(output) == text
    assert len(files_of(output)) == (files if text is None else 0) or text is not None
    assert structure_of(output) == structure


def test_a_data_url_of_ten_megabytes_is_told_from_text_at_a_glance() -> None:
    url = "data:image/png;base64," + "A" * 10_000_000
    began = time.process_time()
    assert text_of(url) is None
    assert time.process_time() - began < 0.1


def test_figures_that_are_nonsense_are_left_out() -> None:
    metrics = {"input_token_count": 1e30, "output_token_count": -1, "predict_time": True, "image_output_count": 2}
    assert usage_of(metrics) is None
    assert counts_of(Prediction("p", "succeeded", metrics=metrics)) == {"image_output_count": 2.0, "run": 1.0}
    assert counts_of(Prediction("p", "failed"))["run"] == 0.0


def test_a_price_may_be_of_anything_that_is_counted() -> None:
    usage = Usage(input_tokens=100, predict_seconds=2.0)
    assert priced(usage, {"second": 0.5, "input_token": 0.01}).cost == pytest.approx(2.0)
    assert priced(usage, {"image_output_count": 0.04, "run": 1.0}, {"image_output_count": 2, "run": 1}).cost == 1.08
    assert priced(usage, {"video_output_duration_seconds": 1.0}).cost is None
    assert priced(Usage(cost=7.0), {"second": 1.0}).cost == 7.0
    assert together([usage, Usage(predict_seconds=1.0, cost=0.1)]) == Usage(100, None, 3.0, 0.1)


@pytest.mark.parametrize(
    ("headers", "answer", "seconds"),
    [
        ({}, {"retry_after": 7}, 7.0),
        ({"retry-after": "12"}, None, 12.0),
        ({"retry-after": "12"}, {"retry_after": "3"}, 3.0),
        ({}, {"detail": "Request was throttled. Your rate limit resets in ~9.5s."}, 9.5),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}, None, 40.0),
        ({"retry-after": "soon"}, {"retry_after": None}, 5.0),
        ({"retry-after": "nan"}, {"retry_after": float("inf")}, 5.0),
        ({"retry-after": "99999999"}, None, 3600.0),
        ({"retry-after": "-5"}, None, 0.5),
        ({}, ["odd"], 5.0),
    ],
)
def test_how_long_to_wait_is_read_wherever_it_stands(headers: dict[str, str], answer: Any, seconds: float) -> None:
    assert retry_after(headers, answer, now=20.0) == seconds


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, FailureKind.INVALID_INPUT, "invalid_input"),
        (401, FailureKind.PERMANENT, "provider_auth"),
        (402, FailureKind.QUOTA, "provider_quota"),
        (404, FailureKind.PERMANENT, "model_not_found"),
        (409, FailureKind.RETRYABLE, "provider_error"),
        (413, FailureKind.INVALID_INPUT, "invalid_input"),
        (418, FailureKind.PERMANENT, "provider_error"),
        (422, FailureKind.INVALID_INPUT, "invalid_input"),
        (429, FailureKind.UNAVAILABLE, "provider_throttled"),
    ],
)
def test_every_refusal_has_its_kind_and_leaves_nothing_in_doubt(status: int, kind: FailureKind, code: str) -> None:
    failed = refusal(status, {}, None)
    assert (failed.kind, failed.code, failed.in_doubt) == (kind, code, False)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (
            "The input or output was flagged as sensitive. Please try again with different inputs. (E005)",
            "content_policy",
        ),
        ("NSFW content detected. Try running it again, or try a different prompt.", "content_policy"),
        ("Prediction interrupted; please retry (code: PA)", "prediction_failed"),
        ("CUDA out of memory", "prediction_failed"),
        (None, "prediction_failed"),
    ],
)
def test_what_was_declined_is_not_bought_again(error: str | None, code: str) -> None:
    failed = failure_of(Prediction("p", "failed", error=error))
    assert failed.code == code
    assert (failed.kind is FailureKind.PERMANENT) == (code == "content_policy")


def test_a_prediction_is_known_by_its_address_or_by_its_model_and_input() -> None:
    attempt = uuid4()
    wanted = Wanted(attempt, "acme/painter", "official", {"prompt": "hi"}, webhooks=True)
    ours = f"https://app.example/webhooks/replicate?task=x&attempt={attempt}"
    theirs = f"https://app.example/webhooks/replicate?task=x&attempt={uuid4()}"
    same = {"model": "acme/painter", "input": {"prompt": "hi"}}
    assert is_it(Prediction("p", "starting", **same), wanted)
    assert is_it(Prediction("p", "starting", model="acme/painter", input=None, webhook=ours), wanted)
    assert not is_it(Prediction("p", "starting", webhook=theirs, **same), wanted)
    assert not is_it(Prediction("p", "starting", webhook="https://other.example/", **same), wanted)
    assert not is_it(Prediction("p", "starting", model="acme/writer", input={"prompt": "hi"}), wanted)
    assert not is_it(Prediction("p", "starting", model="acme/painter", input={"prompt": "ho"}), wanted)
    pinned = Wanted(attempt, "acme/painter", "a" * 64, {"prompt": "hi"})
    assert not is_it(Prediction("p", "starting", version="b" * 64, **same), pinned)
    deployed = Wanted(attempt, "deployments/acme/fast", "", {"prompt": "hi"})
    assert is_it(Prediction("p", "starting", deployment="acme/fast", **same), deployed)
    assert not is_it(Prediction("p", "starting", deployment="acme/slow", **same), deployed)
    assert same_input({"image": "data:image/png;base64,AA"}, {"image": "https://replicate.delivery/x"})
    assert not same_input({"a": 1}, {"a": 1, "b": 2})
