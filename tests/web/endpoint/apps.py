"""A small Quart application that the tests serve twice: on stock hypercorn, and on the endpoint.

Run as a program (`python apps.py stock|ours`) it serves on a free loopback port, prints the port, and ends when its
standard input does.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import request, websocket
from quart_trio import QuartTrio

MIB = 1024 * 1024


class Notes:
    """What handlers have seen, for `GET /notes/<name>` to tell."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}
        self._changed = trio.Event()

    def put(self, name: str, value: str) -> None:
        self._seen[name] = value
        self._changed.set()
        self._changed = trio.Event()

    async def get(self, name: str, patience: float) -> str:
        with trio.move_on_after(patience):
            while name not in self._seen:
                await self._changed.wait()
        return self._seen.get(name, "nothing")


def make_app() -> QuartTrio:
    app = QuartTrio("fixture")
    app.config["MAX_CONTENT_LENGTH"] = 1 * MIB
    notes = Notes()

    @app.get("/")
    async def index() -> str:
        return "alive"

    @app.get("/notes/<name>")
    async def tell(name: str) -> str:
        return await notes.get(name, float(request.args.get("patience", 3.0)))

    @app.post("/size")
    async def size() -> str:
        return str(len(await request.get_data()))

    @app.get("/crash")
    async def crash() -> str:
        raise RuntimeError("the handler's own fault")

    @app.get("/big")
    async def big() -> bytes:
        return b"x" * (64 * MIB)

    @app.websocket("/echo")
    async def echo() -> None:
        while True:
            await websocket.send(await websocket.receive())

    @app.websocket("/crash")
    async def crash_socket() -> None:
        await websocket.accept()
        raise RuntimeError("the handler's own fault")

    @app.websocket("/refuse")
    async def refuse() -> tuple[str, int]:
        return "", 403

    @app.websocket("/stall")
    async def stall() -> None:
        """Sends more than any kernel buffers to a client that does not read, with a deadline of its own."""
        await websocket.accept()
        try:
            with trio.move_on_after(0.3):
                while True:
                    await websocket.send(b"x" * 32 * MIB)
        finally:
            notes.put("stall", "freed")

    @app.websocket("/nursery")
    async def nursery() -> None:
        try:
            async with trio.open_nursery() as both:
                both.start_soon(trio.sleep_forever)
                await websocket.receive()
                await trio.sleep_forever()
        except BaseException as error:
            notes.put("nursery", type(error).__name__)
            raise

    return app


def stock_config() -> Config:
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = None
    config.graceful_timeout = 0.5
    config.websocket_max_message_size = 1 * MIB
    config.websocket_ping_interval = 0.1
    return config


async def serve_stock() -> None:
    """The server as it comes. Whatever it raises ends the program, as it would end anybody's."""
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        app: Any = make_app()
        binds = await nursery.start(partial(serve, app, stock_config(), shutdown_trigger=stop.wait))
        print(binds[0].rpartition(":")[2], flush=True)
        await end_of_input()
        stop.set()


async def serve_ours() -> None:
    from engine.otp import Node, Supervisor, stop
    from web.endpoint import Endpoint, EndpointSettings

    async with Node.open():
        app = make_app()
        endpoint = Endpoint(EndpointSettings(idle_timeout=1.0, max_message=1 * MIB, close_timeout=1.0), app)

        @app.get("/faults")
        async def faults() -> dict[str, int]:
            return endpoint.faults.counts

        top = await Supervisor.start_link([endpoint.spec()])
        print(endpoint.port, flush=True)
        await end_of_input()
        await endpoint.drain(2.0)
        await stop(top)


async def end_of_input() -> None:
    await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


if __name__ == "__main__":
    trio.run({"stock": serve_stock, "ours": serve_ours}[sys.argv[1]])
