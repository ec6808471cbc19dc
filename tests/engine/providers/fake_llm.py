"""The wire formats of the LLM services, with their bad days, on one small server.

Paths: `/v1/responses` and `/v1/chat/completions` (OpenAI), `/v1/messages` (Anthropic),
`/v1beta/models/…:streamGenerateContent` (Gemini). What happens is told by a `Plan`; shapes are those of the services'
references.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar
from uuid import uuid4

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
    """The reason to end that is told instead of the usual one."""
    thinks: int = 0
    """So many thoughts come before the first word."""
    dress: str = ""
    """How the stream is written: `crlf` ends its lines as the standard also allows, `bytes` cuts it anywhere."""


@define
class Service:
    url: str = ""
    plan: Plan = field(factory=Plan)
    requests: list[Request] = field(factory=list)
    closed_early: trio.Event = field(factory=trio.Event)
    connections: list[object] = field(factory=list)

    async def handle(self, request: Request, reply: Reply) -> None:
        self.requests.append(request)
        if reply.connection not in self.connections:
            self.connections.append(reply.connection)
        if self.plan.faulty not in request.body:
            return await self._stream(wire_of(request), reply, Plan(self.plan.words))
        return await self._answer(request, reply)

    async def _answer(self, request: Request, reply: Reply) -> None:
        wire = wire_of(request)
        if self.plan.fault in wire.refusals and not self.plan.fault_after:
            status, headers, content = wire.refusals[self.plan.fault]
            await reply.whole(status, headers, json.dumps(content).encode())
        elif self.plan.fault == "no json":
            await reply.whole(502, {"content-type": "text/html"}, b"<html>Bad Gateway</html>")
        elif self.plan.fault == "wrong type":
            await reply.whole(200, {"content-type": "text/html"}, b"<html>hello</html>")
        elif self.plan.fault == "redirect":
            await reply.whole(302, {"location": "https://elsewhere.example/"}, b"")
        elif self.plan.fault == "hang before":
            await reply.gone()
            self.closed_early.set()
        elif self.plan.fault != "drop":
            await self._stream(wire, reply, self.plan)

    async def _stream(self, wire: Wire, plain: Reply, plan: Plan) -> None:
        reply = Dressed(plain, plan.dress)
        await reply.begin(200, {"content-type": "text/event-stream; charset=utf-8"})
        try:
            if plan.fault == "ends at once":
                return await reply.end()
            for event in wire.opening():
                await reply.piece(event)
            for _ in range(plan.thinks):
                await trio.sleep(plan.pause)
                await reply.piece(wire.thought())
            if plan.fault == "blocked":
                await reply.piece(wire.blocked())
                return await reply.end()
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

    async def _misbehave(self, wire: Wire, reply: Dressed) -> None:
        match self.plan.fault:
            case "hang mid":
                await reply.gone()
                self.closed_early.set()
            case "pings":
                while True:
                    await reply.piece(wire.ping())
                    await trio.sleep(0.02)
            case "cut":
                return  # the connection is dropped without a word
            case "endless line":
                for _ in range(100):
                    await reply.piece(b"data: " + b"x" * 100_000)
            case "gibberish":
                await reply.piece(b"data: this is not json\n\n")
                await reply.end()
            case "wrong shape":
                await reply.piece(wire.misshapen())
                await reply.end()
            case "half json":
                await reply.piece(b'event: message_delta\ndata: {"type": "response.outp\n\n')
                await reply.end()
            case "ends":
                await reply.end()
            case "error mid" | "limited mid":
                await reply.piece(wire.error(limited=self.plan.fault == "limited mid"))
                await reply.end()


@define
class Dressed:
    """A reply whose stream is written as the plan wants it."""

    _reply: Reply
    _dress: str

    async def begin(self, status: int, headers: dict[str, str]) -> None:
        await self._reply.begin(status, headers)

    async def piece(self, data: bytes) -> None:
        if self._dress == "crlf":
            data = data.replace(b"\n", b"\r\n")
        size = 3 if self._dress else len(data)
        for at in range(0, len(data), size):
            await self._reply.piece(data[at : at + size])

    async def end(self) -> None:
        await self._reply.end()

    async def gone(self) -> None:
        await self._reply.gone()


class Wire:
    """How one service writes its stream."""

    refusals: dict[str, tuple[int, dict[str, str], Any]]

    def ping(self) -> bytes:
        """What it says to keep a connection alive."""
        return b": keep-alive\n\n"

    def misshapen(self) -> bytes:
        """JSON, but not what is due."""
        raise NotImplementedError

    def thought(self) -> bytes:
        """What the model says to itself."""
        raise NotImplementedError

    def blocked(self) -> bytes:
        """The prompt is not answered."""
        raise NotImplementedError

    def opening(self) -> Iterator[bytes]:
        raise NotImplementedError

    def word(self, word: str) -> bytes:
        raise NotImplementedError

    def closing(self, stop: str) -> Iterator[bytes]:
        raise NotImplementedError

    def error(self, limited: bool) -> bytes:
        """An error after HTTP 200: overloaded, or out of quota when `limited`."""
        raise NotImplementedError


def sse(data: dict[str, Any], event: str | None = None) -> bytes:
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(data)}\n\n".encode()


class Responses(Wire):
    refusals: ClassVar = {
        "500": (500, {}, {"error": {"message": "oops", "type": "server_error", "code": None}}),
        "429": (429, {"retry-after": "3"}, {"error": {"message": "slow", "type": "requests", "code": "rate_limit"}}),
        "429 plain": (429, {}, {"error": {"message": "slow", "type": "requests", "code": "rate_limit_exceeded"}}),
        "policy": (400, {}, {"error": {"message": "no", "type": "image", "code": "content_policy_violation"}}),
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
        if stop == "refusal":
            where = {"item_id": "msg_1", "output_index": 0, "content_index": 1}
            yield self._event("response.refusal.delta", delta="I cannot", **where)
            stop = ""
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

    def error(self, limited: bool) -> bytes:
        if not limited:
            return self._event("error", code="server_error", message="oops", param=None)
        failed = {"error": {"code": "rate_limit_exceeded", "message": "slow"}}
        return self._event("response.failed", response={**self._response("failed"), **failed})

    def misshapen(self) -> bytes:
        return self._event("response.completed", response=[1, 2])

    def thought(self) -> bytes:
        where = {"item_id": "rs_1", "output_index": 0, "summary_index": 0}
        return self._event("response.reasoning_summary_text.delta", delta="hm", **where)

    def _event(self, kind: str, **data: Any) -> bytes:
        return sse({"type": kind, "sequence_number": 0, **data}, kind)

    def _response(self, status: str) -> dict[str, Any]:
        return {
            "id": f"resp_{uuid4().hex}",
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
        "429 plain": (429, {}, _anthropic_error("rate_limit_error")),
        "policy": (400, {}, _anthropic_error("invalid_request_error", "Output blocked by content filtering policy")),
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

    def ping(self) -> bytes:
        return self._event("ping")

    def error(self, limited: bool) -> bytes:
        return sse(_anthropic_error("rate_limit_error" if limited else "overloaded_error", "Overloaded"), "error")

    def misshapen(self) -> bytes:
        return self._event("content_block_delta", index=0, delta="text")

    def thought(self) -> bytes:
        return self._event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "hm"})

    def _event(self, kind: str, **data: Any) -> bytes:
        return sse({"type": kind, **data}, kind)


def _google_error(code: int, status: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "status": status, "message": message}}


def _google_limit(delay: str) -> dict[str, Any]:
    """As Google's APIs say when to come again: in the body."""
    error = _google_error(429, "RESOURCE_EXHAUSTED", "slow down")
    error["error"]["details"] = [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": []},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay},
    ]
    return error


