"""A server that behaves like Cog's, on its good days and its bad ones, and keeps the bill: `runs` has every run of the
model. One that is over is forgotten, and asked for again runs again; webhooks are unsigned, and sent as Cog sends them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import trio
from attrs import define, field

from tests.engine.providers import raw_http
from tests.engine.providers.raw_http import Reply, Request

RETRIES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 102.4)
"""Cog's pauses between its attempts at a terminal webhook."""


@define
class Plan:
    """What the model does, and what goes wrong. `pieces` are generated with `pause` seconds before each; `output` is
    the end, the list of the pieces when None."""

    pieces: list[Any] = field(factory=lambda: ["Hello", " there", " you"])
    pause: float = 0.02
    output: Any = None
    status: str = "succeeded"
    error: str | None = None
    logs: str = ""
    # webhooks
    lose: tuple[str, ...] = ()
    """Kinds that are never sent: `start`, `output`, `completed`."""
    repeat: int = 1
    backwards: bool = False
    """The webhooks that are no end are kept back and sent after it, last first."""
    headers: dict[str, str] = field(factory=dict)
    strange: bool = False
    """One webhook more, of a status that nobody knows, and one that is no JSON."""
    # requests
    refusals: list[tuple[int, Any]] = field(factory=list)
    """Answers to the next PUTs, one each."""
    drop: int = 0
    """So many PUTs are taken, and their connection is cut before the answer."""
    hang: bool = False
    """PUTs get no answer."""
    away: bool = False
    """No request gets an answer; what runs goes on."""
    health: str = ""
    """What the health check says, whatever is the matter."""
    streams: bool = False
    cut_after: int | None = None
    """A connection that is held is cut after so many pieces."""


@define(eq=False)
class Run:
    id: str
    input: Any
    webhook: str | None
    events: list[str]
    status: str = "processing"
    pieces: list[Any] = field(factory=list)
    cancelled: trio.Event = field(factory=trio.Event)
    over: trio.Event = field(factory=trio.Event)
    grown: trio.Event = field(factory=trio.Event)
    output: Any = None
    error: str | None = None
    logs: str = ""

    def body(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "input": self.input,
            "status": self.status,
            "output": self.output,
            "error": self.error,
            "logs": self.logs,
            "metrics": {"predict_time": 0.5},
        }


