"""The garbage collector has nothing to do for processes, and is kept from looking at them."""

from __future__ import annotations

import gc

import pytest

from engine.otp import (
    HIBERNATE,
    KILL,
    TEMPORARY,
    UNIQUE,
    CallFailed,
    DynamicSupervisor,
    GenServer,
    Node,
    NoReply,
    Ok,
    Pid,
    Registry,
    Reply,
    Stop,
    Supervisor,
    Via,
    call,
    cast,
    exit,
    receive,
    resume,
    spawn,
    start_child,
    suspend,
    terminate_child,
    worker,
)
from engine.otp.collector import STEP, Collector
from tests.engine.otp.servers import Get, settle


class Actor(GenServer[int]):
    async def init(self, number: int) -> Ok[int]:
        return Ok(number)

    async def handle_call(self, request: object, caller: object, state: int) -> Reply[int]:
        return Reply(state, state)

    async def handle_cast(self, message: str, state: int) -> NoReply[int] | Stop[int]:
        match message:
            case "crash":
                raise ValueError("crash")
            case "sleep":
                return NoReply(state, HIBERNATE)
        return Stop()


async def live_and_die(registry: Registry, supervisor: Pid, way: str) -> None:
    if way == "kill":
        exit(await spawn(receive), KILL)
        return
    pid = await start_child(supervisor, worker(Actor, 1, name=Via(registry, "actor"), restart=TEMPORARY))
    await call(pid, Get())
    if way == "timeout":
        await suspend(pid)
        with pytest.raises(CallFailed):
            await call(pid, Get(), timeout=0.001)
        await resume(pid)
    elif way != "terminate":
        cast(pid, way)
    await settle()
    if pid.alive:
        await call(pid, Get())
        await terminate_child(supervisor, pid)


@pytest.mark.parametrize("way", ["kill", "terminate", "stop", "crash", "sleep", "timeout"])
async def test_a_process_that_ended_leaves_no_cycle_behind(node: Node, way: str) -> None:
    node.on_report = lambda report: None
    registry = Registry(UNIQUE, "names")
    supervisor = await DynamicSupervisor.start_link()
    await Supervisor.start_link([registry.spec()])
    await live_and_die(registry, supervisor, way)
    await settle()
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            await live_and_die(registry, supervisor, way)
        await settle()
        found = gc.collect()
    finally:
        gc.enable()
    # pytest's own context managers may leave a few; ten processes would leave hundreds
    assert found < 50


async def test_the_thresholds_are_the_nodes_while_it_is_open() -> None:
    before = gc.get_threshold()
    async with Node.open(collector=(12_345, 6, 7)):
        assert gc.get_threshold() == (12_345, 6, 7)
    assert gc.get_threshold() == before
    async with Node.open(collector=None):
        assert gc.get_threshold() == before


def test_a_grown_population_is_frozen_and_a_halved_one_thawed() -> None:
    collector = Collector((700, 10, 10))
    assert (collector.freeze_at, collector.thaw_at) == (STEP, 0)
    try:
        collector.grown(STEP)
        assert gc.get_freeze_count() > 0
        assert (collector.freeze_at, collector.thaw_at) == (2 * STEP, STEP // 2)
        collector.shrunk(STEP // 2 - 1)
        assert gc.get_freeze_count() == 0
        assert collector.thaw_at == 0
    finally:
        gc.unfreeze()
