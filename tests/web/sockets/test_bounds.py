"""What a client can make the server hold, and what the log may say of it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio

from tests.web.sockets.lines import MemoryClient, ask
from tests.web.sockets.server import Server
from web.sockets.backlog import MUCH, OVERHEAD
from web.sockets.lane import Lane
from web.sockets.serializers import V2

pytestmark = pytest.mark.parametrize("line", ["memory"], indirect=True)
T = "room:1"


async def flood(server: Server, client: MemoryClient, count: int) -> None:
    """Fills the mailbox of a channel that is busy, message by message."""
    await ask(client, "11", "1", T, "phx_join", {})
    await client.send(["11", "w", T, "wait", {"for": "gate"}])
    await server.room.log.wait_for("waiting", T)
    for n in range(count):
        await client.send(["11", str(n), T, "echo", {"n": n, "much": "x" * 1000}])
        await trio.testing.wait_all_tasks_blocked()


async def test_a_client_that_floods_a_busy_channel_is_read_no_further(server: Server, client: MemoryClient) -> None:
    await flood(server, client, 400)
    (room,) = server.processes("ChannelServer")
    assert len(room.queue) <= MUCH // 1000
    assert not client.transport.reading
    server.room.gates["gate"].set()
    answers = [await client.receive() for _ in range(401)]
    assert [frame[1] for frame in answers[1:]] == [str(n) for n in range(400)]
    await trio.testing.wait_all_tasks_blocked()
    assert client.transport.reading


async def test_many_small_messages_weigh_something_too(server: Server, client: MemoryClient) -> None:
    lane = Lane(client.transport, V2(), T, "1", "1")
    weights = [lane.expect(1) for _ in range(MUCH // OVERHEAD)]
    assert lane.backlog.full
    lane.backlog.paused = True
    assert [lane.handled(weight) for weight in weights].count(True) == 1
    assert lane.backlog.weight == 0


async def test_a_busy_channel_that_crashes_lets_its_socket_read_on(server: Server, client: MemoryClient) -> None:
    await flood(server, client, 400)
    server.kill_channels(T)
    assert (await client.receive())[3] == "phx_error"
    unmatched = [await client.receive() for _ in range(400 - MUCH // 1000)]
    assert {frame[4]["response"]["reason"] for frame in unmatched} == {"unmatched topic"}
    assert client.transport.reading


async def test_the_log_names_the_client_and_not_what_it_sent(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for _ in range(100):
            async with server.connect() as client:
                await client.send('["1","1","secret topic", "secret')
                await client.closed()
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("elwift")]
    assert any("192.0.2.1" in line for line in lines)
    assert len(lines) < 50
    assert server.faults.counts["malformed_frame"] == 100
    assert "secret" not in caplog.text
    assert "Traceback" not in caplog.text


async def test_a_crash_report_of_a_channel_shows_no_payload(
    server: Server, client: MemoryClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        await ask(client, "11", "1", T, "phx_join", {"answer": {"token": "secret"}})
        await client.send(["11", "2", T, "crash", {"password": "secret"}])
        assert (await client.receive())[3] == "phx_error"
    reports = [record.getMessage() for record in caplog.records if "CrashReport" in record.getMessage()]
    assert reports
    assert "secret" not in caplog.text


async def test_a_bug_in_the_socket_process_closes_with_1011(server: Server, client: MemoryClient) -> None:
    await ask(client, "11", "1", T, "phx_join", {})
    (process,) = server.processes("Socket")
    broken: Any = None
    process.state.protocol = broken
    await client.send(["11", "2", "room:2", "phx_join", {}])
    assert await client.closed() == 1011
    await server.all_gone()