@define(eq=False)
class FakeCog:
    plan: Plan = field(factory=Plan)
    slots: int = 1
    url: str = ""
    runs: list[str] = field(factory=list)
    """Ids, in the order in which the model ran: what is paid."""
    cancels: list[str] = field(factory=list)
    puts: int = 0
    running: dict[str, Run] = field(factory=dict)
    born: str = "2026-01-01T00:00:00Z"
    began: trio.Event = field(factory=trio.Event)
    delivered: list[tuple[str, int]] = field(factory=list)
    """Webhooks: the status in them and the answer's, 0 when nobody answered."""
    _nursery: trio.Nursery | None = None
    _http: httpx.AsyncClient | None = None

    def crash(self) -> None:
        """The server ends and starts again: nothing of what ran is left, and nobody is told."""
        for run in list(self.running.values()):
            run.events = []
            run.cancelled.set()
        self.running.clear()
        self.born = "2026-01-02T00:00:00Z"

    @property
    def health(self) -> str:
        return self.plan.health or ("BUSY" if len(self.running) >= self.slots else "READY")

    async def handle(self, request: Request, reply: Reply) -> None:
        path = request.target.partition("?")[0]
        if self.plan.away:
            return
        match request.method, path.strip("/").split("/"):
            case "GET", ["health-check"]:
                await _json(reply, 200, {"status": self.health, "setup": {"started_at": self.born}})
            case "PUT", ["predictions", identifier]:
                await self._put(identifier, request, reply)
            case "POST", ["predictions", identifier, "cancel"]:
                self.cancels.append(identifier)
                run = self.running.get(identifier)
                if run:
                    run.cancelled.set()
                await _json(reply, 200 if run else 404, {})
            case _:
                await _json(reply, 405, {})

    async def _put(self, identifier: str, request: Request, reply: Reply) -> None:
        self.puts += 1
        if self.plan.hang:
            await trio.sleep_forever()
        streams = "text/event-stream" in request.headers.get("accept", "")
        run = self.running.get(identifier)
        if self.plan.refusals:
            status, content = self.plan.refusals.pop(0)
            headers = {"location": "http://elsewhere.example/"} if 300 <= status < 400 else {}
            await reply.whole(status, headers, json.dumps(content).encode())
        elif streams and not self.plan.streams:
            await _json(reply, 406, {"error": "no streaming"})
        elif run is not None and not streams:
            await _json(reply, 202, run.body())
        elif run is None and len(self.running) >= self.slots:
            await _json(reply, 409, {"error": "At capacity"})
        else:
            await self._take(run or self._start(identifier, json.loads(request.body)), request, reply, streams)

    async def _take(self, run: Run, request: Request, reply: Reply, streams: bool) -> None:
        if self.plan.drop:
            self.plan.drop -= 1
        elif request.headers.get("prefer") == "respond-async":
            await _json(reply, 202, {"id": run.id, "status": "starting"})
        else:
            await self._hold(run, reply, streams)

    def _start(self, identifier: str, body: Any) -> Run:
        run = Run(identifier, body["input"], body.get("webhook"), body.get("webhook_events_filter", []))
        self.runs.append(identifier)
        self.running[identifier] = run
        self.began.set()
        assert self._nursery is not None
        self._nursery.start_soon(self._run, run, self.plan)
        return run

    async def _run(self, run: Run, plan: Plan) -> None:
        kept: list[dict[str, Any]] = []
        await self._tell(run, plan, "start", kept)
        for piece in plan.pieces:
            with trio.move_on_after(plan.pause):
                await run.cancelled.wait()
            if run.cancelled.is_set():
                break
            run.pieces.append(piece)
            run.output = list(run.pieces)
            run.grown.set()
            run.grown = trio.Event()
            await self._tell(run, plan, "output", kept)
        run.status = "canceled" if run.cancelled.is_set() else plan.status
        run.logs, run.error = plan.logs, plan.error
        if plan.output is not None:
            run.output = plan.output
        self.running.pop(run.id, None)
        run.over.set()
        run.grown.set()
        await self._tell(run, plan, "completed", kept)
        for body in reversed(kept):
            await self._post(run, plan, body)

    async def _tell(self, run: Run, plan: Plan, kind: str, kept: list[dict[str, Any]]) -> None:
        if kind in plan.lose or kind not in run.events or run.webhook is None:
            return
        if plan.strange and kind == "completed":
            await self._post(run, plan, {**run.body(), "status": "meditating"})
            await self._send(run, plan, b"{")
        if plan.backwards and kind != "completed":
            kept.append(run.body())
            return
        for _ in range(plan.repeat):
            if kind == "completed":
                assert self._nursery is not None
                self._nursery.start_soon(self._insist, run, plan, run.body())
            else:
                await self._post(run, plan, run.body())

    async def _insist(self, run: Run, plan: Plan, body: dict[str, Any]) -> None:
        for pause in (0.0, *RETRIES):
            await trio.sleep(pause)
            if await self._post(run, plan, body) not in (0, 429, 500, 502, 503, 504):
                return

    async def _post(self, run: Run, plan: Plan, body: dict[str, Any]) -> int:
        status = await self._send(run, plan, json.dumps(body).encode())
        self.delivered.append((body["status"], status))
        return status

    async def _send(self, run: Run, plan: Plan, content: bytes) -> int:
        assert self._http is not None
        assert run.webhook is not None
        try:
            headers = {"content-type": "application/json", **plan.headers}
            return (await self._http.post(run.webhook, content=content, headers=headers)).status_code
        except httpx.HTTPError:
            return 0

    async def _hold(self, run: Run, reply: Reply, streams: bool) -> None:
        """A connection that breaks takes the prediction with it."""
        if not streams:
            if self.plan.cut_after is not None:
                run.cancelled.set()
                return
            await run.over.wait()
            await _json(reply, 200, run.body())
            return
        await reply.begin(200, {"content-type": "text/event-stream"})
        told = 0
        try:
            await reply.piece(_event("start", {"id": run.id, "status": "processing"}))
            while True:
                for piece in run.pieces[told:]:
                    if told == self.plan.cut_after:
                        run.cancelled.set()
                        return
                    await reply.piece(_event("output", {"chunk": piece, "index": told}))
                    told += 1
                if run.over.is_set():
                    break
                await run.grown.wait()
            await reply.piece(_event("completed", run.body()))
            await reply.end()
        except trio.BrokenResourceError:
            run.cancelled.set()


def _event(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


async def _json(reply: Reply, status: int, content: Any) -> None:
    await reply.whole(status, {}, json.dumps(content).encode())


@asynccontextmanager
async def serving(plan: Plan | None = None, slots: int = 1) -> AsyncIterator[FakeCog]:
    """A Cog-like server on a free port of loopback."""
    cog = FakeCog(plan or Plan(), slots)
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http, raw_http.serving(cog.handle) as (url, nursery):
        cog.url, cog._http, cog._nursery = url, http, nursery
        yield cog