class Generate(Wire):
    refusals: ClassVar = {
        "500": (500, {}, _google_error(500, "INTERNAL", "oops")),
        "429": (429, {}, _google_limit("3s")),
        "429 plain": (429, {}, _google_error(429, "RESOURCE_EXHAUSTED", "slow down")),
        "policy": (400, {}, _google_error(400, "INVALID_ARGUMENT", "It violates our usage policies.")),
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

    def error(self, limited: bool) -> bytes:
        if limited:
            return sse(_google_limit("3s"))
        return sse(_google_error(503, "UNAVAILABLE", "overloaded"))

    def misshapen(self) -> bytes:
        return sse({"candidates": {"content": "text"}})

    def thought(self) -> bytes:
        part = {"text": "hm", "thought": True}
        return sse({"candidates": [{"content": {"role": "model", "parts": [part]}, "index": 0}]})

    def blocked(self) -> bytes:
        used = {"promptTokenCount": USED[0], "totalTokenCount": USED[0]}
        return sse({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": used})


class Chat(Wire):
    refusals: ClassVar = {
        **Responses.refusals,
        "policy": (400, {}, {"error": {"message": "filtered", "type": None, "code": "content_filter"}}),
    }

    def opening(self) -> Iterator[bytes]:
        yield self._chunk({"role": "assistant", "content": ""})
        yield sse({"id": "chatcmpl-1", "object": "something.new", "created": 1, "model": "gpt", "choices": []})

    def word(self, word: str) -> bytes:
        return self._chunk({"content": word})

    def closing(self, stop: str) -> Iterator[bytes]:
        if stop == "refusal":
            yield self._chunk({"refusal": "I cannot"})
        yield self._chunk({}, "stop" if stop == "refusal" else stop or "stop")
        used = {"prompt_tokens": USED[0], "completion_tokens": USED[1], "total_tokens": sum(USED)}
        yield sse({**self._shape(), "choices": [], "usage": used})
        yield b"data: [DONE]\n\n"

    def error(self, limited: bool) -> bytes:
        error = {"message": "oops", "type": "x", "code": "insufficient_quota" if limited else "server_error"}
        return sse({"error": error})

    def misshapen(self) -> bytes:
        return sse({"choices": {"delta": "text"}})

    def thought(self) -> bytes:
        return self._chunk({"reasoning_content": "hm"})

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        return sse({**self._shape(), "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    def _shape(self) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt"}


WIRES: dict[str, Wire] = {
    "/responses": Responses(),
    "/chat/completions": Chat(),
    "/messages": Messages(),
    ":streamGenerateContent": Generate(),
}


def wire_of(request: Request) -> Wire:
    return WIRES[next(path for path in WIRES if path in request.target)]


@asynccontextmanager
async def serving(keep: bool = False) -> AsyncIterator[Service]:
    """The services on a free port of loopback; with `keep`, a connection may carry one request after the other."""
    service = Service()
    async with raw_http.serving(service.handle, keep) as (url, _):
        service.url = url
        yield service
