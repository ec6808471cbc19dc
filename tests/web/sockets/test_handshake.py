"""Who may connect, and over which wire. Numbers are those of the protocol's list of cases."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import trio

from tests.web.sockets.lines import ask
from tests.web.sockets.server import RefusedUpgrade, Server
from web.auth import AuthSettings, OriginPolicy
from web.auth.settings import parse_tokens
from web.endpoint import EndpointSettings

Open = Callable[..., Any]
real_lines = pytest.mark.parametrize("line", ["stream", "asgi"], indirect=True)
stream_only = pytest.mark.parametrize("line", ["stream"], indirect=True)


async def status_of(server: Server, *arguments: Any, **options: Any) -> int:
    with pytest.raises(RefusedUpgrade) as refused:
        async with server.connect(*arguments, **options):
            pass
    return refused.value.status


async def greets(client: Any) -> bool:
    answer = await ask(client, None, "1", "phoenix", "heartbeat", {})
    return bool(answer[4]["status"] == "ok")


async def test_case_01_version_2_speaks_arrays(server: Server) -> None:
    async with server.connect("vsn=2.0.0") as client:
        assert isinstance(await ask(client, None, "1", "phoenix", "heartbeat", {}), list)


@pytest.mark.parametrize("query", ["vsn=1.0.0", ""])
async def test_case_02_version_1_or_none_speaks_objects(server: Server, query: str) -> None:
    async with server.connect(query) as client:
        await client.send({"topic": "phoenix", "event": "heartbeat", "payload": {}, "ref": "1"})
        ok = {"status": "ok", "response": {}}
        assert await client.receive() == {"topic": "phoenix", "event": "phx_reply", "ref": "1", "payload": ok}


@pytest.mark.parametrize("query", ["vsn=123.1.1", "vsn=2.0", "vsn=abc", "vsn[]=x", "vsn[a]=2.0.0", "vsn="])
async def test_case_03_other_versions_are_refused(server: Server, query: str) -> None:
    assert await status_of(server, query) == 403


async def test_case_04_a_client_without_a_valid_token_is_refused_before_it_is_accepted(open_server: Open) -> None:
    async with open_server(auth=AuthSettings(tokens=parse_tokens("s3cret=ada"))) as server:
        assert await status_of(server) == 403
        assert await status_of(server, "vsn=2.0.0&token=wrong") == 403
        async with server.connect("vsn=2.0.0&token=s3cret") as client:
            assert await greets(client)


async def test_case_05_the_application_chooses_the_status_of_its_refusal(open_server: Open) -> None:
    async with open_server(admit=lambda identity, upgrade: 429) as server:
        assert await status_of(server) == 429


async def test_case_06_only_allowed_origins_may_connect(open_server: Open) -> None:
    async with open_server(origins=OriginPolicy.parse("https://app.example")) as server:
        assert await status_of(server, headers=(("origin", "https://evil.example"),)) == 403
        async with server.connect(headers=(("origin", "https://app.example"),)) as client:
            assert await greets(client)
        async with server.connect() as client:
            assert await greets(client)


@real_lines
async def test_case_07_what_is_no_upgrade_is_a_bad_request(server: Server) -> None:
    url = server.line.url.replace("ws", "http") + "/socket/websocket?vsn=2.0.0"
    async with httpx.AsyncClient() as http:
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
            assert (await http.request(method, url)).status_code == 400


async def test_case_08_subprotocols_are_negotiated(open_server: Open) -> None:
    async with open_server(spoken=("sip",)) as server:
        assert await status_of(server, subprotocols=("mqtt",)) == 403
        async with server.connect(subprotocols=("sip",)) as client:
            assert await greets(client)
        async with server.connect() as client:
            assert await greets(client)


@real_lines
async def test_case_08_the_chosen_subprotocol_is_answered(server: Server) -> None:
    async with server.connect(subprotocols=("phoenix",)) as client:
        assert client.ws.subprotocol == "phoenix"
    async with server.connect() as client:
        assert client.ws.subprotocol is None


@pytest.mark.parametrize("token", ["1234", "s3cret~~??>>", "é"])
async def test_case_09_the_token_may_hide_in_the_subprotocols(open_server: Open, token: str) -> None:
    hidden = b64encode(token.encode()).decode().rstrip("=").replace("/", "_")
    async with open_server(auth=AuthSettings(tokens=parse_tokens(f"{token}=ada"))) as server:
        offers = ("phoenix", f"base64url.bearer.phx.{hidden}")
        async with server.connect(subprotocols=offers) as client:
            assert await greets(client)
            if not hasattr(client, "transport"):
                assert client.ws.subprotocol == "phoenix"
        assert await status_of(server, subprotocols=("phoenix", "base64url.bearer.phx.!!!")) == 403


async def test_case_10_every_handshake_is_judged_by_its_own_token(open_server: Open) -> None:
    async with open_server(auth=AuthSettings(tokens=parse_tokens("one=ada,two=bob"))) as server:
        users = []
        server.room.joiner = lambda self: users.append(self.identity.user)
        for token in ("one", "two"):
            async with server.connect(f"vsn=2.0.0&token={token}") as client:
                await ask(client, "1", "1", "room:1", "phx_join", {})
        assert users == ["ada", "bob"]


@real_lines
async def test_case_11_the_request_reaches_who_decides_and_the_channels(open_server: Open) -> None:
    asked: list[Any] = []
    joined: list[Any] = []
    headers = (("x-application", "swift"), ("user-agent", "test/1"), ("traceparent", "00-a-b-01"))

    def admit(identity: Any, upgrade: Any) -> int:
        asked.append(upgrade)
        return 0

    async with open_server(admit=admit) as server:
        server.room.joiner = lambda self: joined.append(self.connection)
        async with server.connect("vsn=2.0.0&name=a+b%20c&name=d&a[b]=1&empty=", headers=headers) as client:
            await ask(client, "1", "1", "room:1", "phx_join", {})
    assert asked[0].path == "/socket/websocket"
    assert asked[0].client == "127.0.0.1"
    assert [asked[0].header(name) for name, _ in headers] == ["swift", "test/1", "00-a-b-01"]
    assert joined[0].params == {"vsn": "2.0.0", "name": "d", "a[b]": "1", "empty": ""}
    assert joined[0].upgrade.header("traceparent") == "00-a-b-01"


@real_lines
async def test_case_12_a_socket_may_live_anywhere_and_its_path_may_have_variables(server: Server) -> None:
    seen: list[Any] = []
    server.room.joiner = lambda self: seen.append(self.connection.variables)
    async with server.connect(path="/of/acme/custom/websocket") as client:
        await ask(client, "1", "1", "room:1", "phx_join", {})
    assert seen == [{"tenant": "acme"}]


async def test_case_13_cookies_are_no_credentials_and_no_hindrance(open_server: Open) -> None:
    """There are no sessions here: nothing that a browser sends by itself lets anybody in, with a CSRF token or not."""
    async with open_server(auth=AuthSettings(tokens=parse_tokens("s3cret=ada"))) as server:
        cookie = (("cookie", "session=s3cret; token=s3cret"),)
        assert await status_of(server, "vsn=2.0.0&_csrf_token=s3cret", headers=cookie) == 403
        async with server.connect("vsn=2.0.0&_csrf_token=x&token=s3cret", headers=cookie) as client:
            assert await greets(client)


@real_lines
async def test_case_14_a_ping_is_answered_with_its_payload(server: Server) -> None:
    async with server.connect() as client:
        await client.ws.ping(b"payload")


@stream_only
async def test_case_17_a_client_that_falls_silent_is_closed(open_server: Open) -> None:
    async with open_server(settings=EndpointSettings(idle_timeout=0.2)) as server, server.connect() as client:
        assert await greets(client)
        assert await client.closed() == 1001


@real_lines
async def test_case_62_sockets_of_one_id_are_disconnected_together(open_server: Open) -> None:
    async with (
        open_server(auth=AuthSettings(tokens=parse_tokens("one=ada,two=bob"))) as server,
        server.connect("vsn=2.0.0&token=one") as ada,
        server.connect("vsn=2.0.0&token=two") as bob,
    ):
        for client in (ada, bob):
            await ask(client, "1", "1", "room:1", "phx_join", {})
        assert server.roster.disconnect("users:ada") == 1
        assert await ada.closed() == 1001
        assert await greets(bob)


@real_lines
async def test_case_64_a_drain_says_1012_and_nothing_else(server: Server) -> None:
    async with trio.open_nursery() as nursery, server.connect() as client:
        await ask(client, "1", "1", "room:1", "phx_join", {})
        nursery.start_soon(server.roster.drain, 2.0)
        assert await client.closed() == 1012


@stream_only
async def test_a_token_that_expires_ends_the_socket(open_server: Open) -> None:
    import time

    import jwt

    secret = "a secret of thirty-two characters"
    token = jwt.encode({"sub": "ada", "exp": int(time.time()) + 1}, secret, "HS256")
    settings = EndpointSettings(close_timeout=1.0)
    async with (
        open_server(auth=AuthSettings(secret=secret, leeway=0), settings=settings) as server,
        server.connect(f"vsn=2.0.0&token={token}") as client,
    ):
        assert await client.closed() == 1001
