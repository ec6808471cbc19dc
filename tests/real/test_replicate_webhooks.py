"""Replicate's webhooks through a whole server: late, twice, in the wrong order, forged, of others, lost and long."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import pytest
import trio
from attrs import evolve

from tests.engine.providers.fake_replicate import Run
from tests.real.replicate import PUBLIC, QUICK, House, house, until
from tests.real.test_replicate_bad_days import ONE, gathered, outcome


def asked(at: House, run: Run) -> int:
    return sum(target == f"/v1/predictions/{run.id}" for _, target in at.service.requests)


async def test_deliveries_bring_the_end_whatever_else_they_do(data_dir: Path) -> None:
    async with house(data_dir, webhooks=True) as at:
        at.provider.pace = evolve(QUICK, silence=60.0)  # what is not delivered is not heard in this test

        async def plain() -> None:
            task_id, run = await at.begun("plain")
            run.finish.set()
            assert await outcome(at, "plain", task_id) == ONE
            assert asked(at, run) == 0

        async def out_of_order() -> None:
            """The end is first, then come its beginning, its logs and the end again."""
            at.service.undelivered |= {"start", "logs"}
            task_id, run = await at.begun("order")
            run.finish.set()
            assert await outcome(at, "order", task_id) == ONE
            for _, identifier, body in [*run.deliveries[:-1], run.deliveries[-1], run.deliveries[-1]]:
                assert await at.service.post(run.body["webhook"], identifier, body) == 204
            assert await outcome(at, "order", task_id) == ONE

        async def foreign() -> None:
            """Deliveries that are not this attempt's change nothing, and stop nothing."""
            task_id, run = await at.begun("foreign")
            other, others = await at.begun("other")
            over = json.dumps({"id": others.id, "status": "succeeded", "output": "stolen"}).encode()
            unknown = json.dumps({"id": "p" * 26, "status": "failed", "error": "no"}).encode()
            mine = json.dumps({"id": run.id, "status": "failed", "error": "no"}).encode()
            url = run.body["webhook"]
            post = at.service.post
            assert await post(url, "msg_other", over) == 204  # another's prediction under this attempt's address
            assert await post(url, "msg_unknown", unknown) == 204
            assert await post(f"{PUBLIC}/webhooks/replicate?task={uuid4()}&attempt={uuid4()}", "m1", mine) == 204
            assert await post(f"{PUBLIC}/webhooks/replicate?task=x&attempt=%00", "msg_nobody", mine) == 204
            assert await post(url, "msg_forged", mine, secret="whsec_AAAA") == 401
            assert await post(url, "msg_old", mine, age=1800) == 400
            assert await post(url, "msg_half", mine[:-5]) == 400
            assert await post(url, "msg_list", b"[]") == 400
            assert {run.id, others.id} <= set(at.service.running())
            for each in (run, others):
                each.finish.set()
            assert await outcome(at, "foreign", task_id) == ONE
            assert await outcome(at, "other", other) == ONE

        async def long() -> None:
            """Ten megabytes of logs in the only delivery that says how it ended."""
            task_id, run = await at.begun("long", log_bytes=10_000_000)
            run.finish.set()
            assert await outcome(at, "long", task_id) == ONE
            assert asked(at, run) == 0

        await gathered({"plain": plain(), "foreign": foreign(), "long": long()})
        await out_of_order()
        assert not at.service.running()
        assert await at.duplicates() == 0


async def test_without_deliveries_the_prediction_is_asked_for(data_dir: Path) -> None:
    async with house(data_dir, webhooks=True) as at:
        at.service.webhooks = False
        task_id, run = await at.begun("silent")
        run.finish.set()
        assert await outcome(at, "silent", task_id) == ONE
        assert asked(at, run) > 0


async def test_a_delivery_names_the_prediction_whose_answer_was_lost(data_dir: Path) -> None:
    """The listing is of no use here; the delivery's address says whose the prediction is."""
    async with house(data_dir, webhooks=True) as at:
        at.service.lag = 3600.0
        await at.model("lost")
        at.service.faults.append(("^POST /v1/models/acme/lost/predictions ", "lost after"))
        task_id = await at.start("lost", interval=0.1)
        assert await outcome(at, "lost", task_id) == ONE


async def test_a_request_that_is_taken_late_is_stopped_counted_and_billed(data_dir: Path) -> None:
    """The service answered nothing for so long that it was asked again; then it makes the first one, too."""
    async with house(data_dir, webhooks=True) as at:
        await at.model("late")
        at.service.faults.append(("^POST /v1/models/acme/late/predictions ", "slow"))
        task_id = await at.start("late", steps=1, held=True)
        await until(lambda: at.bought("late"))
        (wanted,) = at.bought("late")
        at.service.released.set()
        await until(lambda: len(at.bought("late")) == 2)
        (stray,) = [run for run in at.bought("late") if run is not wanted]
        with trio.fail_after(30):
            await stray.over.wait()
        assert stray.status == "canceled"
        wanted.finish.set()
        task = await at.ended(task_id)
        assert (task["status"], task["attempt"]) == ("completed", 2)
        await at.settled(task_id)
        statement = await at.statement(task_id)
        assert statement["total"]["duplicates"] == 1
        assert statement["total"]["cost"] == pytest.approx(at.service.bill(), rel=0.01)
        assert await at.duplicates() == 1
