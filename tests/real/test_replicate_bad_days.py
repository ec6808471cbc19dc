"""Replicate's bad days through a whole server, judged by what the bill says: one outcome, and nothing bought twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from tests.engine.providers.fake_replicate import PRICE
from tests.real.replicate import House, house, until

ONE = ("completed", None, 1, 1, 0)
"""Status, error's code, attempts, predictions bought, possible duplicates."""
AGAIN = ("completed", None, 2, 1, 0)

CREATE = {
    # the prediction was made, and its answer went astray: it is found
    "lost": (["lost after"], ONE),
    "half": (["half after"], ONE),
    "five-hundred": (["500 after"], ONE),
    "bad-gateway": (["502 after"], ONE),
    "html-answer": (["html after"], ONE),
    "unavailable": (["503 html after"], ONE),
    "gateway-timeout": (["504 after"], ONE),
    "hang": (["hang after"], ONE),
    # it was never made: it is made once
    "never": (["lost before"], AGAIN),
    "refused-500": (["500"], AGAIN),
    "half-json": (["half json"], AGAIN),
    "strange-id": (["hostile id"], AGAIN),
    # the service says when to come again: no attempt is burnt, none is even begun
    "throttled": (["throttled briefly"], ONE),
    # it says no
    "unknown-model": (["404"], ("failed", "model_not_found", 1, 0, 0)),
    "elsewhere": (["redirect https://elsewhere.example/"], ("failed", "provider_misconfigured", 1, 0, 0)),
}


async def outcome(house: House, name: str, task_id: str) -> tuple[Any, ...]:
    task = await house.ended(task_id)
    statement = await house.statement(task_id)
    code = (task["error"] or {}).get("code")
    return task["status"], code, task["attempt"], len(house.bought(name)), statement["total"]["duplicates"]


async def gathered(jobs: dict[str, Any]) -> dict[str, Any]:
    """The results of coroutines, side by side."""
    results: dict[str, Any] = {}

    async def one(name: str, job: Any) -> None:
        results[name] = await job

    async with trio.open_nursery() as nursery:
        for name, job in jobs.items():
            nursery.start_soon(one, name, job)
    return {name: results[name] for name in jobs}


async def test_whatever_becomes_of_the_answer_a_prediction_is_bought_once(data_dir: Path) -> None:
    async with house(data_dir) as at:

        async def scenario(name: str) -> tuple[Any, ...]:
            await at.model(name)
            for fault in CREATE[name][0]:
                at.service.faults.append((f"^POST /v1/models/acme/{name}/predictions ", fault))
            return await outcome(at, name, await at.start(name))

        found = await gathered({name: scenario(name) for name in CREATE})
        assert found == {name: expected for name, (_, expected) in CREATE.items()}
        assert not at.service.running()
        tokens = {headers["authorization"] for headers in at.service.headers}
        assert len(tokens) == 1


FOLLOW: dict[str, tuple[list[str], dict[str, Any], tuple[Any, ...]]] = {
    "asked-500": (["500", "503 html", "504"], {}, ONE),
    "asked-unknown": (["404"], {}, ONE),
    "asked-hang": (["hang before"], {}, ONE),
    "asked-half": (["half json", "html"], {}, ONE),
    "asked-lost": (["lost before", "half after"], {}, ONE),
    "asked-throttled": (["throttled briefly"], {}, ONE),
    "asked-elsewhere": (["redirect https://elsewhere.example/"], {}, ONE),
    "forbidden-content": ([], {"end": "failed", "error": "NSFW content"}, ("failed", "content_policy", 1, 1, 0)),
    "stopped-there": ([], {"end": "canceled"}, ("failed", "cancelled", 1, 1, 0)),
    "number": ([], {"output": 0.5}, ONE),
    "list": ([], {"output": ["a", "b"]}, ONE),
    "structure": ([], {"output": {"text": "a", "segments": [{"at": 1}]}}, ONE),
    "nul": ([], {"unstorable": True}, ONE),
    "figures": ([], {"metrics": {"input_token_count": 1e30, "output_token_count": -3, "x": "y"}}, ONE),
    "fields": ([], {"more": {"surprise": {"a": [1]}, "urls": None, "version": None, "model": 7}}, ONE),
    "long-logs": ([], {"log_bytes": 3_500_000}, ONE),
}


async def test_whatever_is_heard_of_a_prediction_the_task_has_one_end(data_dir: Path) -> None:
    async with house(data_dir) as at:

        async def scenario(name: str) -> tuple[Any, ...]:
            faults, script, _ = FOLLOW[name]
            await at.model(name)
            task_id = await at.start(name, **{"interval": 0.1, **script})
            await until(lambda: at.bought(name))
            (run,) = at.bought(name)
            at.service.faults.extend((f"^GET /v1/predictions/{run.id} ", fault) for fault in faults)
            return await outcome(at, name, task_id)

        found = await gathered({name: scenario(name) for name in FOLLOW})
        assert found == {name: expected for name, (_, _, expected) in FOLLOW.items()}
        assert not at.service.running()
        assert await at.duplicates() == 0


