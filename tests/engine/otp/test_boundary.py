"""Whatever the code of a process raises stays its own affair: it ends, is reported, and nobody else notices."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from engine.otp import Crash, GenServer, Node, Ok, Reason, StartFailed, cast, current_node, spawn
from engine.otp.slot import Slot


async def a_cancelled_kept_from_an_earlier_scope() -> None:
    saved: BaseException | None = None
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as cancelled:
            saved = cancelled
    assert saved is not None
    raise saved


async def a_generator_exit() -> None:
    raise GeneratorExit


async def a_stop_iteration() -> None:
    raise StopAsyncIteration


async def a_group_of_everything() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a_generator_exit)
        nursery.start_soon(a_stop_iteration)


async def an_own_kind_of_base_exception() -> None:
    class Odd(BaseException):
        def __str__(self) -> str:
            raise RuntimeError("it cannot even be shown")

    raise Odd


async def a_nursery_that_is_cancelled_and_fails_at_it() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
        raise ValueError


FAULTS = [
    a_cancelled_kept_from_an_earlier_scope,
    a_generator_exit,
    a_stop_iteration,
    a_group_of_everything,
    an_own_kind_of_base_exception,
    a_nursery_that_is_cancelled_and_fails_at_it,
]
Fault = Callable[[], Awaitable[None]]


async def ended(start: Callable[[], Awaitable[object]]) -> Reason:
    """The reason with which the process ends that `start` starts."""
    pid = await start()
    process = current_node().awaken(pid)  # type: ignore[arg-type]
    assert process is not None
    slot = Slot()
    process.watch(slot, slot.resolve)
    return await slot.wait()


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_plain_process_ends_alone_of_whatever_it_raises(fault: Fault, node: Node) -> None:
    node.on_report = lambda _: None
    neighbour = await spawn(trio.sleep_forever)
    with trio.fail_after(5):
        assert isinstance(await ended(lambda: spawn(fault)), Crash)
    await wait_all_tasks_blocked()
    assert neighbour.alive
    assert node.pids() == [neighbour]


class Faulty(GenServer[Fault]):
    async def init(self, fault: Fault, at_once: bool = False) -> Ok[Fault]:
        if at_once:
            await fault()
        return Ok(fault)

    async def handle_cast(self, message: object, state: Fault) -> None:  # type: ignore[override]
        await state()

    async def terminate(self, reason: Reason, state: Fault) -> None:
        await state()


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_server_ends_alone_of_whatever_its_callbacks_raise(fault: Fault, node: Node) -> None:
    node.on_report = lambda _: None
    neighbour = await spawn(trio.sleep_forever)

    async def start() -> object:
        server = await Faulty.start(fault)
        cast(server, "now")
        return server

    with trio.fail_after(5):
        assert isinstance(await ended(start), Crash)
    assert neighbour.alive


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_starter_hears_of_whatever_init_raises(fault: Fault, node: Node) -> None:
    node.on_report = lambda _: None
    with trio.fail_after(5), pytest.raises(StartFailed) as failed:
        await Faulty.start(fault, True)
    assert isinstance(failed.value.reason, Crash)
    assert node.pids() == []
