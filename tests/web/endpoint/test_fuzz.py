"""A short run of the fuzzer: the server answers a healthy client throughout, and its memory stays flat."""

from __future__ import annotations

import json

from scripts.fuzz import MIB, Target, fuzz
from tests.web.endpoint.programs import program
from tests.web.endpoint.raw import get


async def test_hostile_connections_hurt_nobody_else() -> None:
    async with program("ours") as ours:
        target = Target(ours.port, "/echo", ours.process.pid)
        report = await fuzz(target, connections=400, seed=7, at_once=20, say=lambda line: None)
        assert sum(report.attacks.values()) == 400
        assert report.failures == []
        assert len(report.healthy) > 20
        assert report.growth < 25 * MIB
        faults = json.loads((await get(ours.port, "/faults")).body)
        assert faults.keys().isdisjoint({"endpoint_error", "application_error", "socket_not_started"}), faults
