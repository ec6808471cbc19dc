"""What operators see and do over HTTP, on a real server."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from scripts.server import ServerProcess
from tests.web.http.test_api import LONG, code, ended, made


def nodes(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield tree
    for child in tree.get("children", []):
        yield from nodes(child)


def named(http: httpx.Client, name: str) -> dict[str, Any]:
    tree = http.get("/api/supervisor?children=500").json()["tree"]
    return next(node for node in nodes(tree) if node["id"] == name)


def until(true: Callable[[], Any], within: float = 10.0) -> Any:
    deadline = time.monotonic() + within
    while not (found := true()):
        assert time.monotonic() < deadline, "not true in time"
        time.sleep(0.03)
    return found


def test_the_tree_shows_who_watches_whom(olga: httpx.Client) -> None:
    answer = olga.get("/api/supervisor").json()
    tree = answer["tree"]
    assert (tree["id"], tree["kind"], tree["strategy"]) == ("elwift", "supervisor", "rest_for_one")
    first = [child["id"] for child in tree["children"]]
    assert first.index("persistence") < first.index("tasks") < first.index("jobs") < first.index("endpoint")
    assert tree["counts"]["active"] == len(first)
    assert all(node["started_at"] is None or node["started_at"] <= answer["at"] for node in nodes(tree))
    assert len({node["pid"] for node in nodes(tree) if node["pid"]}) > 15


def test_task_servers_are_paged_and_named_by_their_task(olga: httpx.Client, alice: httpx.Client) -> None:
    ids = [made(alice, LONG) for _ in range(5)]
    tasks = named(olga, "tasks")
    assert tasks["paged"]
    seen: list[str] = []
    cursor: str | None = None
    while True:
        more = {"cursor": cursor} if cursor else {}
        page = olga.get("/api/supervisor/children", params={"pid": tasks["pid"], "limit": 2, **more}).json()
        seen += [child["id"] for child in page["children"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert set(seen) >= {f"task:{task_id}" for task_id in ids}
    assert len(seen) == len(set(seen))
    brief = olga.get("/api/supervisor?children=2").json()["tree"]
    shown = next(node for node in nodes(brief) if node["id"] == "tasks")
    assert len(shown["children"]) == 2 < shown["counts"]["active"]
    for task_id in ids:
        alice.post(f"/api/tasks/{task_id}/cancel")


def test_a_process_is_described_without_what_the_user_said(olga: httpx.Client, alice: httpx.Client) -> None:
    task_id = made(alice, {**LONG, "prompt": "a most private matter"})
    process = olga.get(f"/api/processes/{named(olga, f'task:{task_id}')['pid']}")
    known = process.json()
    assert (known["behaviour"], known["task_id"], known["killable"]) == ("TaskServer", task_id, True)
    assert known["task"]["model"] == "simulate"
    assert "private matter" not in process.text
    alice.post(f"/api/tasks/{task_id}/cancel")


def test_a_killed_task_server_comes_back_and_its_task_is_done(olga: httpx.Client, alice: httpx.Client) -> None:
    task_id = made(alice, {"model": "simulate", "input": {"steps": 30, "interval": 0.05}})
    until(lambda: alice.get(f"/api/tasks/{task_id}").json()["progress"] > 0.1)
    before = named(olga, f"task:{task_id}")["pid"]
    assert olga.post(f"/api/processes/{before}/kill").status_code == 204
    assert code(olga.post(f"/api/processes/{before}/kill")) == (404, "no_such_process")
    assert until(lambda: named(olga, f"task:{task_id}")["restarts"]) == 1
    assert ended(alice, task_id)["status"] == "completed"
    lately = olga.get("/api/overview").json()["recent"]
    assert any(event["what"] == "operator" and before in event["words"] for event in lately)
    assert any(event["what"] == "restarted" and before in event["words"] for event in lately)


def test_a_supervisor_is_not_killed_from_here(olga: httpx.Client) -> None:
    for name in ("elwift", "tasks", "persistence"):
        assert code(olga.post(f"/api/processes/{named(olga, name)['pid']}/kill")) == (409, "not_stoppable")


@pytest.mark.parametrize("pid", ["<0.999999999>", "nonsense", "%00", "-1", "0.1.2", "9" * 400])
def test_a_pid_that_is_none_is_no_process(olga: httpx.Client, pid: str) -> None:
    assert code(olga.get(f"/api/processes/{pid}")) == (404, "no_such_process")
    assert code(olga.get("/api/supervisor/children", params={"pid": pid})) == (404, "no_such_process")


def test_the_overview_says_how_the_server_is(olga: httpx.Client) -> None:
    seen = olga.get("/api/overview").json()
    assert seen["journal"]["up"]
    assert seen["node"]["memory_bytes"] > 10_000_000
    assert {"default"} <= {queue["name"] for queue in seen["queues"]}
    assert "simulate" in {provider["name"] for provider in seen["providers"]}


def test_a_paused_queue_starts_nothing_until_it_is_resumed(olga: httpx.Client, alice: httpx.Client) -> None:
    assert olga.post("/api/queues/default/pause").json()["paused"] is True
    try:
        task_id = made(alice, {"model": "simulate", "input": {"steps": 1, "interval": 0}})
        stats = until(lambda: next(q for q in olga.get("/api/queues").json()["queues"] if q["available"]))
        assert (stats["name"], stats["paused"]) == ("default", True)
        assert alice.get(f"/api/tasks/{task_id}").json()["status"] == "queued"
    finally:
        assert olga.post("/api/queues/default/resume").json()["paused"] is False
    assert ended(alice, task_id)["status"] == "completed"


def test_a_queue_is_scaled_within_bounds(olga: httpx.Client) -> None:
    before = next(q for q in olga.get("/api/queues").json()["queues"] if q["name"] == "default")["limit"]
    assert olga.post("/api/queues/default/scale", json={"limit": before + 1}).json()["limit"] == before + 1
    assert olga.post("/api/queues/default/scale", json={"limit": before}).json()["limit"] == before
    assert code(olga.post("/api/queues/default/scale", json={"limit": -1})) == (400, "invalid_request")
    assert code(olga.post("/api/queues/default/scale", content=b"5")) == (415, "unsupported_media_type")


@pytest.mark.parametrize("action", ["pause", "resume", "dead-letters"])
def test_a_queue_that_is_none_is_refused(olga: httpx.Client, action: str) -> None:
    method = "GET" if action == "dead-letters" else "POST"
    assert code(olga.request(method, f"/api/queues/nonesuch/{action}")) == (404, "no_such_queue")


def test_dead_letters_are_listed_without_what_was_asked(olga: httpx.Client, alice: httpx.Client) -> None:
    wish = {"model": "simulate", "prompt": "hushed words", "input": {"steps": 1, "interval": 0, "fail_at": 1}}
    task_id = made(alice, wish)
    assert ended(alice, task_id)["status"] == "failed"
    answer = olga.get("/api/queues/default/dead-letters")
    assert task_id in [job["task_id"] for job in answer.json()["jobs"]]
    assert "hushed words" not in answer.text
    assert code(olga.get("/api/queues/default/dead-letters?cursor=x")) == (400, "invalid_cursor")


def test_a_job_is_held_back_released_and_cancelled(olga: httpx.Client, alice: httpx.Client) -> None:
    olga.post("/api/queues/default/pause")
    try:
        task_id = made(alice, {"model": "simulate", "input": {"steps": 1, "interval": 0}})
        waiting = olga.get("/api/jobs", params={"queue": "default", "state": "available"}).json()["jobs"]
        job = next(job for job in waiting if job["task_id"] == task_id)
        path = f"/api/jobs/{job['id']}"
        assert olga.post(f"{path}/suspend").json()["state"] == "suspended"
        assert code(olga.post(f"{path}/suspend")) == (409, "conflict")
    finally:
        olga.post("/api/queues/default/resume")
    after = made(alice, {"model": "simulate", "input": {"steps": 1, "interval": 0}})
    assert ended(alice, after)["status"] == "completed"
    assert alice.get(f"/api/tasks/{task_id}").json()["status"] == "queued"
    assert olga.post(f"{path}/release").json()["state"] == "scheduled"
    assert ended(alice, task_id)["status"] == "completed"
    assert code(olga.post(f"{path}/release")) == (409, "conflict")
    assert olga.get(path).json()["state"] == "completed"
    long = made(alice, LONG)
    jobs = until(lambda: olga.get("/api/jobs", params={"state": "executing"}).json()["jobs"])
    running = next(job for job in jobs if job["task_id"] == long)
    assert olga.post(f"/api/jobs/{running['id']}/cancel").json()["state"] == "cancelled"
    assert ended(alice, long)["status"] == "cancelled"


def test_a_dead_letter_is_tried_again_by_hand(olga: httpx.Client, alice: httpx.Client) -> None:
    wish = {"model": "simulate", "input": {"steps": 1, "interval": 0, "fail_at": 1, "fail_attempts": 1}}
    task_id = made(alice, wish)
    assert ended(alice, task_id)["status"] == "failed"
    dead = olga.get("/api/jobs", params={"state": "discarded"}).json()["jobs"]
    letter = next(job for job in dead if job["task_id"] == task_id)
    assert "simulated_failure" in letter["errors"][0]["error"]
    again = olga.post(f"/api/jobs/{letter['id']}/retry").json()
    assert (again["task_id"], again["id"] != letter["id"]) == (task_id, True)
    assert ended(alice, task_id)["status"] == "completed"
    assert code(olga.post(f"/api/jobs/{letter['id']}/retry")) == (409, "not_failed")
    assert code(olga.get("/api/jobs/00000000-0000-0000-0000-000000000000")) == (404, "no_such_job")
    assert code(olga.get("/api/jobs/x")) == (404, "no_such_job")
    assert code(olga.get("/api/jobs?state=asleep")) == (400, "invalid_request")


def test_a_user_who_is_shut_out_is_refused_until_restored(olga: httpx.Client, bob: httpx.Client) -> None:
    assert olga.post("/api/users/bob/revoke").json()["revoked"] is True
    try:
        assert code(bob.get("/api/tasks")) == (401, "unauthorized")
    finally:
        assert olga.post("/api/users/bob/restore").json()["revoked"] is False
    assert bob.get("/api/tasks").status_code == 200
    assert code(olga.post("/api/users/olga/revoke")) == (409, "conflict")


def test_operators_calls_are_for_operators(alice: httpx.Client, olga: httpx.Client) -> None:
    document = olga.get("/api/openapi.json").json()
    for path, calls in document["paths"].items():
        for method, call in calls.items():
            if call["tags"] == ["operators"]:
                answer = alice.request(method.upper(), re.sub(r"\{\w+\}", "x", path))
                assert code(answer) == (403, "forbidden"), f"{method} {path}"


def test_what_an_operator_does_is_in_the_audit_log(olga: httpx.Client, server: ServerProcess) -> None:
    answer = olga.post("/api/queues/default/resume")
    request_id = answer.headers["x-request-id"]
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if request_id in line]
    record = next(line for line in lines if line["event"] == "operator")
    assert (record["action"], record["operator"], record["queue"]) == ("resume", "olga", "default")


def test_metrics_say_what_an_autoscaler_and_an_alert_need(nobody: httpx.Client) -> None:
    metrics = nobody.get("/metrics").text
    for name in (
        "elwift_db_up 1.0",
        "elwift_unpersisted_entries 0.0",
        "elwift_processes ",
        "elwift_process_restarts_total",
        "elwift_jobs_oldest_available_age_seconds",
        "elwift_job_estimated_wait_seconds",
        "elwift_jobs_waiting",
        "elwift_http_request_duration_seconds_bucket",
    ):
        assert name in metrics


def test_what_ends_processes_before_memory_ends_stands_in_the_tree(olga: httpx.Client) -> None:
    names = [child["id"] for child in olga.get("/api/supervisor").json()["tree"]["children"]]
    assert {"memory of tasks", "memory of sockets"} <= set(names)
