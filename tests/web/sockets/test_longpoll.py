"""Clients without a WebSocket. Numbers are those of the protocol's list of cases."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import trio
from attrs import define, field

from tests.web.sockets.server import Server
from web.auth import AuthSettings, OriginPolicy
from web.auth.settings import parse_tokens
from web.sockets.longpoll import frames_of, session_token, without_session
from web.sockets.transport import Upgrade

Open = Callable[..., Any]
stream_only = pytest.mark.parametrize("line", ["stream"], indirect=True)
T = "room:1"


@define
class Poller:
    """A client that asks and asks."""

    http: httpx.AsyncClient
    url: str
    query: dict[str, str] = field(factory=lambda: {"vsn": "2.0.0"})
    token: str | None = None

    @property
    def params(self) -> list[tuple[str, str]]:
        own = list(self.query.items())
        return own if self.token is None else [*own, ("token", self.token)]

    async def get(self, **headers: str) -> dict[str, Any]:
        response = await self.http.get(self.url, params=self.params, headers=headers)
        assert response.status_code == 200
        assert response.headers["cache-control"] == "no-store"
        answer: dict[str, Any] = response.json()
        if answer["status"] == 410 and "token" in answer:
            self.token = answer["token"]
        return answer

    async def post(self, *frames: Any, raw: bytes | None = None, **headers: str) -> int:
        body = raw if raw is not None else b"\n".join(json.dumps(frame).encode() for frame in frames)
        content = {"content-type": "application/x-ndjson"} | headers
        response = await self.http.post(self.url, params=self.params, content=body, headers=content)
        assert response.status_code == 200
        return int(response.json()["status"])

    async def frames(self) -> list[Any]:
        return [json.loads(message) for message in (await self.get())["messages"]]


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=10) as client:
        yield client


def poller(server: Server, http: httpx.AsyncClient, **query: str) -> Poller:
    return Poller(http, server.line.url.replace("ws", "http") + "/socket/longpoll", {"vsn": "2.0.0"} | query)


@stream_only
async def test_case_71_a_session_opens_with_410_and_carries_join_reply_and_push(
    server: Server, http: httpx.AsyncClient
) -> None:
    client = poller(server, http)
    first = await client.get()
    assert (first["status"], first.get("messages", [])) == (410, [])
    assert client.token
    assert await client.post(["11", "1", T, "phx_join", {"after": {"n": 1}}]) == 200
    frames = await client.frames()
    while len(frames) < 2:
        frames += await client.frames()
    assert frames[0] == ["11", "1", T, "phx_reply", {"status": "ok", "response": {}}]
    assert frames[1] == ["11", None, T, "joined", {"n": 1}]


@stream_only
async def test_case_71_an_empty_poll_answers_204_after_its_window(open_server: Open, http: httpx.AsyncClient) -> None:
    async with open_server(window=0.2) as server:
        client = poller(server, http)
        await client.get()
        assert (await client.get())["status"] == 204


@stream_only
async def test_case_72_a_post_on_a_dead_session_answers_410(open_server: Open, http: httpx.AsyncClient) -> None:
    async with open_server(window=0.1) as server:
        client = poller(server, http)
        await client.get()
        await server.all_gone("Socket")  # nobody polls: it dies by itself
        assert await client.post(["11", "1", T, "phx_join", {}]) == 410
        assert (await client.get())["status"] == 410


@stream_only
async def test_case_72_a_dispatch_that_takes_too_long_answers_408(open_server: Open, http: httpx.AsyncClient) -> None:
    async with open_server(window=0.3) as server:
        client = poller(server, http)
        await client.get()
        assert await client.post(["11", "1", T, "phx_join", {}]) == 200
        busy = [["11", str(n), T, "wait", {"for": "gate", "much": "x" * 5000}] for n in range(90)]
        assert await client.post(*busy) == 408
        server.room.gates["gate"].set()


@stream_only
async def test_case_72_lines_past_the_hundredth_are_ignored(server: Server, http: httpx.AsyncClient) -> None:
    client = poller(server, http)
    await client.get()
    heartbeats = [[None, str(n), "phoenix", "heartbeat", {}] for n in range(150)]
    assert await client.post(*heartbeats) == 200
    assert len(await client.frames()) == 100


@stream_only
async def test_case_72_the_header_wins_over_the_query(server: Server, http: httpx.AsyncClient) -> None:
    one, two = poller(server, http), poller(server, http)
    await one.get()
    await two.get()
    assert two.token
    assert await one.post([None, "1", "phoenix", "heartbeat", {}], **{"x-phoenix-longpoll-token": two.token}) == 200
    assert (await two.frames())[0][1] == "1"


@stream_only
async def test_a_refused_client_is_told_403(open_server: Open, http: httpx.AsyncClient) -> None:
    auth = AuthSettings(tokens=parse_tokens("s3cret=ada"))
    async with open_server(auth=auth, origins=OriginPolicy.parse("https://app.example")) as server:
        assert (await poller(server, http).get())["status"] == 403
        assert (await poller(server, http, token="wrong").get())["status"] == 403
        assert (await poller(server, http, token="s3cret").get(origin="https://evil.example"))["status"] == 403
        assert (await poller(server, http, token="s3cret").get())["status"] == 410
        assert (await poller(server, http).get(**{"x-phoenix-authtoken": "s3cret"}))["status"] == 410


@stream_only
async def test_pages_of_allowed_origins_may_ask(open_server: Open, http: httpx.AsyncClient) -> None:
    async with open_server(origins=OriginPolicy.parse("https://app.example")) as server:
        answer = await http.options(poller(server, http).url, headers={"origin": "https://app.example"})
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "POST" in answer.headers["access-control-allow-methods"]


@stream_only
async def test_a_malformed_line_ends_the_session(server: Server, http: httpx.AsyncClient) -> None:
    client = poller(server, http)
    await client.get()
    assert await client.post(raw=b"[nonsense") == 200
    assert (await client.get())["status"] == 410


@stream_only
async def test_a_client_that_lets_too_much_gather_is_closed(server: Server, http: httpx.AsyncClient) -> None:
    client = poller(server, http)
    await client.get()
    await client.post(["11", "1", T, "phx_join", {}])
    for _ in range(3):
        await client.post(["11", "2", T, "echo", {"a": "x" * 500_000}])
    with trio.fail_after(5):
        while (await client.get())["status"] != 410:
            pass


def test_lines_are_json_or_base64() -> None:
    lines = [b'["1"]', b'{"a":1}', base64.b64encode(b"\0bytes"), b"", b"[\xff", b"no base64!"]
    assert list(frames_of(lines)) == ['["1"]', '{"a":1}', b"\0bytes", b"", b""]


def test_the_last_of_two_tokens_is_the_sessions() -> None:
    upgrade = Upgrade("/", "token=mine&vsn=2.0.0&token=session", (), "")
    assert session_token(upgrade) == "session"
    assert without_session(upgrade).query == "token=mine&vsn=2.0.0"
