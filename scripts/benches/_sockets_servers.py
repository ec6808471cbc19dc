"""The servers that the sockets bench measures, each a program of its own on one core.

    _sockets_servers.py elwift | quart | fastapi | application

The first three speak the same small protocol over WebSocket (join, echo, `burst` and `pace` of pushes); `application`
is the whole product. Each prints its port once it listens. `fastapi` runs in an
environment of its own, so each imports only what it needs.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import signal
import sys
import time
from typing import Any

SERVER_CORE = 0
TOPIC = "room:1"
PAYLOAD = {"task_id": "0123", "progress": 0.5, "status": "processing", "attempt": 1}


def pinned() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {SERVER_CORE})


def payload() -> dict[str, Any]:
    return {**PAYLOAD, "at": time.monotonic()}


def settled() -> None:
    """As the product does once it is up: what lives for good is not looked at by the collector again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


# --- ours: a Socket process a connection, a Channel process a topic -----------------------------------------------


def elwift() -> None:
    import trio
    from quart_trio import QuartTrio

    from engine.otp import DynamicSupervisor, Node, Pid, Supervisor, self_, send, send_after, spawn
    from web.auth import AuthSettings, Guard, OriginPolicy
    from web.endpoint import Endpoint, EndpointSettings
    from web.sockets.channel import Channel, ok
    from web.sockets.door import Door
    from web.sockets.mount import mount
    from web.sockets.pubsub import PubSub
    from web.sockets.router import Router
    from web.sockets.socket import Protocol

    rooms: dict[Pid, Channel] = {}

    class Room(Channel):
        async def join(self, params: Any) -> dict[str, Any]:
            rooms[self_()] = self
            return {}

        async def handle_in(self, event: str, given: Any) -> Any:
            if event == "burst":
                await spawn(burst, given["rounds"])
            elif event == "broadcast":
                self.broadcast("progress", payload())
            elif event == "pace":
                for pid in rooms:
                    send_after(
                        random.uniform(0, given["every"]), pid, (given["every"], time.monotonic() + given["for"])
                    )
            elif event == "forget":
                rooms.clear()
            return ok(given)

        async def handle_info(self, message: Any) -> None:
            if message is None:
                self.push("progress", payload())
                return
            every, until = message
            if time.monotonic() < until:
                self.push("progress", payload())
                send_after(every, self_(), message)

    async def burst(rounds: int) -> None:
        """As fast as the clients take it: every channel's process is told, and tells its client."""
        for _ in range(rounds):
            for pid in rooms:
                send(pid, None)
            await trio.lowlevel.checkpoint()
            while any(room.lane.transport.congested for room in rooms.values()):  # noqa: ASYNC110 - a bench's brake
                await trio.sleep(0.001)

    async def main() -> None:
        pubsub = PubSub()
        app = QuartTrio("bench")
        router = Router.of(("room:*", Room))
        mount(app, "/socket", Door(Protocol(router), pubsub, Guard.open(AuthSettings()), OriginPolicy()))
        endpoint = Endpoint(EndpointSettings(), app)
        async with Node.open():
            sockets = DynamicSupervisor.spec(id="sockets", name="sockets")
            await Supervisor.start_link([pubsub.spec(), sockets, endpoint.spec()])
            settled()
            print(endpoint.port, flush=True)
            await trio.sleep_forever()

    trio.run(main)


# --- the product ----------------------------------------------------------------------------------------------------


def application(data_dir: str) -> None:
    from pathlib import Path

    import trio

    from web.serve import running
    from web.settings import Settings
    from web.telemetry import logs

    logs.configure("json", "warning", sys.stderr)

    async def main() -> None:
        settings = Settings(
            port=0,
            data_dir=Path(data_dir),
            local_model=False,
            concurrency=8,  # tasks that wait and are watched: what their attempts cost is not what is measured
            max_queued=100_000,
            max_queued_per_user=100_000,
        )
        with trio.open_signal_receiver(signal.SIGTERM) as told:
            async with running(settings) as server:
                settled()
                print(server.endpoint.port, flush=True)
                await anext(aiter(told))  # an orderly end: PostgreSQL is not left behind

    trio.run(main)


