"""A small Replicate for tests: its statuses, schedule, throttling, webhooks and signatures, and its bad days.

What a prediction does is told by its input: `{"script": {...}}` (see Script); faults of the service by `Service`.
"""

from __future__ import annotations

import base64
import json
import re
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpx
import trio
from attrs import define, field

from engine.providers.webhooks import sign
from tests.engine.providers import raw_http
from tests.engine.providers.raw_http import Reply, Request

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes ...").decode()
TOKEN = "r8_test"


@define
class Script:
    """What one prediction does: seconds in `starting`, then `steps` of `interval` seconds, then `end`."""

    starting: float = 0.02
    steps: int = 3
    interval: float = 0.02
    end: str = "succeeded"
    output: Any = "done"
    pieces: list[str] | None = None
    error: str | None = None
    held: bool = False
    """Whether it goes on until `Run.finish` is set."""


@define(eq=False)
class Run:
    id: str
    body: dict[str, Any]
    script: Script
    created_at: datetime
    status: str = "starting"
    output: Any = None
    logs: str = ""
    metrics: dict[str, Any] = field(factory=dict)
    error: str | None = None
    life: trio.CancelScope = field(factory=trio.CancelScope)
    over: trio.Event = field(factory=trio.Event)
    finish: trio.Event = field(factory=trio.Event)
    asked: trio.Event = field(factory=trio.Event)
    """Set whenever the prediction is asked for."""

    def view(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "model": "acme/painter",
            "version": self.body.get("version", "hidden"),
            "input": self.body["input"],
            "status": self.status,
            "output": self.output,
            "logs": self.logs,
            "error": self.error,
            "metrics": self.metrics,
            "created_at": self.created_at.isoformat(),
            "urls": {"get": f"/v1/predictions/{self.id}", "cancel": f"/v1/predictions/{self.id}/cancel"},
        }


