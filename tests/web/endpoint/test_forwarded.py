"""Behind proxies: who the client is, and what a client can make us believe (nothing)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import UserError
from engine.otp import Node
from tests.web.endpoint.raw import connect, request
from tests.web.endpoint.running import lifespan, running
from web.endpoint.forwarded import Proxies

OLDER = Proxies.parse("10.0.0.0/8, fd00::/8, 127.0.0.1", "x-forwarded-for")
STANDARD = Proxies.parse("10.0.0.0/8, fd00::/8, 127.0.0.1", "forwarded")


def seen(proxies: Proxies, *headers: tuple[str, str], peer: str = "10.0.0.1") -> tuple[str, str]:
    return proxies.seen(peer, "http", [(name.lower().encode(), value.encode()) for name, value in headers])


@pytest.mark.parametrize(
    ("chain", "client"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("10.0.0.7, 203.0.113.9", "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("203.0.113.9, 10.0.0.3, 10.0.0.2", "203.0.113.9"),
        ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("203.0.113.9:4711", "203.0.113.9"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("203.0.113.9, unknown", "10.0.0.1"),
        ("203.0.113.9, unknown, 10.0.0.2", "10.0.0.2"),
        ("203.0.113.9, ", "10.0.0.1"),
        ("evil<script>, 10.0.0.2", "10.0.0.2"),
        ("", "10.0.0.1"),
    ],
)
def test_the_client_is_the_rightmost_who_is_no_trusted_proxy(chain: str, client: str) -> None:
    assert seen(OLDER, ("X-Forwarded-For", chain))[0] == client


def test_several_lines_of_the_header_are_one_list() -> None:
    assert seen(OLDER, ("X-Forwarded-For", "198.51.100.1"), ("X-Forwarded-For", "203.0.113.9"))[0] == "203.0.113.9"


def test_whoever_is_no_trusted_proxy_speaks_for_nobody() -> None:
    headers = (("X-Forwarded-For", "203.0.113.9"), ("X-Forwarded-Proto", "https"))
    assert seen(OLDER, *headers, peer="198.51.100.77") == ("198.51.100.77", "http")
    assert seen(OLDER, *headers, peer="") == ("", "http")


def test_the_other_notation_is_not_read() -> None:
    assert seen(OLDER, ("Forwarded", "for=203.0.113.9;proto=https")) == ("10.0.0.1", "http")
    assert seen(STANDARD, ("X-Forwarded-For", "203.0.113.9"), ("X-Forwarded-Proto", "https")) == ("10.0.0.1", "http")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("for=203.0.113.9;proto=https;by=10.0.0.1", ("203.0.113.9", "https")),
        ('For="[2001:db8::1]:4711"', ("2001:db8::1", "http")),
        ("for=198.51.100.1, for=203.0.113.9;proto=https, for=10.0.0.2;proto=http", ("203.0.113.9", "https")),
        ('for=198.51.100.1, for="_hidden"', ("10.0.0.1", "http")),
        ('for="6.6.6.6, for=203.0.113.9', ("203.0.113.9", "http")),
        ('for=6.6.6.6;by=", for="[2001:db8::1]"', ("10.0.0.1", "http")),
        ("for=203.0.113.9;for=198.51.100.1", ("10.0.0.1", "http")),
        ("proto=gopher;for=203.0.113.9", ("203.0.113.9", "http")),
    ],
)
def test_the_standard_notation(value: str, found: tuple[str, str]) -> None:
    assert seen(STANDARD, ("Forwarded", value)) == found


@pytest.mark.parametrize(
    ("clients", "protocols", "scheme"),
    [
        ("203.0.113.9", "https", "https"),
        ("203.0.113.9, 10.0.0.2", "https, http", "https"),
        ("198.51.100.1, 203.0.113.9, 10.0.0.2", "http, https, http", "https"),
        ("198.51.100.1, 203.0.113.9", "https", "https"),
        ("203.0.113.9", "javascript", "http"),
        ("203.0.113.9", "", "http"),
    ],
)
def test_the_scheme_is_the_one_that_the_client_used(clients: str, protocols: str, scheme: str) -> None:
    headers = (("X-Forwarded-For", clients), ("X-Forwarded-Proto", protocols))
    assert seen(OLDER, *headers)[1] == scheme


LIES = st.text(st.sampled_from('for=6.,;"\\[]:by 10')) | st.lists(
    st.sampled_from(["for=6.6.6.6", ",", ";", '"', "\\", "by=", "6.6.6.6", " ", "[::6]", "unknown"]), max_size=12
).map("".join)


@settings(max_examples=1000)
@given(LIES, st.sampled_from(["203.0.113.9", "2001:db8::1"]), st.sampled_from([OLDER, STANDARD]))
def test_nothing_that_a_client_sends_to_its_proxy_makes_it_another(lie: str, client: str, proxies: Proxies) -> None:
    """The proxy adds what it saw behind whatever was there. At worst the client is not known, and the proxy is told."""
    quoted = f'"[{client}]"' if ":" in client else client
    name, truth = (b"forwarded", f"for={quoted}") if proxies.standard else (b"x-forwarded-for", client)
    for lines in ([(name, lie.encode()), (name, truth.encode())], [(name, f"{lie}, {truth}".encode())]):
        assert proxies.seen("10.0.0.1", "http", lines)[0] in (client, "10.0.0.1")


@pytest.mark.parametrize("networks", ["10.0.0.1/8", "everywhere", "10.0.0.0/33", "*"])
def test_networks_that_are_none_are_refused(networks: str) -> None:
    with pytest.raises(UserError):
        Proxies.parse(networks, "forwarded")
    with pytest.raises(UserError):
        Proxies.parse("10.0.0.0/8", "x-real-ip")


async def test_the_application_sees_the_client_and_not_the_proxy(node: Node) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await lifespan(receive, send)
        body = json.dumps([scope["client"][0], scope["scheme"]]).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        return await send({"type": "http.response.body", "body": body})

    lines = ("X-Forwarded-For: 6.6.6.6, 203.0.113.9", "X-Forwarded-Proto: https")
    for proxies, found in ((OLDER, ["203.0.113.9", "https"]), (Proxies(), ["127.0.0.1", "http"])):
        async with running(app, proxies=proxies) as endpoint, connect(endpoint.port) as client:
            await client.say(request("/", *lines))
            assert json.loads((await client.response()).body) == found


async def test_a_trusted_proxy_is_not_counted_as_one_address(node: Node) -> None:
    async with (
        running(max_per_address=1, proxies=OLDER) as endpoint,
        connect(endpoint.port) as first,
        connect(endpoint.port) as second,
    ):
        for client in (first, second):
            await client.say(request("/"))
            assert (await client.response()).status == 200
