"""The official client of Phoenix, unmodified, in three generations. Numbers are those of the protocol's cases."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.real.clients.clients import Phoenix, phoenix
from tests.web.sockets.server import Server, open_server
from web.auth import AuthSettings
from web.auth.settings import parse_tokens

pytestmark = pytest.mark.real

GENERATIONS = ("phoenix-1-8-16", "phoenix-1-8-9", "phoenix-1-7-14")
T = "room:1"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with open_server("stream") as running:
        yield running


def socket_url(server: Server) -> str:
    return f"{server.line.url}/socket"


@pytest.fixture(params=GENERATIONS)
async def client(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Phoenix]:
    async with phoenix(request.param, socket_url(server)) as connected:
        await connected.do("connect")
        await connected.wait_for("open")
        yield connected


async def test_join_push_reply_and_leave(client: Phoenix) -> None:
    assert await client.ask("join", topic=T, params={"answer": {"room": "é"}, "after": {"n": 1}}) == (
        "ok",
        {"room": "é"},
    )
    assert (await client.wait_for("event", event="joined"))["payload"] == {"n": 1}
    assert await client.ask("push", topic=T, event="echo", payload={"n": [1, None]}) == ("ok", {"n": [1, None]})
    assert await client.ask("push", topic=T, event="shout", payload={"n": 2}) == ("ok", {})
    assert (await client.wait_for("event", event="shouted"))["payload"] == {"n": 2}
    assert await client.ask("push", topic=T, event="nonsense", payload={}) == ("error", {"reason": "unknown_event"})
    assert (await client.ask("leave", topic=T))[0] == "ok"
    await client.wait_for("channel_close", topic=T)
    assert await client.ask("join", topic=T) == ("ok", {})


async def test_a_refused_join_says_why(client: Phoenix) -> None:
    assert await client.ask("join", topic=T, params={"refuse": "no"}) == ("error", {"reason": "no"})
    assert await client.ask("join", topic="nowhere") == ("error", {"reason": "unmatched topic"})


async def test_bytes_go_and_come_as_bytes(client: Phoenix) -> None:
    await client.ask("join", topic=T)
    number = await client.do("bytes", topic=T, event="bytes", bytes=[1, 2, 3])
    assert (await client.wait_for("reply", id=number))["response"] == list(b"klm")


async def test_case_67_after_phx_error_the_client_joins_again(client: Phoenix) -> None:
    await client.ask("join", topic=T)
    await client.do("push", topic=T, event="crash", payload={})
    await client.wait_for("channel_error", topic=T)
    await client.wait_for("reply", status="ok")  # the join's callbacks run again
    assert (await client.ask("push", topic=T, event="who", payload={}))[1] == {"connects": "1", "joins": 2}


async def test_case_67_after_phx_close_it_does_not(client: Phoenix) -> None:
    await client.ask("join", topic=T)
    await client.do("push", topic=T, event="stop", payload=None)
    await client.wait_for("channel_close", topic=T)
    assert await client.ask("join", topic="room:2") == ("ok", {})
    assert [told for told in client.told if told.get("topic") == T] == []


@pytest.mark.parametrize("how", ["1001", "1012", "drop"])
async def test_case_66_it_connects_and_joins_again_with_fresh_params(server: Server, client: Phoenix, how: str) -> None:
    await client.ask("join", topic=T)
    for member in server.roster:
        if how == "drop":
            member.abort()
        else:
            member.close(int(how))
    closed = await client.wait_for("close")
    assert closed["code"] == (1006 if how == "drop" else int(how))
    await client.wait_for("open")
    await client.wait_for("reply", status="ok")
    assert (await client.ask("push", topic=T, event="who", payload={}))[1] == {"connects": "2", "joins": 2}


async def test_case_32_two_channels_on_one_topic_leave_the_newer_one(client: Phoenix) -> None:
    await client.ask("join", topic=T)
    assert await client.ask("join", topic=T) == ("ok", {})
    assert (await client.ask("push", topic=T, event="ping", payload={}))[0] == "ok"


@pytest.mark.parametrize("package", GENERATIONS)
async def test_heartbeats_keep_it_connected(package: str) -> None:
    from web.endpoint import EndpointSettings

    async with (
        open_server("stream", settings=EndpointSettings(idle_timeout=0.6)) as server,
        phoenix(package, socket_url(server), heartbeat=100) as client,
    ):
        await client.do("connect")
        await client.wait_for("open")
        await client.ask("join", topic=T, params={"after": {"n": 1}})
        await client.do("push", topic=T, event="slowly", payload={"seconds": 1.5})
        await client.wait_for("event", event="at_last")
        assert [told for told in client.told if told["on"] == "close"] == []


async def test_case_09_a_token_in_the_subprotocol(server: Server) -> None:
    auth = AuthSettings(tokens=parse_tokens("s3cret=ada"))
    async with (
        open_server("stream", auth=auth) as guarded,
        phoenix("phoenix-1-8-16", socket_url(guarded), authToken="s3cret") as client,
        phoenix("phoenix-1-8-16", socket_url(guarded), authToken="wrong") as stranger,
    ):
        await client.do("connect")
        await client.wait_for("open")
        assert await client.ask("join", topic=T) == ("ok", {})
        await stranger.do("connect")
        await stranger.wait_for("error")
        assert (await stranger.wait_for("close"))["code"] == 1006
        assert [told for told in stranger.told if told["on"] == "open"] == []


@pytest.mark.parametrize("package", ["phoenix-1-8-16", "phoenix-1-8-9"])  # 1.7 polls by XMLHttpRequest: no Node has it
@pytest.mark.parametrize("options", [{"transport": "longpoll"}, {"transport": "none"}, {"broken": True}])
async def test_without_a_websocket_it_polls(server: Server, package: str, options: dict[str, object]) -> None:
    async with phoenix(package, socket_url(server), **options) as client:
        await client.do("connect")
        await client.wait_for("open")
        assert await client.ask("join", topic=T, params={"answer": {"n": 1}}) == ("ok", {"n": 1})
        assert await client.ask("push", topic=T, event="echo", payload={"é": 2}) == ("ok", {"é": 2})
        await client.do("push", topic=T, event="shout", payload={"n": 3})
        assert (await client.wait_for("event", event="shouted"))["payload"] == {"n": 3}


@pytest.mark.parametrize(
    ("package", "ada", "bob"),
    [
        ("phoenix-1-8-16", "__proto__", "constructor"),
        ("phoenix-1-8-9", "__proto__", "constructor"),
        ("phoenix-1-7-14", "ada", "bob"),  # this one trips over such keys itself
    ],
)
async def test_cases_68_to_70_presence_as_the_client_puts_it_together(
    server: Server, package: str, ada: str, bob: str
) -> None:
    async with (
        phoenix(package, socket_url(server), params={"user": ada}) as one,
        phoenix(package, socket_url(server), params={"user": bob}) as two,
    ):
        for client in (one, two):
            await client.do("connect")
            await client.wait_for("open")
            await client.do("join", topic="lobby:1", params={})
            await client.do("presence", topic="lobby:1")
        await everybody(one, {ada: 1, bob: 1})
        await everybody(two, {ada: 1, bob: 1})
        await two.ask("push", topic="lobby:1", event="mood", payload={"mood": "glad"})
        seen = await everybody(one, {ada: 1, bob: 1})
        while seen[bob][0].get("mood") != "glad":
            seen = await everybody(one, {ada: 1, bob: 1})
        await two.do("leave", topic="lobby:1")
        await everybody(one, {ada: 1})


async def everybody(client: Phoenix, wanted: dict[str, int]) -> dict[str, list[dict[str, object]]]:
    """Waits until the client sees these keys, each with so many metas."""
    while True:
        seen = dict((await client.wait_for("sync"))["list"])
        if {key: len(metas) for key, metas in seen.items()} == wanted:
            return seen
