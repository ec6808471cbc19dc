"""WebSockets on the fast path: what the owner hears, what the client is told, and what bounds both."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
from websockets.frames import Frame, Opcode

from engine.otp import KILL, GenServer, Node, Ok, exit
from tests.web.endpoint.apps import make_app
from tests.web.endpoint.raw import (
    RawClient,
    binary,
    close,
    connect,
    get,
    more,
    text,
    upgrade,
    websocket,
)
from tests.web.endpoint.running import Log, overfill, running, socket_app, until
from web.endpoint import serve_socket
from web.sockets.transport import Accept, Closed, Received, Transport, Writable

KIB = 1024


@pytest.fixture
def log() -> Log:
    return Log()


async def test_text_and_binary_come_back_as_they_went(node: Node, log: Log) -> None:
    async with running(socket_app(log)) as endpoint, websocket(endpoint.port, "/socket") as client:
        for message in ("hello", "", "žluťoučký 🐎", "x" * 70_000):
            await client.say(text(message))
            assert await client.frame() == (Opcode.TEXT, message.encode())
        for data in (b"", b"\x00\xff", b"x" * 200):
            await client.say(binary(data))
            assert await client.frame() == (Opcode.BINARY, data)


async def test_a_byte_at_a_time_is_as_good_as_all_at_once(node: Node, log: Log) -> None:
    async with running(socket_app(log)) as endpoint, websocket(endpoint.port, "/socket") as client:
        for byte in text("slowly"):
            await client.say(bytes([byte]))
        assert await client.frame() == (Opcode.TEXT, b"slowly")


async def test_fragments_are_one_message_and_a_ping_may_come_between(node: Node, log: Log) -> None:
    async with running(socket_app(log)) as endpoint, websocket(endpoint.port, "/socket") as client:
        euro = "€".encode()
        ping = Frame(Opcode.PING, b"still there?").serialize(mask=True)
        head = Frame(Opcode.TEXT, euro[:1], fin=False).serialize(mask=True)
        await client.say(head + ping + more(euro[1:2], fin=False) + more(b"", fin=False) + more(euro[2:]))
        assert await client.frame() == (Opcode.PONG, b"still there?")
        assert await client.frame() == (Opcode.TEXT, euro)


async def test_case_14_a_ping_is_answered_with_its_payload(node: Node, log: Log) -> None:
    async with running(socket_app(log)) as endpoint, websocket(endpoint.port, "/socket") as client:
        await client.say(Frame(Opcode.PING, b"payload").serialize(mask=True))
        assert await client.frame() == (Opcode.PONG, b"payload")


async def test_frames_that_came_with_the_handshake_are_not_lost(node: Node, log: Log) -> None:
    async with running(socket_app(log)) as endpoint, connect(endpoint.port) as client:
        await client.say(upgrade("/socket") + text("early") + text("birds"))
        assert (await client.response()).status == 101
        assert [await client.frame(), await client.frame()] == [(Opcode.TEXT, b"early"), (Opcode.TEXT, b"birds")]


async def test_frames_of_one_turn_leave_in_one_write(node: Node, log: Log) -> None:
    async with running(socket_app(log)) as endpoint, websocket(endpoint.port, "/socket") as client:
        await client.say(text("hello"))
        await client.frame()
        for n in range(50):
            log.transports[0].send_text(b"%d" % n)
        assert len(await client.stream.receive_some(65536)) == sum(2 + len(str(n)) for n in range(50))


BROKEN_RULES = {
    "an unmasked frame": (Frame(Opcode.TEXT, b"x").serialize(mask=False), 1002),
    "a reserved bit": (b"\xf1\x80\x00\x00\x00\x00", 1002),
    "an unknown opcode": (b"\x83\x80\x00\x00\x00\x00", 1002),
    "a long ping": (b"\x89\xfe\x00\x80" + b"\x00" * 132, 1002),
    "a fragmented ping": (b"\x09\x80\x00\x00\x00\x00", 1002),
    "a continuation of nothing": (more(b"x"), 1002),
    "a message within a message": (text("x", fin=False) + text("y"), 1002),
    "a close frame of one byte": (b"\x88\x81\x00\x00\x00\x00x", 1002),
    "text that is not UTF-8": (Frame(Opcode.TEXT, b"\xff\xfe").serialize(mask=True), 1007),
    "fragments that are not UTF-8": (text("x", fin=False) + more(b"\xe2\x82"), 1007),
    "a frame that is too large": (b"\x82\xff" + (1 << 40).to_bytes(8, "big") + b"\x00" * 4, 1009),
    "a message that is too large": (binary(b"x" * 40_000, fin=False) + more(b"x" * 40_000), 1009),
}


@pytest.mark.parametrize(("data", "code"), BROKEN_RULES.values(), ids=BROKEN_RULES.keys())
async def test_a_broken_rule_closes_with_its_code_and_is_noted_once(
    node: Node, log: Log, data: bytes, code: int
) -> None:
    async with running(socket_app(log), max_message=65_536) as endpoint:
        async with websocket(endpoint.port, "/socket") as client:
            await client.say(data)
            assert await client.close_code() == code
        await until(lambda: log.news and isinstance(log.news[-1], Closed))
        assert log.news[-1].code == code  # type: ignore[attr-defined]
        assert endpoint.faults.counts == {"websocket_error": 1}
        assert (await get(endpoint.port)).status == 200


async def test_the_clients_own_close_is_echoed_and_heard(node: Node, log: Log) -> None:
    async with running(socket_app(log)) as endpoint:
        async with websocket(endpoint.port, "/socket") as client:
            await client.say(close(1000))
            assert await client.close_code() == 1000
            assert await client.rest() == b""
        await until(lambda: log.news)
        assert log.news == [Closed(1000)]
        await until(lambda: not endpoint.connections)
        assert endpoint.faults.counts == {}


async def test_a_client_that_vanishes_is_heard_as_1006(node: Node, log: Log) -> None:
    async with running(socket_app(log)) as endpoint:
        async with websocket(endpoint.port, "/socket"):
            pass
        await until(lambda: log.news)
        assert log.news == [Closed(1006)]
        await until(lambda: not endpoint.connections)


@pytest.mark.parametrize("how", ["crash", "kill"])
async def test_a_socket_process_that_dies_leaves_1011(node: Node, log: Log, how: str) -> None:
    async with running(socket_app(log)) as endpoint:
        async with websocket(endpoint.port, "/socket") as client:
            if how == "crash":
                await client.say(text("crash"))
            else:
                exit(log.pids[0], KILL)
            assert await client.close_code() == 1011
        assert (await get(endpoint.port)).status == 200


async def test_the_owner_closes_with_its_own_code_after_what_it_had_said(node: Node, log: Log) -> None:
    async with running(socket_app(log)) as endpoint, websocket(endpoint.port, "/socket") as client:
        await client.say(text("first") + text("close 4001"))
        assert await client.frame() == (Opcode.TEXT, b"first")
        assert await client.frame() == (Opcode.CLOSE, (4001).to_bytes(2, "big") + b"as asked")


async def test_a_client_that_never_answers_a_close_frame_is_dropped(node: Node, log: Log) -> None:
    async with running(socket_app(log), close_timeout=0.3) as endpoint, websocket(endpoint.port, "/socket") as client:
        await client.say(text("close 1012"))
        assert await client.close_code() == 1012
        await until(lambda: not endpoint.connections)


async def test_case_17_silence_is_closed_and_a_word_prolongs(node: Node, log: Log) -> None:
    async with running(socket_app(log), idle_timeout=0.4) as endpoint, websocket(endpoint.port, "/socket") as client:
        for _ in range(4):
            await trio.sleep(0.2)
            await client.say(text("alive"))
            assert await client.frame() == (Opcode.TEXT, b"alive")
        with trio.fail_after(2):
            assert await client.close_code() == 1001


async def test_a_client_that_does_not_read_is_congested_then_closed(node: Node, log: Log) -> None:
    async with (
        running(socket_app(log), max_outbox=512 * KIB, high_water=32 * KIB, close_timeout=0.5) as endpoint,
        websocket(endpoint.port, "/socket"),
    ):
        await until(lambda: log.transports)
        transport = log.transports[0]
        overfill(transport)
        await until(lambda: log.news)
        assert log.news == [Closed(1013, "too slow")]
        await until(lambda: not endpoint.connections)
        assert endpoint.faults.counts == {"slow_client": 1}


async def test_a_slow_reader_gets_whole_frames_and_then_the_code(node: Node, log: Log) -> None:
    """What had begun is finished, the rest is given up, and the close frame can be read."""
    async with (
        running(socket_app(log), max_outbox=256 * KIB) as endpoint,
        websocket(endpoint.port, "/socket") as client,
    ):
        await client.say(text("push 64") * 200)
        await until(lambda: log.transports[0].closed)
        assert await client.close_code() == 1013


async def test_a_congested_client_that_catches_up_is_writable_again(node: Node, log: Log) -> None:
    async with (
        running(socket_app(log), high_water=32 * KIB, max_outbox=0) as endpoint,
        websocket(endpoint.port, "/socket") as client,
    ):
        await until(lambda: log.transports)
        transport, sent = log.transports[0], 0
        while not transport.congested or sent < 1 << 20:
            transport.send_text(b"x" * KIB)
            sent += KIB
        for _ in range(sent // KIB):
            await client.frame()
        await until(lambda: log.news)
        assert log.news == [Writable()]
        assert not transport.congested


class Talkative(GenServer[None]):
    """Says a lot before anybody has listened."""

    async def init(self, transport: Transport, frames: int) -> Ok[None]:
        for _ in range(frames):
            transport.send_text(b"x" * KIB)
        return Ok(None)


@pytest.mark.parametrize(("frames", "code"), [(100, 1006), (300, 1013)])
async def test_what_an_owner_says_in_its_init_comes_behind_the_handshake(node: Node, frames: int, code: int) -> None:
    """Also when it is too much: the client is let in, and told so."""
    app = make_app()

    @app.websocket("/talkative")
    async def talkative() -> Any:
        return await serve_socket(Accept(lambda transport: Talkative.start(transport, frames)))

    async with running(app, max_outbox=256 * KIB) as endpoint, websocket(endpoint.port, "/talkative") as client:
        if code == 1006:
            for _ in range(frames):
                assert await client.frame() == (Opcode.TEXT, b"x" * KIB)
        else:
            assert await client.close_code() == code


async def test_one_slow_reader_neither_slows_a_hundred_others_nor_grows_memory(node: Node, log: Log) -> None:
    """It reads 1 KiB at a time, at 1 KiB a second; the others have had everything before it has had a little."""
    frame, rounds, got = b"x" * 4 * KIB, 150, 0

    async def read_all(client: RawClient) -> None:
        nonlocal got
        for _ in range(rounds):
            assert await client.frame() == (Opcode.TEXT, frame)
        got += 1

    async def read_slowly(client: RawClient) -> None:
        while await client.stream.receive_some(KIB):  # noqa: ASYNC110  # being slow is what it is for
            await trio.sleep(1)

    async with running(socket_app(log), max_outbox=128 * KIB) as endpoint, AsyncExitStack() as stack:
        async with trio.open_nursery() as slow, trio.open_nursery() as healthy:
            reader = await stack.enter_async_context(websocket(endpoint.port, "/socket", receive_buffer=4 * KIB))
            slow.start_soon(read_slowly, reader)
            for _ in range(100):
                client = await stack.enter_async_context(websocket(endpoint.port, "/socket"))
                healthy.start_soon(read_all, client)
            for _ in range(rounds):
                for transport in log.transports:
                    transport.send_text(frame)
                    assert transport._queued <= 132 * KIB  # type: ignore[attr-defined]
                await until(lambda: not any(t.congested for t in log.transports[1:]))
            assert log.transports[0].closed
            healthy.cancel_scope.deadline = trio.current_time() + 20
            slow.start_soon(_cancel_when, slow, lambda: got == 100)
        assert got == 100
        assert [news for news in log.news if isinstance(news, Closed)] == [Closed(1013, "too slow")]


async def _cancel_when(nursery: trio.Nursery, condition: Callable[[], object]) -> None:
    await until(condition)
    nursery.cancel_scope.cancel()


async def test_nothing_is_read_until_the_owner_resumes(node: Node, log: Log) -> None:
    async with running(socket_app(log), max_message=0) as endpoint, websocket(endpoint.port, "/socket") as client:
        await client.say(text("hello"))
        await client.frame()
        transport = log.transports[0]
        resume, calls = type(transport).resume, []
        type(transport).resume = lambda self: calls.append(self)  # type: ignore[method-assign]
        try:
            await client.say(text("one"))
            await until(lambda: calls)
            with trio.move_on_after(0.3) as flooding:
                while True:
                    await client.stream.send_all(text("x" * 65_000))
            assert flooding.cancelled_caught, "the kernel's buffers filled, for nobody reads"
            assert sum(isinstance(news, Received) for news in log.news) == 2
        finally:
            type(transport).resume = resume  # type: ignore[method-assign]


async def test_all_clients_together_may_not_make_the_server_hold_too_much(node: Node, log: Log) -> None:
    """Five half-sent messages of 60 KiB do not fit into 256 KiB: one is sent away, the rest may go on."""
    async with running(socket_app(log), max_buffered=256 * KIB) as endpoint, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(websocket(endpoint.port, "/socket")) for _ in range(5)]
        for client in clients:
            await client.say(text("x" * 60 * KIB, fin=False))
        await until(lambda: endpoint.faults.counts == {"too_much_buffered": 1})
        for client in clients:
            await client.say(more(b"") + close(1000))
        assert sorted([await client.close_code() for client in clients]) == [1000] * 4 + [1013]
        for client in clients:
            await client.stream.aclose()
        await until(lambda: not endpoint.connections)
        assert endpoint._server is not None
        assert endpoint._server.hub.budget.held == 0


async def test_expiry_is_enforced_on_a_live_socket(node: Node, log: Log) -> None:
    app = socket_app(log, user="ann", expires_at=time.time() + 0.3)
    async with running(app, close_timeout=1.0) as endpoint, websocket(endpoint.port, "/socket") as client:
        with trio.fail_after(3):
            assert await client.close_code() == 1001


async def test_case_62_disconnecting_by_socket_id_closes_all_of_that_id_with_1001(node: Node, log: Log) -> None:
    async with (
        running(socket_app(log, socket_id="users:ann")) as endpoint,
        websocket(endpoint.port, "/socket") as one,
        websocket(endpoint.port, "/socket") as two,
    ):
        await until(lambda: len(log.transports) == 2)
        assert endpoint.roster.disconnect("users:bob") == 0
        assert endpoint.roster.disconnect("users:ann") == 2
        assert [await one.close_code(), await two.close_code()] == [1001, 1001]
        await until(lambda: len(log.news) == 2)


async def test_a_user_with_too_many_sockets_is_refused_before_the_handshake(node: Node, log: Log) -> None:
    async with running(socket_app(log, user="ann"), max_per_user=1) as endpoint:
        async with websocket(endpoint.port, "/socket") as first, connect(endpoint.port) as second:
            await second.say(upgrade("/socket"))
            assert (await second.response()).status == 429
            await first.say(close(1000))
            await first.rest()
        await until(lambda: not len(endpoint.roster))
        async with websocket(endpoint.port, "/socket"):
            pass


async def test_case_4_a_refusal_is_403_with_an_empty_body(node: Node) -> None:
    async with running() as endpoint, connect(endpoint.port) as client:
        await client.say(upgrade("/refuse"))
        found = await client.response()
        assert (found.status, found.body) == (403, b"")


async def test_case_7_a_get_without_upgrade_is_400(node: Node, log: Log) -> None:
    async with running(socket_app(log)) as endpoint:
        assert (await get(endpoint.port, "/socket")).status == 400


async def test_case_64_a_drain_tells_1012_to_all_in_batches_and_refuses_newcomers(node: Node, log: Log) -> None:
    codes: list[int] = []
    moments: list[float] = []

    async def listen(client: RawClient) -> None:
        codes.append(await client.close_code())
        moments.append(trio.current_time())
        await client.stream.aclose()

    async with running(socket_app(log)) as endpoint, AsyncExitStack() as stack, trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(listen, await stack.enter_async_context(websocket(endpoint.port, "/socket")))
        with trio.fail_after(8):
            await endpoint.drain(4.0)
        await until(lambda: len(codes) == 40)
        assert set(codes) == {1012}
        assert max(moments) - min(moments) > 0.15, "not all at once"


async def test_a_drain_drops_clients_that_never_leave(node: Node, log: Log) -> None:
    async with running(socket_app(log)) as endpoint, websocket(endpoint.port, "/socket"):
        with trio.fail_after(2):
            await endpoint.drain(0.4)
        await until(lambda: not endpoint.connections)


def compressed(data: bytes) -> bytes:
    """A text frame with the bit that says: compressed (RFC 7692 6)."""
    frame = bytearray(Frame(Opcode.TEXT, data.removesuffix(b"\x00\x00\xff\xff")).serialize(mask=True))
    frame[0] |= 0x40
    return bytes(frame)


async def test_compression_is_spoken_when_it_is_switched_on_and_asked_for(node: Node, log: Log) -> None:
    async with (
        running(socket_app(log), compression=True, max_message=65_536) as endpoint,
        connect(endpoint.port) as client,
    ):
        await client.say(upgrade("/socket", "Sec-WebSocket-Extensions: permessage-deflate"))
        assert "permessage-deflate" in (await client.response()).headers["sec-websocket-extensions"]
        deflate = zlib.compressobj(wbits=-12)
        packed = deflate.compress(b"squeeze me" * 100) + deflate.flush(zlib.Z_SYNC_FLUSH)
        await client.say(compressed(packed))
        _, answer = await client.frame()
        inflate = zlib.decompressobj(wbits=-12)
        assert inflate.decompress(answer + b"\x00\x00\xff\xff") == b"squeeze me" * 100
        bomb = deflate.compress(b"\0" * (16 << 20)) + deflate.flush(zlib.Z_SYNC_FLUSH)
        await client.say(compressed(bomb))
        assert await client.close_code() == 1009
