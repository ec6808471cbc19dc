"""The HTTP API on a real server: every call, and every refusal that a client can bring about."""

from __future__ import annotations

import json
import re
import socket
import time
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from scripts.server import ServerProcess
from tests.web.http.described import Described

QUICK = {"model": "simulate", "input": {"steps": 2, "interval": 0.02}}
LONG = {"model": "simulate", "input": {"steps": 10_000, "interval": 0.05}}


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


def made(http: httpx.Client, wish: dict[str, Any], **options: Any) -> str:
    response = http.post("/api/tasks", json=wish, **options)
    assert response.status_code == 202, response.text
    return str(response.json()["task_id"])


def ended(http: httpx.Client, task_id: str, within: float = 15.0) -> dict[str, Any]:
    """The task once it is over: asked again and again, since HTTP alone cannot wait."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        task: dict[str, Any] = http.get(f"/api/tasks/{task_id}").json()
        if task["status"] in ("completed", "failed", "cancelled"):
            return task
        time.sleep(0.03)
    raise AssertionError(f"not over within {within} s: {task}")


# --- creating ---------------------------------------------------------------------------------------------


def test_a_task_is_accepted_at_once_with_its_place_and_topic(alice: httpx.Client) -> None:
    response = alice.post("/api/tasks", json={**QUICK, "prompt": "hello"})
    body = response.json()
    assert response.status_code == 202
    assert UUID(body["task_id"])
    assert response.headers["location"] == f"/api/tasks/{body['task_id']}"
    assert (body["status"], body["durability"], body["topic"]) == ("queued", "durable", f"task:{body['task_id']}")


def test_a_task_runs_to_its_end_and_is_read_from_the_database_then(alice: httpx.Client) -> None:
    task = ended(alice, made(alice, {**QUICK, "prompt": "to the end"}))
    assert (task["status"], task["progress"], task["attempt"]) == ("completed", 1.0, 1)
    assert task["input"]["prompt"] == "to the end"
    assert task["created_at"] <= task["started_at"] <= task["completed_at"]


@pytest.mark.parametrize(
    ("body", "content_type", "refusal"),
    [
        (b"hello", "application/json", (400, "invalid_json")),
        (b"", "application/json", (400, "invalid_json")),
        (b'{"prompt": "hi"', "application/json", (400, "invalid_json")),
        (b'{"prompt": "\xff\xfe"}', "application/json", (400, "invalid_encoding")),
        (b'{"input": {"a": ' + b"[" * 100_000, "application/json", (400, "invalid_json")),
        (rb'{"prompt": "\ud800"}', "application/json", (400, "invalid_json")),
        (b"[]", "application/json", (400, "invalid_request")),
        (b'"hi"', "application/json", (400, "invalid_request")),
        (b'{"prompt": 7}', "application/json", (400, "invalid_request")),
        (b'{"prompt": "hi", "priority": 10}', "application/json", (400, "invalid_request")),
        (b'{"prompt": "hi", "input": "x"}', "application/json", (400, "invalid_request")),
        (b'{"prompt": "hi", "modell": "simulate"}', "application/json", (400, "invalid_request")),
        (b'{"prompt": "hi"}', "text/plain", (415, "unsupported_media_type")),
        (b'{"prompt": "hi"}', None, (415, "unsupported_media_type")),
        (b"prompt=hi", "application/x-www-form-urlencoded", (415, "unsupported_media_type")),
        (b'{"prompt": "hi", "model": "nonesuch"}', "application/json", (422, "unknown_model")),
        (b'{"model": "simulate", "input": {"steps": 0}}', "application/json", (422, "invalid_input")),
        (b'{"model": "simulate", "input": {"stepz": 1}}', "application/json", (422, "invalid_input")),
        (rb'{"model": "simulate", "prompt": "a\u0000b"}', "application/json", (422, "invalid_input")),
        (rb'{"model": "sim\u0000late"}', "application/json", (422, "unknown_model")),
    ],
)
def test_bad_input_is_refused_with_its_code_and_the_server_goes_on(
    alice: httpx.Client, body: bytes, content_type: str | None, refusal: tuple[int, str]
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    response = alice.post("/api/tasks", content=body, headers=headers)
    assert code(response) == refusal
    assert response.headers["content-type"] == "application/problem+json"
    assert len(response.json()["detail"]) > 15
    assert alice.get("/healthz").status_code == 200


def test_input_that_does_not_fit_names_the_field(alice: httpx.Client) -> None:
    response = alice.post("/api/tasks", json={"model": "simulate", "input": {"steps": 0, "interval": "x"}})
    assert {detail["where"] for detail in response.json()["details"]} == {"/input/steps", "/input/interval"}


def test_a_body_of_ten_megabytes_is_refused_and_the_answer_arrives(alice: httpx.Client) -> None:
    response = alice.post("/api/tasks", json={"prompt": "x" * 10_000_000})
    assert response.status_code == 413
    assert response.json()["code"] == "body_too_large"


def test_a_body_without_a_length_is_measured_as_it_comes(alice: httpx.Client) -> None:
    def chunks() -> Any:
        yield b'{"prompt": "'
        for _ in range(300):
            yield b"x" * 10_000

    try:
        response = alice.post("/api/tasks", content=chunks(), headers={"Content-Type": "application/json"})
    except httpx.WriteError:  # the server answered and closed while we still wrote: it did not take the body
        return
    assert response.status_code == 413


def test_the_prompt_of_the_top_goes_into_the_input(alice: httpx.Client) -> None:
    task_id = made(alice, {"model": "simulate", "prompt": "top", "input": {"steps": 1, "interval": 0}})
    assert alice.get(f"/api/tasks/{task_id}").json()["input"]["prompt"] == "top"


def test_an_idempotency_key_makes_one_task_by_header_or_body(alice: httpx.Client, bob: httpx.Client) -> None:
    key = uuid4().hex
    first = alice.post("/api/tasks", json=QUICK, headers={"Idempotency-Key": key})
    again = alice.post("/api/tasks", json=QUICK, headers={"Idempotency-Key": f'"{key}"'})
    in_body = alice.post("/api/tasks", json={**QUICK, "idempotency_key": key})
    assert {answer.status_code for answer in (first, again, in_body)} == {202}
    assert first.json()["task_id"] == again.json()["task_id"] == in_body.json()["task_id"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert bob.post("/api/tasks", json={**QUICK, "idempotency_key": key}).json()["task_id"] != first.json()["task_id"]


def test_a_key_for_another_wish_is_a_conflict(alice: httpx.Client) -> None:
    key = {"Idempotency-Key": uuid4().hex}
    made(alice, QUICK, headers=key)
    response = alice.post("/api/tasks", json={**QUICK, "prompt": "something else"}, headers=key)
    assert code(response) == (409, "idempotency_conflict")


def test_two_keys_that_differ_are_refused(alice: httpx.Client) -> None:
    response = alice.post("/api/tasks", json={**QUICK, "idempotency_key": "a"}, headers={"Idempotency-Key": "b"})
    assert code(response) == (400, "invalid_request")


@pytest.mark.parametrize("key", ["", '""', "x" * 256])
def test_a_key_of_no_or_too_great_length_is_refused(alice: httpx.Client, key: str) -> None:
    assert code(alice.post("/api/tasks", json=QUICK, headers={"Idempotency-Key": key})) == (400, "invalid_request")


def test_user_id_may_name_oneself_and_for_an_operator_anybody(alice: httpx.Client, olga: httpx.Client) -> None:
    assert made(alice, {**QUICK, "user_id": "alice"})
    assert code(alice.post("/api/tasks", json={**QUICK, "user_id": "bob"})) == (403, "forbidden")
    task_id = made(olga, {**QUICK, "user_id": "alice"})
    assert alice.get(f"/api/tasks/{task_id}").json()["user"] == "alice"


# --- who asks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/api/tasks"), ("GET", "/api/tasks"), ("GET", "/api/supervisor")]
)
def test_without_a_token_that_holds_nothing_is_told(
    nobody: httpx.Client, method: str, path: str, headers: dict[str, str]
) -> None:
    response = nobody.request(method, path, headers=headers)
    assert code(response) == (401, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"


def test_a_task_of_another_user_is_answered_as_one_that_does_not_exist(alice: httpx.Client, bob: httpx.Client) -> None:
    task_id = made(alice, LONG)
    unknown = str(uuid4())
    for method, rest in [("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/retry")]:
        theirs, none = (bob.request(method, f"/api/tasks/{one}{rest}") for one in (task_id, unknown))
        assert code(theirs) == code(none) == (404, "unknown_task")
        assert theirs.json()["detail"] == none.json()["detail"]
    assert alice.post(f"/api/tasks/{task_id}/cancel").json()["status"] == "cancelled"


@pytest.mark.parametrize("task_id", ["1", "not-a-uuid", "%00", "0" * 400, "..", "%F0%9F%92%A9"])
def test_an_id_that_is_none_is_an_unknown_task(alice: httpx.Client, task_id: str) -> None:
    assert alice.get(f"/api/tasks/{task_id}").status_code == 404


def test_an_operator_sees_and_steers_everybodys_tasks(alice: httpx.Client, olga: httpx.Client) -> None:
    task_id = made(alice, LONG)
    assert olga.get(f"/api/tasks/{task_id}").json()["user"] == "alice"
    assert olga.post(f"/api/tasks/{task_id}/cancel").json()["status"] == "cancelled"
    log = alice.get(f"/api/tasks/{task_id}/events").json()["events"]
    assert (log[-1]["type"], log[-1]["actor"]) == ("cancelled", "operator")


def test_a_page_of_another_site_may_not_post_but_may_look(alice: httpx.Client) -> None:
    foreign = {"Origin": "https://evil.example"}
    assert code(alice.post("/api/tasks", json=QUICK, headers=foreign)) == (403, "cross_origin")
    seen = alice.get("/api/tasks", headers=foreign)
    assert seen.status_code == 200
    assert "access-control-allow-origin" not in seen.headers


def test_a_page_of_an_allowed_site_may_post_and_read(alice: httpx.Client) -> None:
    allowed = {"Origin": "https://app.example"}
    preflight = alice.options("/api/tasks", headers={**allowed, "Access-Control-Request-Method": "POST"})
    answer = alice.post("/api/tasks", json=QUICK, headers=allowed)
    assert (preflight.status_code, answer.status_code) == (204, 202)
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    assert answer.headers["access-control-allow-origin"] == "https://app.example"


# --- reading and steering ---------------------------------------------------------------------------------


def test_cancel_is_idempotent_and_harmless_after_the_end(alice: httpx.Client) -> None:
    task_id = made(alice, LONG)
    first, again = (alice.post(f"/api/tasks/{task_id}/cancel") for _ in range(2))
    assert (first.json()["status"], again.json()["status"]) == ("cancelled", "cancelled")
    done = ended(alice, made(alice, QUICK))
    assert alice.post(f"/api/tasks/{done['id']}/cancel").json()["status"] == "completed"


def test_only_a_failed_task_is_retried(alice: httpx.Client) -> None:
    done = ended(alice, made(alice, QUICK))
    assert code(alice.post(f"/api/tasks/{done['id']}/retry")) == (409, "not_failed")
    fails_once = {"steps": 3, "interval": 0.02, "fail_at": 2, "fail_attempts": 1}
    failed = ended(alice, made(alice, {"model": "simulate", "input": fails_once}))
    assert failed["status"] == "failed"
    assert failed["error"]["action"]
    answer = alice.post(f"/api/tasks/{failed['id']}/retry")
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    again = ended(alice, failed["id"])
    assert (again["status"], again["attempt"]) == ("completed", 2)


def test_the_log_is_gap_free_and_paged(alice: httpx.Client) -> None:
    task = ended(alice, made(alice, QUICK))
    log = alice.get(f"/api/tasks/{task['id']}/events").json()
    assert [event["seq"] for event in log["events"]] == list(range(1, task["seq"] + 1))
    assert [event["type"] for event in log["events"]][:2] == ["created", "started"]
    first = alice.get(f"/api/tasks/{task['id']}/events?limit=1").json()
    assert ([event["seq"] for event in first["events"]], first["has_more"]) == ([1], True)
    rest = alice.get(f"/api/tasks/{task['id']}/events?after=1").json()
    assert (rest["events"][0]["seq"], rest["has_more"]) == (2, False)
    assert alice.get(f"/api/tasks/{task['id']}/events?after=999").json() == {"events": [], "has_more": False}


def test_the_history_is_paged_newest_first_without_a_gap_or_a_double(alice: httpx.Client) -> None:
    ids = [made(alice, QUICK) for _ in range(5)]
    seen: list[str] = []
    cursor: str | None = None
    while len(seen) < 5:
        page = alice.get("/api/tasks", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen += [task["id"] for task in page["tasks"]]
        cursor = page["cursor"]
    assert seen[:5] == ids[::-1]


def test_the_history_is_filtered_and_a_live_task_shows_as_it_is_now(alice: httpx.Client) -> None:
    task_id = made(alice, {"model": "simulate", "input": {"steps": 1000, "interval": 0.02}})
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        running = alice.get("/api/tasks?status=processing&model=simulate").json()["tasks"]
        mine = [task for task in running if task["id"] == task_id]
        if mine and mine[0]["progress"] > 0:
            break
        time.sleep(0.03)
    assert mine[0]["progress"] > 0
    assert alice.get("/api/tasks?model=nonesuch").json()["tasks"] == []
    alice.post(f"/api/tasks/{task_id}/cancel")


@pytest.mark.parametrize(
    ("query", "refusal"),
    [
        ("status=done", (400, "invalid_request")),
        ("limit=0", (400, "invalid_request")),
        ("limit=many", (400, "invalid_request")),
        ("cursor=nonsense", (400, "invalid_cursor")),
        ("cursor=%00", (400, "invalid_cursor")),
        ("user=bob", (403, "forbidden")),
    ],
)
def test_a_bad_query_is_refused(alice: httpx.Client, query: str, refusal: tuple[int, str]) -> None:
    assert code(alice.get(f"/api/tasks?{query}")) == refusal


def test_a_filter_that_no_database_can_hold_finds_nothing(alice: httpx.Client, olga: httpx.Client) -> None:
    assert alice.get("/api/tasks?model=%00").json()["tasks"] == []
    assert olga.get("/api/tasks?user=%00").json()["tasks"] == []


# --- models and users -------------------------------------------------------------------------------------


def test_models_are_listed_with_what_they_take(alice: httpx.Client) -> None:
    listed = alice.get("/api/models").json()
    simulate = next(model for model in listed["models"] if model["name"] == "simulate")
    assert simulate["defaults"]["steps"] == 5
    assert alice.get("/api/models/simulate").json() == simulate
    assert code(alice.get("/api/models/nonesuch")) == (404, "no_such_model")


def test_operators_write_models_and_others_do_not(alice: httpx.Client, olga: httpx.Client) -> None:
    name = f"clock-{uuid4().hex[:8]}"
    model = {"name": name, "provider": "simulate", "slug": name, "version": "1", "category": "text"}
    assert code(alice.post("/api/models", json=model)) == (403, "forbidden")
    created = olga.post("/api/models", json={**model, "input_schema": {"type": "object", "required": ["steps"]}})
    assert (created.status_code, created.headers["location"]) == (201, f"/api/models/{name}")
    assert code(alice.post("/api/tasks", json={"model": name})) == (422, "invalid_input")
    assert code(olga.post("/api/models", json=model)) == (409, "name_taken")
    assert code(olga.post("/api/models", json={**model, "version": "2", "input_schema": {"type": 7}})) == (
        422,
        "invalid_schema",
    )
    assert code(olga.post("/api/models", json={**model, "category": "smell"})) == (400, "invalid_request")
    path = f"/api/models/{created.json()['id']}"
    assert olga.put(path, json={**model, "is_active": False}).json()["is_active"] is False
    assert code(alice.post("/api/tasks", json={"model": name})) == (422, "inactive_model")
    assert name not in [one["name"] for one in alice.get("/api/models").json()["models"]]
    assert olga.delete(path).status_code == 204
    assert code(olga.delete(path)) == (404, "no_such_model")


def test_a_model_of_the_system_is_not_removed(olga: httpx.Client) -> None:
    simulate = olga.get("/api/models/simulate").json()
    assert code(olga.delete(f"/api/models/{simulate['id']}")) == (409, "seeded_model")


def test_preferences_are_kept_and_are_ones_own(alice: httpx.Client, bob: httpx.Client) -> None:
    wanted = {"theme": "dark", "nested": {"list": [1, 2.5, None, "é"]}}
    assert alice.put("/api/users/me/preferences", json=wanted).json() == wanted
    assert alice.get("/api/users/me/preferences").json() == wanted
    assert bob.get("/api/users/me/preferences").json() == {}
    assert alice.get("/api/users/me").json() == {"user": "alice", "operator": False}


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        (b"[]", (400, "invalid_request")),
        (b"nope", (400, "invalid_json")),
        (rb'{"a": "\u0000"}', (400, "invalid_request")),
        (b'{"a": "' + b"x" * 70_000 + b'"}', (413, "body_too_large")),
    ],
)
def test_bad_preferences_are_refused(alice: httpx.Client, body: bytes, refusal: tuple[int, str]) -> None:
    headers = {"Content-Type": "application/json"}
    assert code(alice.put("/api/users/me/preferences", content=body, headers=headers)) == refusal


# --- around every call ------------------------------------------------------------------------------------


def test_a_request_id_is_echoed_when_harmless_and_made_otherwise(alice: httpx.Client) -> None:
    assert alice.get("/api/users/me", headers={"X-Request-Id": "trace-1:a"}).headers["x-request-id"] == "trace-1:a"
    for bad in ("x" * 200, "spaces in it", "<script>"):
        answer = alice.get("/api/users/me", headers={"X-Request-Id": bad})
        assert re.fullmatch("[0-9a-f]{16}", answer.headers["x-request-id"])


def test_no_cache_keeps_what_is_somebodys_own(alice: httpx.Client) -> None:
    for path in ("/api/tasks", "/api/users/me", "/api/users/me/preferences", "/api/tasks/none"):
        assert alice.get(path).headers["cache-control"] == "no-store"


def test_what_is_refused_before_a_route_is_counted_and_named(alice: httpx.Client, nobody: httpx.Client) -> None:
    too_long = alice.post("/api/tasks", json={"prompt": "x" * 1_100_000}, headers={"X-Request-Id": "too-long"})
    assert (too_long.status_code, too_long.headers["x-request-id"]) == (413, "too-long")
    nobody.get("/nowhere")
    assert re.search(r'elwift_http_requests_total\{route="unrouted",status="404"\} [1-9]', nobody.get("/metrics").text)


def test_a_refusal_names_the_request(alice: httpx.Client) -> None:
    answer = alice.get("/api/tasks/none", headers={"X-Request-Id": "find-me"})
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "find-me"


def test_a_trace_is_kept_with_the_task_and_nonsense_is_not(alice: httpx.Client) -> None:
    parent = f"00-{uuid4().hex}-{uuid4().hex[:16]}-01"
    for header, kept in [(parent, parent), ("nonsense", None)]:
        task_id = made(alice, QUICK, headers={"traceparent": header})
        created = alice.get(f"/api/tasks/{task_id}/events").json()["events"][0]
        assert created["payload"].get("trace_parent") == kept


def test_what_is_not_there_and_what_is_not_allowed_are_problems_too(nobody: httpx.Client) -> None:
    assert code(nobody.get("/nowhere")) == (404, "not_found")
    answer = nobody.request("DELETE", "/api/tasks")
    assert code(answer) == (405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) >= {"GET", "POST"}


def test_a_query_of_a_thousand_fields_is_no_bother(alice: httpx.Client) -> None:
    assert alice.get("/api/tasks?" + "&".join(f"a{n}=1" for n in range(1000))).status_code == 200


def test_health_readiness_and_metrics_need_no_token(nobody: httpx.Client) -> None:
    assert nobody.get("/healthz").json() == {"status": "ok"}
    assert nobody.get("/readyz").json()["status"] == "ready"
    metrics = nobody.get("/metrics").text
    assert re.search(r'elwift_http_requests_total\{route="health.live",status="200"\} [1-9]', metrics)
    assert "process_resident_memory_bytes" in metrics


def test_metrics_never_carry_users_or_tasks(alice: httpx.Client, nobody: httpx.Client) -> None:
    task_id = made(alice, QUICK)
    metrics = nobody.get("/metrics").text
    assert task_id not in metrics
    assert "alice" not in metrics


def test_the_log_has_the_request_and_neither_prompt_nor_token(alice: httpx.Client, server: ServerProcess) -> None:
    secret = f"prompt-{uuid4().hex}"
    answer = alice.post("/api/tasks", json={**QUICK, "prompt": secret})
    log = server.log.read_text()
    line = next(json.loads(one) for one in log.splitlines() if answer.headers["x-request-id"] in one)
    assert (line["route"], line["user"], line["status"]) == ("tasks.create", "alice", 202)
    assert secret not in log
    assert "alice-secret" not in log


def test_the_document_describes_every_call_that_is_served(described: Described, nobody: httpx.Client) -> None:
    for path, calls in described.document["paths"].items():
        for method in calls:
            answer = nobody.request(method.upper(), re.sub(r"\{\w+\}", "x", path))
            assert answer.status_code not in (405, 500), f"{method} {path}"
            assert answer.status_code != 404 or answer.json()["code"] != "not_found", f"{method} {path}"


def test_half_a_request_does_not_hold_the_next_one(server: ServerProcess, alice: httpx.Client) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as half:
        half.sendall(
            b"POST /api/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        )
        assert alice.get("/api/users/me").status_code == 200