# --- peers: one task a connection, no process a topic ------------------------------------------------------------


def frame(event: str, given: Any, join_ref: Any = "1", ref: Any = None) -> str:
    return json.dumps([join_ref, ref, TOPIC, event, given])


def reply(message: str) -> tuple[str, str, Any]:
    join_ref, ref, _, event, given = json.loads(message)
    answer = frame("phx_reply", {"status": "ok", "response": given}, join_ref, ref)
    return event, answer, given


def quart() -> None:
    import socket

    import hypercorn.trio
    import trio
    from hypercorn.config import Config
    from quart import websocket
    from quart_trio import QuartTrio

    app = QuartTrio("peer")
    clients: set[Any] = set()

    @app.websocket("/socket/websocket")
    async def serve() -> None:
        await websocket.accept()
        client = websocket._get_current_object()
        async with trio.open_nursery() as nursery:
            while True:
                event, answer, given = reply(await websocket.receive())
                clients.add(client)
                if event in ("burst", "broadcast"):
                    nursery.start_soon(burst, given["rounds"])
                elif event == "pace":
                    for one in clients:
                        nursery.start_soon(pace, one, given["every"], time.monotonic() + given["for"])
                elif event == "forget":
                    clients.clear()
                await websocket.send(answer)

    async def burst(rounds: int) -> None:
        for _ in range(rounds):
            for client in clients:
                await client.send(frame("progress", payload()))

    async def pace(client: Any, every: float, until: float) -> None:
        await trio.sleep(random.uniform(0, every))
        while time.monotonic() < until:
            await client.send(frame("progress", payload()))
            await trio.sleep(every)

    async def main() -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        port = listener.getsockname()[1]
        config = Config()
        config.bind = [f"fd://{listener.detach()}"]
        config.accesslog = config.errorlog = None
        print(port, flush=True)
        await hypercorn.trio.serve(app, config)

    trio.run(main)


def fastapi() -> None:
    import uvicorn
    from fastapi import FastAPI, WebSocket, WebSocketDisconnect

    app = FastAPI()
    clients: set[Any] = set()
    background: set[Any] = set()

    async def serve(websocket: Any) -> None:
        await websocket.accept()
        try:
            while True:
                event, answer, given = reply(await websocket.receive_text())
                clients.add(websocket)
                if event in ("burst", "broadcast"):
                    start(burst(given["rounds"]))
                elif event == "pace":
                    for one in clients:
                        start(pace(one, given["every"], time.monotonic() + given["for"]))
                elif event == "forget":
                    clients.clear()
                await websocket.send_text(answer)
        except WebSocketDisconnect:
            clients.discard(websocket)

    serve.__annotations__["websocket"] = WebSocket  # this module's annotations are text, and FastAPI cannot see ours
    app.add_api_websocket_route("/socket/websocket", serve)

    def start(work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        background.add(task)
        task.add_done_callback(background.discard)

    async def burst(rounds: int) -> None:
        for _ in range(rounds):
            for client in clients:
                await client.send_text(frame("progress", payload()))

    async def pace(client: Any, every: float, until: float) -> None:
        await asyncio.sleep(random.uniform(0, every))
        while time.monotonic() < until:
            await client.send_text(frame("progress", payload()))
            await asyncio.sleep(every)

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            print(self.servers[0].sockets[0].getsockname()[1], flush=True)

    Server(uvicorn.Config(app, port=0, log_level="error", access_log=False)).run()


if __name__ == "__main__":
    pinned()
    {"elwift": elwift, "quart": quart, "fastapi": fastapi, "application": application}[sys.argv[1]](*sys.argv[2:])