@define(eq=False)
class Service:
    """The service and its faults. Each entry of `faults` is met once, by the next request whose path matches."""

    nursery: trio.Nursery
    url: str = ""
    runs: dict[str, Run] = field(factory=dict)
    faults: deque[tuple[str, str]] = field(factory=deque)
    webhooks: bool = True
    duplicate_webhooks: bool = False
    requests: list[tuple[str, str]] = field(factory=list)
    headers: list[dict[str, str]] = field(factory=list)
    created: trio.Event = field(factory=trio.Event)

    def creates(self) -> int:
        return len(self.runs)

    # --- predictions ------------------------------------------------------------------------------------

    def create(self, body: dict[str, Any]) -> Run:
        script = Script(**body["input"].get("script", {}))
        run = Run(uuid4().hex[:26], body, script, datetime.now(UTC))
        self.runs[run.id] = run
        self.created.set()
        self.nursery.start_soon(self._live, run)
        return run

    async def _live(self, run: Run) -> None:
        with run.life:
            await self._play(run)
        if run.life.cancelled_caught:
            run.status = "canceled"
        run.metrics = {"predict_time": 0.5, "total_time": 0.75}
        run.over.set()
        await self._notify(run, "completed")

    async def _play(self, run: Run) -> None:
        script = run.script
        await trio.sleep(script.starting)
        if script.end == "aborted":
            run.status = "aborted"
            return
        run.status = "processing"
        await self._notify(run, "start")
        for step in range(1, script.steps + 1):
            await trio.sleep(script.interval)
            run.logs += f"{100 * step // script.steps}%|####| {step}/{script.steps}\n"
            if script.pieces is not None:
                run.output = script.pieces[: len(script.pieces) * step // script.steps]
                await self._notify(run, "output")
            await self._notify(run, "logs")
        if script.held:
            await run.finish.wait()
        run.status, run.error = script.end, script.error
        if script.end == "succeeded":
            run.output = script.pieces if script.pieces is not None else script.output

    async def _notify(self, run: Run, event: str) -> None:
        if not self.webhooks or event not in run.body.get("webhook_events_filter", ()):
            return
        body = json.dumps(run.view()).encode()
        for _ in range(1 + self.duplicate_webhooks):
            self.nursery.start_soon(self._post, run.body["webhook"], uuid4().hex, body)

    async def _post(self, url: str, identifier: str, body: bytes) -> None:
        stamp = int(datetime.now(UTC).timestamp())
        headers = {
            "webhook-id": f"msg_{identifier}",
            "webhook-timestamp": str(stamp),
            "webhook-signature": sign(SECRET, f"msg_{identifier}", stamp, body),
            "content-type": "application/json",
        }
        async with httpx.AsyncClient(verify=False, trust_env=False) as client:
            try:
                await client.post(url, content=body, headers=headers)
            except httpx.HTTPError:
                return  # as the service does with everything but the last delivery

    # --- requests ---------------------------------------------------------------------------------------

    def fault(self, request: Request) -> str:
        if self.faults and re.search(self.faults[0][0], f"{request.method} {request.target}"):
            return self.faults.popleft()[1]
        return ""

    def answer(self, request: Request) -> tuple[int, dict[str, str], Any]:
        method, parts = request.method, urlsplit(request.target)
        self.requests.append((method, request.target))
        self.headers.append(request.headers)
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {}, {"title": "Unauthenticated", "detail": "You did not pass a valid token", "status": 401}
        if method == "POST" and re.fullmatch(r"/v1/(predictions|models/[^/]+/[^/]+/predictions)", parts.path):
            return self._created(json.loads(request.body))
        if method == "GET" and parts.path == "/v1/predictions":
            return 200, {}, self._listing(parse_qs(parts.query))
        if match := re.fullmatch(r"/v1/predictions/([0-9a-f]+)(/cancel)?", parts.path):
            return self._existing(match[1], bool(match[2]))
        return 404, {}, {"title": "Not found", "detail": "The requested resource could not be found.", "status": 404}

    def _created(self, body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        if "prompt" in body["input"] and not isinstance(body["input"]["prompt"], str):
            detail = "- input.prompt: Invalid type. Expected: string, given: integer\n"
            return 422, {}, {"title": "Input validation failed", "detail": detail, "status": 422}
        return 201, {}, self.create(body).view()

    def _listing(self, query: dict[str, list[str]]) -> dict[str, Any]:
        since = datetime.fromisoformat(query["created_after"][0])
        brief = ("id", "status", "created_at", "model", "version", "urls")
        runs = [run for run in self.runs.values() if run.created_at >= since]
        return {"results": [{key: run.view()[key] for key in brief} for run in runs], "next": None, "previous": None}

    def _existing(self, identifier: str, cancel: bool) -> tuple[int, dict[str, str], Any]:
        run = self.runs.get(identifier)
        if run is None:
            return 404, {}, {"detail": "The requested resource could not be found.", "status": 404}
        if cancel:
            run.life.cancel()
        else:
            run.asked.set()
        return 200, {}, run.view()


FAULTS: dict[str, tuple[int, dict[str, str], Any]] = {
    "500": (500, {}, {"detail": "Internal server error"}),
    "503 html": (503, {"content-type": "text/html"}, "<html>down</html>"),
    "redirect": (301, {"location": "https://elsewhere.example/"}, ""),
    "half json": (201, {}, '{"id": "abc", "sta'),
    "throttled": (
        429,
        {"retry-after": "7"},
        {"detail": "Request was throttled. Your rate limit resets in ~5s.", "status": 429, "retry_after": 5},
    ),
    "throttled old": (429, {}, {"detail": "Request was throttled. Expected available in 1 second. resets in ~9s"}),
    "payment": (402, {}, {"title": "Insufficient credit", "detail": "You have insufficient credit", "status": 402}),
}


@asynccontextmanager
async def serving() -> AsyncIterator[Service]:
    """The service on a free port of loopback; ends with the block."""
    service: Service

    async def handle(request: Request, reply: Reply) -> None:
        fault = service.fault(request)
        if fault == "lost before":
            return
        status, headers, content = FAULTS.get(fault) or service.answer(request)
        if fault == "lost after":
            return
        if fault == "hang":
            await trio.sleep_forever()
        await reply.whole(
            status, headers, content.encode() if isinstance(content, str) else json.dumps(content).encode()
        )

    async with raw_http.serving(handle) as (url, nursery):
        service = Service(nursery, url)
        yield service
