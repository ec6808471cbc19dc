"""The endpoint as a process: how it starts, what it says when it cannot, how it comes back, and its small rules."""

from __future__ import annotations

import logging
import socket

import pytest

from engine.errors import UserError
from engine.otp import KILL, Node, Supervisor, exit, stop, whereis
from tests.web.endpoint.apps import make_app
from tests.web.endpoint.raw import get, text, websocket
from tests.web.endpoint.running import Log, running, socket_app, until
from web.endpoint import Endpoint, EndpointSettings
from web.endpoint.faults import BURST, FaultLog
from web.endpoint.limits import Census, neighbourhood
from web.endpoint.upgrade import negotiate_deflate


async def test_a_free_port_is_found_and_published(node: Node) -> None:
    async with running() as endpoint:
        assert endpoint.urls == (f"http://127.0.0.1:{endpoint.port}",)
        assert (await get(endpoint.port)).status == 200


async def test_all_addresses_of_a_name_have_one_port(node: Node) -> None:
    async with running(host="localhost") as endpoint:
        assert {url.rpartition(":")[2] for url in endpoint.urls} == {str(endpoint.port)}


def test_a_taken_port_is_said_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        endpoint = Endpoint(EndpointSettings(port=other.getsockname()[1]), make_app())
        with pytest.raises(UserError, match="Another program listens") as refusal:
            endpoint.listen()
    assert refusal.value.code == "port_taken"


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.name.invalid"])
def test_an_address_that_is_not_ours_is_said(host: str) -> None:
    with pytest.raises(UserError) as refusal:
        Endpoint(EndpointSettings(host=host), make_app()).listen()
    assert refusal.value.code == "bad_address"


async def test_a_crashed_endpoint_comes_back_on_the_same_sockets(node: Node) -> None:
    log = Log()
    async with running(socket_app(log)) as endpoint:
        port = endpoint.port
        async with websocket(port, "/socket") as client:
            await client.say(text("hello"))
            await client.frame()
            process = whereis("endpoint")
            assert process is not None
            exit(process, KILL)
            assert (await get(port)).body == b"alive", "who came meanwhile waited in the kernel's queue"
            assert whereis("endpoint") != process
            assert await client.close_code() == 1006
        await until(lambda: log.news and not log.pids[0].alive)
        async with websocket(port, "/socket") as client:
            await client.say(text("again"))
            assert (await client.frame())[1] == b"again"


async def test_a_stopped_endpoint_leaves_its_port(node: Node) -> None:
    endpoint = Endpoint(EndpointSettings(), make_app())
    top = await Supervisor.start_link([endpoint.spec()])
    port = endpoint.port
    await stop(top)
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_faults_are_logged_with_their_client_and_not_without_end(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    faults = FaultLog(clock=lambda: now[0])
    with caplog.at_level(logging.WARNING, "elwift.endpoint"):
        for _ in range(int(BURST) + 30):
            faults.client("bad_request", "192.0.2.7", "our words")
        faults.client("slow_client", "192.0.2.8", "its outbox was full")
        assert len(caplog.records) == int(BURST) + 1, "one kind's flood hides no other"
        assert caplog.records[0].getMessage() == "bad_request from 192.0.2.7: our words"
        now[0] += 1.0
        faults.client("bad_request", "192.0.2.7", "our words")
        assert "30 more like it" in caplog.records[-1].getMessage()
    assert faults.counts == {"bad_request": int(BURST) + 31, "slow_client": 1}


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::"),
        ("", ""),
    ],
)
def test_what_counts_as_one_address(address: str, place: str) -> None:
    assert neighbourhood(address) == place


def test_the_census_counts_who_leaves_and_forgets_addresses() -> None:
    census = Census(3, 2)
    assert [census.enter(a) for a in ("a", "a", "a", "b", "c")] == [0, 0, 429, 0, 503]
    census.leave("a")
    assert census.enter("a") == 0
    for client in ("a", "a", "b"):
        census.leave(client)
    assert (census.total, len(census._by_address)) == (0, 0)


@pytest.mark.parametrize("offers", ["", "x-unknown", "permessage-deflate; server_max_window_bits=99", ";;;"])
def test_offers_of_compression_that_make_no_sense_are_ignored(offers: str) -> None:
    assert negotiate_deflate(offers) == (None, [])