async def test_what_is_cancelled_stops_there_and_stands_on_the_bill(data_dir: Path) -> None:
    async with house(data_dir) as at:
        tasks: dict[str, str] = {}

        async def running(name: str, fault: str = "", **script: Any) -> None:
            await at.model(name)
            if fault:
                at.service.faults.append((f"^POST /v1/models/acme/{name}/predictions ", fault))
            tasks[name] = await at.start(name, **{"steps": 1, "held": True, **script})
            await until(lambda: at.bought(name))

        at.provider.api.create_within = 10.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running, "at-work")
            nursery.start_soon(
                running,
                "not-started",
                "",
            )
            nursery.start_soon(running, "being-made", "hang after")
            nursery.start_soon(running, "deaf")
            nursery.start_soon(running, "just-done")
        (deaf,), (done,) = at.bought("deaf"), at.bought("just-done")
        at.service.faults.extend([(f"^POST /v1/predictions/{deaf.id}/cancel ", "500")] * 2)
        await until(lambda: done.started_at)
        done.finish.set()
        await gathered({name: at.cancel(task_id) for name, task_id in tasks.items()})
        at.service.released.set()  # the answer to the one that was being made comes when nobody waits for it
        await at.settled(*tasks.values())
        assert not at.service.running()
        assert {name: len(at.bought(name)) for name in tasks} == dict.fromkeys(tasks, 1)
        statements = [await at.statement(task_id) for task_id in tasks.values()]
        assert {line["status"] for each in statements for line in each["predictions"]} <= {"canceled", "succeeded"}
        assert sum(each["total"]["cost"] or 0 for each in statements) == pytest.approx(at.service.bill(), rel=0.01)
        _, report = await at.http.get("/api/usage")
        assert report["total"]["cost"] == pytest.approx(at.service.bill(), rel=0.01)
        assert await at.duplicates() == 0


async def test_an_account_that_may_ask_seldom_is_asked_in_turn(data_dir: Path) -> None:
    """As with little credit: so many a minute, one at a time. No attempt is burnt, and few requests are wasted."""
    async with house(data_dir) as at:
        at.service.every = 0.2
        await at.model("rare")
        tasks = [await at.start("rare") for _ in range(8)]
        ended = [await at.ended(task_id) for task_id in tasks]
        assert [(task["status"], task["attempt"]) for task in ended] == [("completed", 1)] * 8
        assert len(at.bought("rare")) == 8
        asked = sum(method == "POST" for method, _ in at.service.requests)
        assert asked <= 3 * 8


async def test_files_are_fetched_again_by_new_links_and_from_known_hosts_alone(data_dir: Path) -> None:
    async with house(data_dir) as at:

        async def expired() -> tuple[Any, ...]:
            """The link that the prediction told is void by the time it is followed."""
            task_id, run = await at.begun("expired", files=2)
            at.service.faults.append((f"^GET /files/first/{run.id}/1", "renamed"))
            run.finish.set()
            return await outcome(at, "expired", task_id), len((await at.task(task_id))["outputs"])

        async def elsewhere() -> tuple[Any, ...]:
            task_id, run = await at.begun("elsewhere", output="http://169.254.169.254/latest/meta-data.png")
            run.finish.set()
            return await outcome(at, "elsewhere", task_id)

        found = await gathered({"expired": expired(), "elsewhere": elsewhere()})
        assert found["expired"] == (ONE, 2)
        status, code, _, bought, _ = found["elsewhere"]
        assert (status, code, bought) == ("failed", "forbidden_url", 1)


async def test_the_bill_is_ours_whatever_became_of_what_was_bought(data_dir: Path) -> None:
    """Failed attempts, cancelled ones and those that another model answered for: all of it is in the usage."""
    async with house(data_dir) as at:
        await at.model("reserve")
        status, reserve = await at.http.get("/api/models/reserve")
        assert status == 200
        await at.model("failing")
        await at.model("failing-over", fallbacks=[reserve["id"]])
        failing = await at.start("failing", end="failed", error="CUDA error", cost=2.0)
        over = await at.start("failing-over", end="failed", error="CUDA error", cost=3.0)
        ended = [await at.ended(task_id) for task_id in (failing, over)]
        assert [(task["status"], task["attempt"]) for task in ended] == [("failed", 3), ("failed", 3)]
        statement = await at.statement(failing)
        assert statement["total"]["cost"] == pytest.approx(3 * 2.0 * PRICE)
        assert {line["error_message"] for line in statement["predictions"]} == {"prediction_failed: CUDA error"}
        both = await at.statement(over)
        assert both["total"]["cost"] == pytest.approx(
            (len(at.bought("failing-over")) + len(at.bought("reserve"))) * 3 * PRICE
        )
        _, report = await at.http.get("/api/usage")
        assert report["total"]["cost"] == pytest.approx(at.service.bill())
        assert report["total"]["attempts"] == 6
