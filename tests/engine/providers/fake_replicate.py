"""A small Replicate for tests: its statuses, schedule, throttling, webhooks and signatures, its bill, and its bad days.

What a prediction does is told by its input: `{"script": {...}}` (see Script); what goes wrong, by `Service.faults`. It
has a clock of its own, keeps files for as long as it likes, and writes down what everything cost.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import formatdate
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
PRICE = 0.001
"""US dollars a second of run time, for all models."""
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
TERMINAL = ("succeeded", "failed", "canceled", "aborted")
Answer = tuple[int, dict[str, str], Any]


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
    files: int = 0
    """How many pictures it makes, at addresses of this service that can be taken back."""
    log_bytes: int = 0
    cost: float | None = None
    """Its run time as the metrics tell it; None: what it really took."""
    metrics: dict[str, Any] | None = None
    unstorable: bool = False
    """Whether its text has a NUL and half a surrogate pair in it."""
    more: dict[str, Any] | None = None
    """Fields of its JSON that take the place of the usual ones."""


@define(eq=False)
class Run:
    id: str
    body: dict[str, Any]
    script: Script
    created_at: float
    model: str
    deadline: float
    status: str = "starting"
    output: Any = None
    logs: str = ""
    metrics: dict[str, Any] = field(factory=dict)
    error: str | None = None
    started_at: float | None = None
    completed_at: float | None = None
    removed: bool = False
    life: trio.CancelScope = field(factory=trio.CancelScope)
    over: trio.Event = field(factory=trio.Event)
    finish: trio.Event = field(factory=trio.Event)
    asked: trio.Event = field(factory=trio.Event)
    """Set whenever the prediction is asked for."""
    deliveries: list[tuple[str, str, bytes]] = field(factory=list)
    """What was sent, or would have been: event, webhook id, body."""
    delivered: trio.Event = field(factory=trio.Event)
    """Set when the last delivery was answered 2xx."""

    @property
    def predict_time(self) -> float:
        """What is billed: seconds from the start to the end, or until now."""
        if self.started_at is None:
            return 0.0
        if self.script.cost is not None:
            return self.script.cost
        return (self.completed_at or time.time()) - self.started_at


@define(eq=False)
class Service:
    """The service and its faults. Each entry of `faults` is met once, by the next request that matches."""

    nursery: trio.Nursery
    url: str = ""
    runs: dict[str, Run] = field(factory=dict)
    faults: deque[tuple[str, str]] = field(factory=deque)
    webhooks: bool = True
    duplicate_webhooks: bool = False
    undelivered: set[str] = field(factory=set)
    """Events whose deliveries get lost."""
    reach: str = ""
    """Where what is sent to a public address really goes: the way through a proxy."""
    retry_webhook: float = 0.1
    """Seconds until the last delivery is sent again; twice as long each time, six times."""
    skew: float = 0.0
    """Seconds by which this clock is ahead."""
    lag: float = 0.0
    """Seconds until a new prediction is in the listing."""
    page: int = 100
    brief: bool = False
    """Whether the listing leaves out the inputs."""
    tells_webhook: bool = False
    every: float = 0.0
    """Seconds between two predictions that the account may make; 0: any number."""
    requests: list[tuple[str, str]] = field(factory=list)
    headers: list[dict[str, str]] = field(factory=list)
    created: trio.Event = field(factory=trio.Event)
    released: trio.Event = field(factory=trio.Event)
    """Lets go the answers that hang."""
    asked: trio.Event = field(factory=trio.Event)
    """Set when a request met a fault."""
    models: dict[str, dict[str, Any]] = field(factory=dict)
    files_of: str = ""
    """The key that addresses of files need; another one makes all earlier ones void."""
    _next: float = 0.0

    def creates(self) -> int:
        return len(self.runs)

    def clock(self) -> float:
        return time.time() + self.skew

    # --- the bill ---------------------------------------------------------------------------------------

    def bill(self) -> float:
        """US dollars for all that ran, whatever came of it."""
        return sum(run.predict_time for run in self.runs.values()) * PRICE

    def running(self) -> list[str]:
        return [run.id for run in self.runs.values() if run.status not in TERMINAL]

    # --- predictions ------------------------------------------------------------------------------------

    def create(self, body: dict[str, Any], model: str = "acme/painter", cancel_after: float = 1800.0) -> Run:
        script = Script(**body["input"].get("script", {}))
        run = Run(uuid4().hex[:26], body, script, self.clock(), model, trio.current_time() + cancel_after)
        self.runs[run.id] = run
        self.created.set()
        self.nursery.start_soon(self._live, run)
        return run

    async def _live(self, run: Run) -> None:
        run.life.deadline = run.deadline
        with run.life:
            await self._play(run)
        if run.life.cancelled_caught:
            timely = trio.current_time() < run.deadline
            run.status = "canceled" if timely or run.started_at else "aborted"
        run.completed_at = time.time()
        if run.started_at is not None:
            run.metrics = {"predict_time": run.predict_time, "total_time": 99.0, **(run.script.metrics or {})}
        run.over.set()
        await self._notify(run, "completed")

    async def _play(self, run: Run) -> None:
        script = run.script
        await trio.sleep(script.starting)
        if script.end == "aborted":
            run.status = "aborted"
            return
        run.status, run.started_at = "processing", time.time()
        await self._notify(run, "start")
        for step in range(1, script.steps + 1):
            await trio.sleep(script.interval)
            run.logs += "x" * script.log_bytes + f"\n{100 * step // script.steps}%|####| {step}/{script.steps}\n"
            if script.pieces is not None:
                run.output = script.pieces[: len(script.pieces) * step // script.steps]
                await self._notify(run, "output")
            await self._notify(run, "logs")
        if script.held:
            await run.finish.wait()
        run.status, run.error = script.end, script.error
        if script.end == "succeeded":
            run.output = script.pieces if script.pieces is not None else script.output
            if script.unstorable:
                run.output = "a\0b\ud800c"

    def view(self, run: Run) -> dict[str, Any]:
        output = run.output
        if run.script.files and run.status == "succeeded":
            output = [f"{self.url}/files/{self.files_of}/{run.id}/{number}.png" for number in range(run.script.files)]
        seen = {
            "id": run.id,
            "model": run.model,
            "version": run.body.get("version", "hidden"),
            "input": {} if run.removed else run.body["input"],
            "status": run.status,
            "output": None if run.removed else output,
            "logs": "" if run.removed else run.logs,
            "error": run.error,
            "metrics": run.metrics,
            "data_removed": run.removed,
            "source": "api",
            "created_at": _time(run.created_at),
            "started_at": _time(run.started_at),
            "completed_at": _time(run.completed_at),
            "urls": {
                "get": f"{self.url}/v1/predictions/{run.id}",
                "cancel": f"{self.url}/v1/predictions/{run.id}/cancel",
            },
        }
        if self.tells_webhook:
            seen["webhook"] = run.body.get("webhook")
        return {**seen, **(run.script.more or {})}

    # --- webhooks ---------------------------------------------------------------------------------------

    async def _notify(self, run: Run, event: str) -> None:
        filters = ("start", "completed", *run.body.get("webhook_events_filter", ("output",)))
        if "webhook" not in run.body or event not in filters:
            return
        body = json.dumps(self.view(run)).encode()
        identifier = f"msg_{uuid4().hex}"
        run.deliveries.append((event, identifier, body))
        if not self.webhooks or event in self.undelivered:
            return
        for _ in range(1 + self.duplicate_webhooks):
            self.nursery.start_soon(self._deliver, run, event, identifier, body)

    async def _deliver(self, run: Run, event: str, identifier: str, body: bytes) -> None:
        """Only the last one is sent again, and not for long."""
        pause = self.retry_webhook
        for _ in range(6 if event == "completed" else 1):
            if await self.post(run.body["webhook"], identifier, body) // 100 == 2:
                if event == "completed":
                    run.delivered.set()
                return
            await trio.sleep(pause)
            pause *= 2

    async def post(self, url: str, identifier: str, body: bytes, age: float = 0.0, secret: str = SECRET) -> int:
        """Sends a delivery; the status of its answer, 0 for none. Redirects are not followed."""
        parts = urlsplit(url)
        target = f"{self.reach}{parts.path}?{parts.query}" if self.reach else url
        stamp = int(time.time() - age)
        headers = {
            "webhook-id": identifier,
            "webhook-timestamp": str(stamp),
            "webhook-signature": sign(secret, identifier, stamp, body),
            "content-type": "application/json",
        }
        async with httpx.AsyncClient(verify=False, trust_env=False, timeout=10) as client:
            try:
                return (await client.post(target, content=body, headers=headers)).status_code
            except httpx.HTTPError:
                return 0

    # --- requests ---------------------------------------------------------------------------------------

    def fault(self, request: Request) -> str:
        """What goes wrong with this request: the first of the faults whose pattern is found in it."""
        text = f"{request.method} {request.target} {request.body.decode(errors='replace')}"
        for number, (pattern, name) in enumerate(self.faults):
            if re.search(pattern, text):
                del self.faults[number]
                self.asked.set()
                return name
        return ""

    def answer(self, request: Request) -> Answer:
        method, parts = request.method, urlsplit(request.target)
        if parts.path.startswith("/files/"):
            return self._file(parts.path)
        self.requests.append((method, request.target))
        self.headers.append(request.headers)
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {}, {"title": "Unauthenticated", "detail": "You did not pass a valid token", "status": 401}
        made = re.fullmatch(r"/v1/(?:predictions|(?:models|deployments)/([^/]+/[^/]+)/predictions)", parts.path)
        if method == "POST" and made:
            return self._created(request, made[1] or "acme/painter")
        if method == "GET" and parts.path == "/v1/predictions":
            return 200, {}, self._listing(parse_qs(parts.query))
        if match := re.fullmatch(r"/v1/predictions/([0-9a-f]+)(/cancel)?", parts.path):
            return self._existing(match[1], bool(match[2]))
        if match := re.fullmatch(r"/v1/models/([^/]+/[^/]+)(?:/versions/([0-9a-f]+))?", parts.path):
            return self._model(match[1], match[2])
        return _not_found()

    def _created(self, request: Request, model: str) -> Answer:
        body = json.loads(request.body)
        if self.every:
            now = trio.current_time()
            if now < self._next:
                left = self._next - now
                words = f"Request was throttled. Your rate limit resets in ~{left:.1f}s."
                return 429, {}, {"detail": words, "status": 429, "retry_after": left}
            self._next = now + self.every
        if "prompt" in body["input"] and not isinstance(body["input"]["prompt"], str):
            detail = "- input.prompt: Invalid type. Expected: string, given: integer\n"
            return 422, {}, {"title": "Input validation failed", "detail": detail, "status": 422}
        limit = re.fullmatch(r"(\d+)s", request.headers.get("cancel-after", "1800s"))
        run = self.create(body, model, float(limit[1]) if limit else 1800.0)
        return 201, {}, self.view(run)

    def _listing(self, query: dict[str, list[str]]) -> dict[str, Any]:
        """Newest first, by pages."""
        start = int(query.get("cursor", ["0"])[0])
        runs = sorted(self.runs.values(), key=lambda run: -run.created_at)
        runs = [run for run in runs if run.created_at <= self.clock() - self.lag]
        brief = ("id", "status", "created_at", "model", "version", "urls", *(() if self.brief else ("input",)))
        if self.tells_webhook:
            brief += ("webhook",)
        shown = [{key: self.view(run)[key] for key in brief} for run in runs[start : start + self.page]]
        more = f"{self.url}/v1/predictions?cursor={start + self.page}" if len(runs) > start + self.page else None
        return {"results": shown, "next": more, "previous": None}

    def _existing(self, identifier: str, cancel: bool) -> Answer:
        run = self.runs.get(identifier)
        if run is None:
            return _not_found()
        if cancel:
            run.life.cancel()
        else:
            run.asked.set()
        return 200, {}, self.view(run)

    def _file(self, path: str) -> Answer:
        good = path.startswith(f"/files/{self.files_of}/")
        return (200, {"content-type": "image/png"}, PNG) if good else (403, {}, {"detail": "expired"})

    def _model(self, slug: str, version: str | None) -> Answer:
        model = self.models.get(slug)
        if model is None:
            return _not_found()
        if version is None:
            return 200, {}, model
        latest = model["latest_version"]
        return (200, {}, latest) if latest and latest["id"] == version else _not_found()


def _time(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()


def _not_found() -> Answer:
    return 404, {}, {"title": "Not found", "detail": "The requested resource could not be found.", "status": 404}


FAULTS: dict[str, Answer] = {
    "500": (500, {}, {"detail": "Internal server error"}),
    "502": (502, {"content-type": "text/html"}, "<html>bad gateway</html>"),
    "503 html": (503, {"content-type": "text/html"}, "<html>down</html>"),
    "504": (504, {}, ""),
    "html": (200, {"content-type": "text/html"}, "<html>all is well</html>"),
    "404": (404, {}, {"detail": "The requested resource could not be found.", "status": 404}),
    "half json": (201, {}, '{"id": "abc", "sta'),
    "hostile id": (201, {}, {"id": "../../v1/account?", "status": "starting"}),
    "throttled": (
        429,
        {"retry-after": "7"},
        {"detail": "Request was throttled. Your rate limit resets in ~5s.", "status": 429, "retry_after": 5},
    ),
    "throttled briefly": (429, {"retry-after": "1"}, {"detail": "Request was throttled."}),
    "throttled old": (429, {}, {"detail": "Request was throttled. Expected available in 1 second. resets in ~9s"}),
    "throttled for long": (429, {"retry-after": "1200"}, {"detail": "Request was throttled."}),
    "payment": (402, {}, {"title": "Insufficient credit", "detail": "You have insufficient credit", "status": 402}),
}
"""Answers in the place of what was asked: nothing is done. `<name> after`: it was done, and then this was answered."""


@asynccontextmanager
async def serving() -> AsyncIterator[Service]:
    """The service on a free port of loopback; ends with the block."""
    service: Service

    async def handle(request: Request, reply: Reply) -> None:
        fault = service.fault(request)
        if fault.startswith("redirect"):
            await reply.whole(301, {"location": fault.removeprefix("redirect ")}, b"")
            return
        if fault == "lost before":
            return
        if fault == "hang before":
            await service.released.wait()
            return
        if fault == "slow":
            await service.released.wait()
        if fault == "no deadline":
            del request.headers["cancel-after"]
        if fault == "renamed":
            service.files_of = "second"
        status, headers, content = FAULTS.get(fault) or service.answer(request)
        match fault.removesuffix(" after") if fault.endswith(" after") else fault:
            case "lost" if fault:
                return
            case "hang":
                await service.released.wait()
            case "half":
                await reply.begin(status, {"content-type": "application/json", "content-length": "5000"})
                await reply.cut(json.dumps(content)[:20].encode())
                return
            case name if fault.endswith(" after") and name in FAULTS:
                status, headers, content = FAULTS[name]
        date = {"date": formatdate(service.clock(), usegmt=True)}
        await reply.whole(status, {**date, **headers}, _bytes(content))

    async with raw_http.serving(handle) as (url, nursery):
        service = Service(nursery, url)
        service.files_of = "first"
        yield service


def _bytes(content: Any) -> bytes:
    match content:
        case bytes():
            return content
        case str():
            return content.encode()
        case _:
            return json.dumps(content).encode()
