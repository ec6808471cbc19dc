"""Deliveries of providers, on a whole server: who is believed, what is stored, and that repeats are harmless."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import trio
from typed_settings.types import SecretStr

from engine.providers.webhooks import sign
from tests.real.conftest import data_dir as data_dir
from web.application import Application
from web.http.cog_webhooks import proof
from web.serve import running
from web.settings import Settings

OLD, NEW = ("whsec_" + base64.b64encode(secret * 32).decode() for secret in (b"o", b"n"))


@pytest.fixture
async def server(data_dir: Path) -> AsyncIterator[Application]:
    settings = Settings(
        port=0,
        data_dir=data_dir,
        local_model=False,
        preempt_budget=0,
        replicate_api_token=SecretStr("r8_x"),
        replicate_webhook_secrets=SecretStr(f"{OLD},{NEW}"),
        public_url="https://app.example",
        cog_urls="painter=http://127.0.0.1:9",
    )
    async with running(settings) as application:
        yield application


def prediction(status: str = "succeeded", **more: Any) -> bytes:
    return json.dumps({"id": "p1", "status": status, "output": "text", "logs": "", **more}).encode()


def signed(body: bytes, identifier: str, secret: str = NEW, age: int = 0) -> dict[str, str]:
    stamp = int(time.time()) - age
    return {
        "webhook-id": identifier,
        "webhook-timestamp": str(stamp),
        "webhook-signature": "v1,bm9uc2Vuc2U= " + sign(secret, identifier, stamp, body),
    }


async def rows(server: Application) -> list[tuple[Any, ...]]:
    async with server.persistence.pool.connection() as connection:
        cursor = await connection.execute("SELECT webhook_id, event_type, processed FROM webhook_events ORDER BY 1")
        return await cursor.fetchall()


async def test_deliveries_are_judged_stored_once_and_passed_on(server: Application) -> None:
    replicate, cog = server.backends.replicate, server.backends.cog
    assert replicate is not None
    assert cog is not None
    attempt = uuid4()
    path = f"/webhooks/replicate?task={uuid4()}&attempt={attempt}"
    async with httpx.AsyncClient(base_url=server.endpoint.urls[0], trust_env=False) as http:

        async def post(body: bytes, headers: dict[str, str], to: str = path) -> tuple[int, str]:
            answer = await http.post(to, content=body, headers={"content-type": "application/json", **headers})
            return answer.status_code, answer.json()["code"] if answer.content else ""

        good = prediction()
        with replicate.deliveries.waiting(attempt) as waiting:
            assert await post(good, signed(good, "msg_1")) == (204, "")
            assert await post(good, signed(good, "msg_1")) == (204, "")  # the same delivery again
            early = prediction("processing")
            assert await post(early, signed(early, "msg_0", OLD)) == (204, "")  # overtaken; the old secret still counts
            news = await waiting.take(5)
        assert news is not None
        assert news.status == "succeeded"
        assert await post(good, signed(good, "msg_2")) == (204, "")  # for an attempt that nobody waits for any more

        # a forged, a replayed, a stale, an unreadable one
        assert await post(prediction("failed"), signed(good, "msg_3")) == (401, "bad_signature")
        assert await post(good, {}) == (401, "bad_signature")
        assert await post(good, signed(good, "msg_4", age=1800)) == (400, "stale_delivery")
        assert await post(b"{", signed(b"{", "msg_5")) == (400, "invalid_json")
        assert await post(b"[]", signed(b"[]", "msg_6")) == (400, "invalid_request")
        assert await post(b"x" * 2_000_000, {}) == (413, "body_too_large")

        # a Cog server proves itself by its URL
        to = f"/webhooks/cog?attempt={attempt}&signature="
        with cog.deliveries.waiting(attempt) as waiting:
            assert await post(good, {}, to + "0" * 64) == (401, "bad_signature")
            assert await post(good, {}, to + proof(server.secret, uuid4())) == (401, "bad_signature")
            assert await post(good, {}, to + proof(server.secret, attempt)) == (204, "")
            news = await waiting.take(5)
        assert news is not None
        assert news.terminal
    with trio.fail_after(5):
        while not all(processed for *_, processed in await rows(server)):  # noqa: ASYNC110
            await trio.sleep(0.01)
    assert await rows(server) == [
        (f"cog:{attempt}", "completed", True),
        ("msg_0", "output", True),
        ("msg_1", "completed", True),
        ("msg_2", "completed", True),
    ]
