"""The eight faults of a stock server, each shown on one, and shown to be gone here.

Both serve the same application, each in a process of its own.
"""

from __future__ import annotations

import pytest
import trio

from tests.web.endpoint.programs import Program, program
from tests.web.endpoint.raw import binary, connect, get, more, request, upgrade, websocket

MIB = 1024 * 1024
LETHAL = {
    "one byte behind an upgrade": upgrade("/echo") + b"x",
    "HTTP2-Settings that cannot be decoded": request(
        "/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: A"
    ),
}


async def send_lethal(server: Program, data: bytes) -> None:
    async with connect(server.port) as client:
        await client.say(data)
        with trio.move_on_after(1):
            await client.rest()


@pytest.mark.parametrize("data", LETHAL.values(), ids=LETHAL.keys())
async def test_fault_1_one_malformed_request_kills_a_stock_server_and_not_this_one(data: bytes) -> None:
    async with program("stock") as stock:
        await send_lethal(stock, data)
        assert await stock.has_ended(5)
    async with program("ours") as ours:
        await send_lethal(ours, data)
        assert (await get(ours.port)).body == b"alive"


async def stalled(server: Program) -> bytes:
    """What became of a handler that sends, with a deadline, to a client that reads nothing."""
    async with websocket(server.port, "/stall"):
        return (await get(server.port, "/notes/stall?patience=1.5")).body


async def test_fault_2_a_send_cannot_be_cancelled_on_a_stock_server() -> None:
    async with program("stock") as stock, program("ours") as ours:
        assert await stalled(stock) == b"nothing"
        assert await stalled(ours) == b"freed"


async def growth(server: Program, size: int) -> int:
    """How much a server grows under one endless message of `size` bytes in fragments."""
    before = server.resident()
    async with websocket(server.port, "/echo") as client:
        peak = before
        try:
            await client.say(binary(b"x" * 65536, fin=False))
            for _ in range(size // 65536):
                await client.say(more(b"x" * 65536, fin=False))
                peak = max(peak, server.resident())
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        return max(peak, server.resident()) - before


async def test_fault_3_the_message_limit_does_not_bound_the_memory_of_a_stock_server() -> None:
    async with program("stock") as stock, program("ours") as ours:
        assert await growth(stock, 60 * MIB) > 30 * MIB
        assert await growth(ours, 60 * MIB) < 8 * MIB


async def extensions(server: Program) -> str | None:
    async with connect(server.port) as client:
        await client.say(upgrade("/echo", "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"))
        return (await client.response()).headers.get("sec-websocket-extensions")


async def test_fault_4_compression_is_forced_on_a_stock_server() -> None:
    async with program("stock") as stock, program("ours") as ours:
        assert "permessage-deflate" in str(await extensions(stock))
        assert await extensions(ours) is None


async def silence(server: Program) -> int | None:
    """The close code for a client that says nothing and answers no ping; None when it is still there after 2 s."""
    async with websocket(server.port, "/echo") as client:
        with trio.move_on_after(2):
            return await client.close_code()
    return None


async def test_fault_5_a_silent_client_is_never_noticed_by_a_stock_server() -> None:
    async with program("stock") as stock, program("ours") as ours:
        assert await silence(stock) is None
        assert await silence(ours) == 1001


async def code_at_shutdown(server: Program) -> int:
    async with websocket(server.port, "/echo") as client:
        await server.ask_to_stop()
        return await client.close_code()


async def test_fault_6_a_stock_server_goes_away_without_a_word() -> None:
    async with program("stock") as stock, program("ours") as ours:
        assert await code_at_shutdown(stock) == 1006
        assert await code_at_shutdown(ours) == 1012
        assert await ours.has_ended(5)


async def code_after_crash(server: Program) -> int:
    async with websocket(server.port, "/crash") as client:
        return await client.close_code()


async def test_fault_7_a_crash_says_1000_on_a_stock_server() -> None:
    async with program("stock") as stock, program("ours") as ours:
        assert await code_after_crash(stock) == 1000
        assert await code_after_crash(ours) == 1011


async def leave_in_a_nursery(server: Program) -> bytes:
    async with websocket(server.port, "/nursery") as client:
        await client.say(binary(b"x"))
    return (await get(server.port, "/notes/nursery")).body


async def test_fault_8_a_client_that_leaves_is_an_exception_group_in_a_handler_and_a_message_to_a_socket() -> None:
    """Handlers are the same everywhere (they must use `finally`); a Socket process is never cancelled: see
    `test_websocket`, where it hears `Closed`."""
    async with program("stock") as stock, program("ours") as ours:
        assert await leave_in_a_nursery(stock) in (b"Cancelled", b"BaseExceptionGroup")
        assert await leave_in_a_nursery(ours) in (b"Cancelled", b"BaseExceptionGroup")
        assert (await get(ours.port)).body == b"alive"
