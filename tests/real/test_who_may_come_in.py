"""Tokens, origins and expiry at both doors of a whole server: the same answer over HTTP and on the socket."""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import structlog

from engine.errors import UserError
from tests.web.endpoint.raw import connect, request, text, upgrade, websocket
from web.application import Application
from web.serve import running
from web.settings import Settings, check

SECRET = "a secret of at least thirty-two bytes"
SOCKET = "/socket/websocket?vsn=2.0.0"

pytestmark = pytest.mark.real


def token(**claims: Any) -> str:
    return jwt.encode({"sub": "ann", **claims}, SECRET, algorithm="HS256")


@asynccontextmanager
async def guarded(data_dir: Path, **more: Any) -> AsyncIterator[Application]:
    values = {"port": 0, "data_dir": data_dir, "local_model": False, "jwt_secret": SECRET, **more}
    async with running(Settings(**values)) as application:
        yield application


async def status_of_upgrade(port: int, path: str, *headers: str) -> int:
    async with connect(port) as client:
        await client.say(upgrade(path, *headers))
        return (await client.response(bodyless=True)).status


async def status_of_request(port: int, path: str, *headers: str) -> int:
    async with connect(port) as client:
        await client.say(request(path, *headers))
        return (await client.response(bodyless=True)).status


async def test_both_doors_know_the_same_tokens_and_operators_have_a_role(data_dir: Path) -> None:
    good, late, other = token(), token(exp=int(time.time()) - 60), jwt.encode({"sub": "ann"}, "x" * 40)
    in_protocol = f"phoenix, base64url.bearer.phx.{b64encode(good.encode()).decode().rstrip('=')}"
    async with guarded(data_dir, tokens="opaque=bob") as application:
        port = application.endpoint.port
        for shown, let_in in ((None, False), (late, False), (other, False), (good, True), ("opaque", True)):
            header = [] if shown is None else [f"Authorization: Bearer {shown}"]
            assert await status_of_request(port, "/api/tasks", *header) == (200 if let_in else 401)
            assert await status_of_upgrade(port, SOCKET, *header) == (101 if let_in else 403)
            query = "" if shown is None else f"&token={shown}"
            assert await status_of_request(port, f"/api/tasks?{query}") == (200 if let_in else 401)
            assert await status_of_upgrade(port, SOCKET + query) == (101 if let_in else 403)
        assert await status_of_upgrade(port, SOCKET, f"Sec-WebSocket-Protocol: {in_protocol}") == 101
        for shown, status in ((good, 403), (token(role="operator"), 200)):
            assert await status_of_request(port, "/api/supervisor", f"Authorization: Bearer {shown}") == status
        assert await status_of_upgrade(port, SOCKET + "&vsn=9.9.9", f"Authorization: Bearer {good}") == 403


async def test_pages_of_other_sites_are_kept_out_of_both_doors(data_dir: Path) -> None:
    async with guarded(data_dir, allowed_origins="same, https://*.app.example") as application:
        port, header = application.endpoint.port, f"Authorization: Bearer {token()}"
        origins = {
            "http://localhost": 101,
            "https://a.app.example": 101,
            "https://evil.example": 403,
            "http://a.app.example": 403,
        }
        for origin, status in origins.items():
            assert await status_of_upgrade(port, SOCKET, header, f"Origin: {origin}") == status
            async with httpx.AsyncClient(base_url=application.endpoint.urls[0]) as http:
                headers = {"Authorization": f"Bearer {token()}", "Origin": origin, "Host": "localhost"}
                body = {"prompt": "x", "model": "simulate", "input": {"steps": 1, "interval": 0.01}}
                answer = await http.post("/api/tasks", json=body, headers=headers)
                assert answer.status_code == (202 if status == 101 else 403)


async def test_a_live_socket_ends_with_its_token_and_with_a_revocation(data_dir: Path) -> None:
    async with guarded(data_dir) as application:
        port = application.endpoint.port
        soon = token(exp=int(time.time()) + 2)
        async with (
            websocket(port, f"{SOCKET}&token={soon}") as brief,
            websocket(port, f"{SOCKET}&token={token()}") as held,
        ):
            await held.say(text('[null,"1","phoenix","heartbeat",{}]'))
            await held.frame()
            await application.revocations.revoke("ann", "olga")
            assert application.endpoint.roster.disconnect("users:ann") == 2
            assert [await brief.close_code(), await held.close_code()] == [1001, 1001]
        assert await status_of_upgrade(port, f"{SOCKET}&token={token()}") == 403
        await application.revocations.restore("ann")
        soon = token(exp=int(time.time()) + 2)
        async with websocket(port, f"{SOCKET}&token={soon}") as brief:
            assert await brief.close_code() == 1001


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_without_tokens_the_server_listens_on_loopback_only(host: str) -> None:
    with pytest.raises(UserError, match="loopback"):
        check(Settings(host=host))
    assert check(Settings(host=host, tokens="a=b")).guarded


async def test_a_user_who_was_shut_out_stays_out_after_a_restart_until_restored(data_dir: Path) -> None:
    mine, olga = f"Authorization: Bearer {token()}", {"Authorization": f"Bearer {token(sub='olga', role='operator')}"}
    async with guarded(data_dir) as application:
        url, port = application.endpoint.urls[0], application.endpoint.port
        async with httpx.AsyncClient(base_url=url, headers=olga, trust_env=False) as http, \
                websocket(port, SOCKET, mine) as client:  # fmt: skip
            answer = (await http.post("/api/users/ann/revoke")).json()
            assert (answer["sockets_closed"], answer["stored"]) == (1, True)
            assert await client.close_code() == 1001
    async with guarded(data_dir) as application:
        url, port = application.endpoint.urls[0], application.endpoint.port
        assert await status_of_request(port, "/api/tasks", mine) == 401
        assert await status_of_upgrade(port, SOCKET, mine) == 403
        async with httpx.AsyncClient(base_url=url, headers=olga, trust_env=False) as http:
            assert (await http.post("/api/users/ann/restore")).json()["stored"] is True
        assert await status_of_request(port, "/api/tasks", mine) == 200


async def test_behind_a_trusted_proxy_the_log_names_the_client(data_dir: Path) -> None:
    lines = (f"Authorization: Bearer {token()}", "X-Forwarded-For: 6.6.6.6, 203.0.113.9")
    async with guarded(data_dir, trusted_proxies="127.0.0.0/8") as application:
        with structlog.testing.capture_logs() as told:
            assert await status_of_request(application.endpoint.port, "/api/tasks", *lines) == 200
        assert [line["client"] for line in told if line["event"] == "request"] == ["203.0.113.9"]
