"""A fake LLM server for the providers' bench, an OS process of its own: chat completions streamed at an even pace.

Its input says how many tokens, how many a second, and after how many seconds the first. The first token is the time at
which it was sent (CLOCK_MONOTONIC, which all processes share). Run as `python _providers_llm.py`; prints its port.
"""

from __future__ import annotations

import json
import time
from typing import Any

import trio

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
SHAPE: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "bench"}


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def piece(delta: dict[str, str], finish: str | None = None, **more: Any) -> bytes:
    said = {**SHAPE, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}
    return chunked(b"data: " + json.dumps(said).encode() + b"\n\n")


WORD = piece({"content": " wave"})


async def connection(stream: trio.SocketStream) -> None:
    try:
        while (body := await _request(stream)) is not None:
            await _answer(stream, body)
    except trio.BrokenResourceError:
        return


async def _request(stream: trio.SocketStream) -> dict[str, Any] | None:
    """The body of the next request of a connection; None at its end."""
    said = b""
    while b"\r\n\r\n" not in said:
        more = await stream.receive_some(65536)
        if not more:
            return None
        said += more
    head, _, body = said.partition(b"\r\n\r\n")
    size = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < size:
        body += await stream.receive_some(65536)
    return dict(json.loads(body))


async def _answer(stream: trio.SocketStream, body: dict[str, Any]) -> None:
    """The stream: paced by the clock, so that a late token does not make all that follow late."""
    tokens, rate = int(body["max_tokens"]), float(body["temperature"])
    await stream.send_all(HEAD)
    began = trio.current_time()
    await stream.send_all(piece({"content": f"{time.monotonic():.6f}"}))
    for number in range(1, tokens):
        await trio.sleep_until(began + number / rate)
        await stream.send_all(WORD)
    usage = {"prompt_tokens": 1, "completion_tokens": tokens}
    end = piece({}, "stop") + piece({}, usage=usage) + chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    await stream.send_all(end)


async def main() -> None:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, connection, 0)
        print(listeners[0].socket.getsockname()[1], flush=True)


if __name__ == "__main__":
    trio.run(main)
