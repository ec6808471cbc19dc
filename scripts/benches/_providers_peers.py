"""What one would write without Elwift: a relay of an LLM's stream to a WebSocket, on uvicorn and Starlette (asyncio).

    python _providers_peers.py httpx|openai SERVICE_URL

It keeps no task, no record and no order but the stream's own: a message a token, as it comes. Prints its port.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

LIMITS = httpx.Limits(max_connections=2000, max_keepalive_connections=2000)


def by_httpx(url: str) -> Any:
    client = httpx.AsyncClient(limits=LIMITS, timeout=60, trust_env=False)

    async def texts(wish: dict[str, Any]) -> AsyncIterator[str]:
        body = {"model": "bench", "messages": [{"role": "user", "content": "hi"}], "stream": True, **wish}
        async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    choices = json.loads(line[6:])["choices"]
                    if choices and choices[0]["delta"].get("content"):
                        yield choices[0]["delta"]["content"]

    return texts


def by_openai(url: str) -> Any:
    client = openai.AsyncOpenAI(api_key="bench", base_url=f"{url}/v1", max_retries=0)

    async def texts(wish: dict[str, Any]) -> AsyncIterator[str]:
        turns: Any = [{"role": "user", "content": "hi"}]
        stream = await client.chat.completions.create(model="bench", messages=turns, stream=True, **wish)
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content

    return texts


def main(kind: str, url: str) -> None:
    texts = by_httpx(url) if kind == "httpx" else by_openai(url)

    async def relay(socket: WebSocket) -> None:
        await socket.accept()
        name = socket.url.path[1:]
        async for text in texts(await socket.receive_json()):
            await socket.send_json({"id": name, "text": text})
        await socket.send_json({"id": name, "end": True})
        await socket.receive()

    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)
    app = Starlette(routes=[WebSocketRoute("/{name}", relay)])
    config = uvicorn.Config(app, log_level="error", ws_per_message_deflate=False)
    uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
