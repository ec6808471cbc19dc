"""The three wire formats of the LLM services, with their bad days, on one small server.

Paths: `/v1/responses` (OpenAI), `/v1/messages` (Anthropic), `/v1beta/models/…:streamGenerateContent` (Gemini). What
happens is told by a `Plan`; shapes are those of the services' references.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import trio
from attrs import define, field

from tests.engine.providers import raw_http
from tests.engine.providers.raw_http import Reply, Request

USED = (11, 7)
"""Input and output tokens that every good answer reports."""


@define
class Plan:
    """`words` are streamed with `pause` seconds between them; `fault` happens after `fault_after` of them."""

    words: list[str] = field(factory=lambda: ["Hello", " there", " wörld"])
    pause: float = 0.0
    fault: str = ""
    fault_after: int = 0
    faulty: bytes = b""
    """The fault befalls requests that have this in their body; all of them when it is empty."""
    stop: str = ""


@define
class Service:
    url: str = ""
    plan: Plan = field(factory=Plan)
    requests: list[Request] = field(factory=list)
    closed_early: trio.Event = field(factory=trio.Event)

    async def handle(self, request: Request, reply: Reply) -> None:
        self.requests.append(request)
        if self.plan.faulty not in request.body:
            return await self._stream(wire_of(request), reply, Plan(self.plan.words))
        return await self._answer(request, reply)

    async def _answer(self, request: Request, reply: Reply) -> None:
        wire = wire_of(request)
        if self.plan.fault in wire.refusals and not self.plan.fault_after:
            status, headers, content = wire.refusals[self.plan.fault]
            await reply.whole(status, headers, json.dumps(content).encode())
        elif self.plan.fault == "wrong type":
            await reply.whole(200, {"content-type": "text/html"}, b"<html>hello</html>")
        elif self.plan.fault == "redirect":
            await reply.whole(302, {"location": "https://elsewhere.example/"}, b"")
        elif self.plan.fault == "hang before":
            await trio.sleep_forever()
        elif self.plan.fault != "drop":
            await self._stream(wire, reply, self.plan)

    async def _stream(self, wire: Wire, reply: Reply, plan: Plan) -> None:
        await reply.begin(200, {"content-type": "text/event-stream"})
        try:
            for event in wire.opening():
                await reply.piece(event)
            for number, word in enumerate(plan.words):
                if plan.fault and number == plan.fault_after:
                    return await self._misbehave(wire, reply)
                await trio.sleep(plan.pause)
                await reply.piece(wire.word(word))
        except trio.BrokenResourceError:
            self.closed_early.set()
            raise
        for event in wire.closing(plan.stop):
            await reply.piece(event)
        return await reply.end()

    async def _misbehave(self, wire: Wire, reply: Reply) -> None:
        match self.plan.fault:
            case "hang mid":
                await trio.sleep_forever()
            case "half json":
                await reply.piece(b'event: message_delta\ndata: {"type": "response.outp\n\n')
                await reply.end()
            case "ends":
                await reply.end()
            case "error mid":
                await reply.piece(wire.error())
                await reply.end()


class Wire:
    """How one service writes its stream."""

    refusals: dict[str, tuple[int, dict[str, str], Any]]

    def opening(self) -> Iterator[bytes]:
        raise NotImplementedError

    def word(self, word: str) -> bytes:
        raise NotImplementedError

    def closing(self, stop: str) -> Iterator[bytes]:
        raise NotImplementedError

    def error(self) -> bytes:
        raise NotImplementedError


def sse(data: dict[str, Any], event: str | None = None) -> bytes:
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(data)}\n\n".encode()


class Responses(Wire):
    refusals: ClassVar = {
        "500": (500, {}, {"error": {"message": "oops", "type": "server_error", "code": None}}),
        "429": (429, {"retry-after": "3"}, {"error": {"message": "slow", "type": "requests", "code": "rate_limit"}}),
        "quota": (429, {}, {"error": {"message": "pay", "type": "insufficient_quota", "code": "insufficient_quota"}}),
        "auth": (401, {}, {"error": {"message": "no", "type": "invalid_request_error", "code": "invalid_api_key"}}),
        "context": (400, {}, {"error": {"message": "long", "type": "x", "code": "context_length_exceeded"}}),
        "bad input": (400, {}, {"error": {"message": "no", "type": "invalid_request_error", "code": "invalid_type"}}),
    }

    def opening(self) -> Iterator[bytes]:
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.a_new_kind", something=1)

    def word(self, word: str) -> bytes:
        where = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "logprobs": []}
        return self._event("response.output_text.delta", delta=word, **where)

    def closing(self, stop: str) -> Iterator[bytes]:
        response = self._response("incomplete" if stop else "completed")
        response["usage"] = {
            "input_tokens": USED[0],
            "output_tokens": USED[1],
            "total_tokens": sum(USED),
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        if stop:
            response["incomplete_details"] = {"reason": stop}
        yield self._event(f"response.{response['status']}", response=response)

    def error(self) -> bytes:
        return self._event("error", code="server_error", message="oops", param=None)

    def _event(self, kind: str, **data: Any) -> bytes:
        return sse({"type": kind, "sequence_number": 0, **data}, kind)

    def _response(self, status: str) -> dict[str, Any]:
        return {
            "id": "resp_1",
            "object": "response",
            "created_at": 0,
            "status": status,
            "model": "gpt",
            "output": [],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "error": None,
            "incomplete_details": None,
        }


def _anthropic_error(kind: str, message: str = "no") -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


class Messages(Wire):
    refusals: ClassVar = {
        "500": (500, {}, _anthropic_error("api_error")),
        "429": (429, {"retry-after": "3"}, _anthropic_error("rate_limit_error")),
        "quota": (402, {}, _anthropic_error("billing_error")),
        "auth": (401, {}, _anthropic_error("authentication_error")),
        "context": (400, {}, _anthropic_error("invalid_request_error", "prompt is too long: 9 tokens > 8 maximum")),
        "bad input": (400, {}, _anthropic_error("invalid_request_error")),
    }

    def opening(self) -> Iterator[bytes]:
        usage = {"input_tokens": USED[0], "output_tokens": 1}
        message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "claude"}
        more = {"stop_reason": None, "stop_sequence": None, "usage": usage}
        yield self._event("message_start", message={**message, **more})
        yield self._event("ping")
        yield self._event("a_new_kind", something=1)
        yield self._event("content_block_start", index=0, content_block={"type": "text", "text": ""})

    def word(self, word: str) -> bytes:
        return self._event("content_block_delta", index=0, delta={"type": "text_delta", "text": word})

    def closing(self, stop: str) -> Iterator[bytes]:
        yield self._event("content_block_stop", index=0)
        delta = {"stop_reason": stop or "end_turn", "stop_sequence": None}
        yield self._event("message_delta", delta=delta, usage={"output_tokens": USED[1]})
        yield self._event("message_stop")

    def error(self) -> bytes:
        return sse(_anthropic_error("overloaded_error", "Overloaded"), "error")

    def _event(self, kind: str, **data: Any) -> bytes:
        return sse({"type": kind, **data}, kind)


def _google_error(code: int, status: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "status": status, "message": message}}


class Generate(Wire):
    refusals: ClassVar = {
        "500": (500, {}, _google_error(500, "INTERNAL", "oops")),
        "429": (429, {}, _google_error(429, "RESOURCE_EXHAUSTED", "slow down")),
        "quota": (429, {}, _google_error(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota")),
        "auth": (400, {}, _google_error(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.")),
        "context": (400, {}, _google_error(400, "INVALID_ARGUMENT", "The input token count exceeds the maximum")),
        "bad input": (400, {}, _google_error(400, "INVALID_ARGUMENT", "no")),
    }

    def opening(self) -> Iterator[bytes]:
        yield from ()

    def word(self, word: str) -> bytes:
        return sse({"candidates": [{"content": {"role": "model", "parts": [{"text": word}]}, "index": 0}]})

    def closing(self, stop: str) -> Iterator[bytes]:
        used = {"promptTokenCount": USED[0], "candidatesTokenCount": USED[1], "totalTokenCount": sum(USED)}
        last = {"content": {"role": "model", "parts": [{"text": ""}]}, "finishReason": stop or "STOP", "index": 0}
        yield sse({"candidates": [last], "usageMetadata": used})

    def error(self) -> bytes:
        return sse(_google_error(503, "UNAVAILABLE", "overloaded"))


WIRES: dict[str, Wire] = {
    "/responses": Responses(),
    "/messages": Messages(),
    ":streamGenerateContent": Generate(),
}


def wire_of(request: Request) -> Wire:
    return WIRES[next(path for path in WIRES if path in request.target)]


@asynccontextmanager
async def serving() -> AsyncIterator[Service]:
    """The services on a free port of loopback."""
    service = Service()
    async with raw_http.serving(service.handle) as (url, _):
        service.url = url
        yield service
