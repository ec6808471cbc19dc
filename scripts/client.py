"""A small Phoenix Channels V2 client on trio-websocket, for load, chaos and end-to-end tests.

One reader task per socket hands frames to the channel that they are for. Nothing reconnects by itself: whoever tests
reconnection wants to see it.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import trio
from attrs import define, field, frozen
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url

Payload = dict[str, Any]

CONNECT_WITHIN = 10.0
"""Seconds for the handshake: a server that is killed in the middle of one leaves the client library waiting."""


class ChannelClosed(Exception):
    """The channel or its socket ended; `event` says how (`phx_close`, `phx_error`, `socket`)."""

    def __init__(self, event: str) -> None:
        super().__init__(event)
        self.event = event


class Refused(Exception):
    """The server answered a join or a push with an error."""

    def __init__(self, response: Payload) -> None:
        super().__init__(str(response))
        self.response = response


@frozen
class Message:
    """A push of the server's."""

    event: str
    payload: Payload


@define(eq=False)
class ClientChannel:
    """A joined topic: iterate it for pushes until the channel ends."""

    socket: PhoenixSocket
    topic: str
    join_ref: str
    response: Payload = field(factory=dict)
    closed_by: str | None = None
    _send: trio.MemorySendChannel[Message] = field(init=False)
    _receive: trio.MemoryReceiveChannel[Message] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Message](math.inf)

    async def push(self, event: str, payload: Payload, timeout: float = 10.0) -> Payload:
        """Sends an event and waits for its reply. Raises Refused or trio.TooSlowError."""
        return await self.socket.request(self.join_ref, self.topic, event, payload, timeout)

    async def leave(self) -> None:
        await self.push("phx_leave", {})

    def __aiter__(self) -> ClientChannel:
        return self

    async def __anext__(self) -> Message:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    def deliver(self, message: Message) -> None:
        if message.event in ("phx_close", "phx_error"):
            self.end(message.event)
        else:
            self._send.send_nowait(message)

    def end(self, how: str) -> None:
        if self.closed_by is None:
            self.closed_by = how
            self._send.close()


@define(eq=False)
class PhoenixSocket:
    """A connected socket. Use `connect`."""

    _ws: WebSocketConnection
    _refs: Any = field(factory=lambda: map(str, count(1)))
    _channels: dict[str, ClientChannel] = field(factory=dict)
    _waiting: dict[str, trio.MemorySendChannel[Payload]] = field(factory=dict)
    close_code: int | None = None
    closed: trio.Event = field(factory=trio.Event)

    async def join(self, topic: str, params: Payload | None = None, timeout: float = 10.0) -> ClientChannel:
        """Joins a topic; the answer is in `response`. Raises Refused."""
        join_ref = next(self._refs)
        channel = ClientChannel(self, topic, join_ref)
        self._channels[join_ref] = channel
        try:
            channel.response = await self.request(join_ref, topic, "phx_join", params or {}, timeout, ref=join_ref)
        except BaseException:
            self._channels.pop(join_ref, None)
            raise
        return channel

    async def request(
        self, join_ref: str | None, topic: str, event: str, payload: Payload, timeout: float, ref: str | None = None
    ) -> Payload:
        ref = ref or next(self._refs)
        send, receive = trio.open_memory_channel[Payload](1)
        self._waiting[ref] = send
        try:
            with trio.fail_after(timeout):
                await self.send_frame([join_ref, ref, topic, event, payload])
                reply = await receive.receive()
        except trio.EndOfChannel:
            raise ChannelClosed("socket") from None
        finally:
            self._waiting.pop(ref, None)
        if reply["status"] != "ok":
            raise Refused(reply["response"])
        response: Payload = reply["response"]
        return response

    async def heartbeat(self) -> None:
        await self.request(None, "phoenix", "heartbeat", {}, 10.0)

    async def send_frame(self, frame: list[Any]) -> None:
        try:
            await self._ws.send_message(json.dumps(frame))
        except ConnectionClosed:
            raise ChannelClosed("socket") from None

    async def close(self, code: int = 1000) -> None:
        await self._ws.aclose(code)

    async def drop(self) -> None:
        """Ends the TCP connection without a word, as a lost network does."""
        await self._ws._stream.aclose()

    async def read(self) -> None:
        """Reads until the socket ends, then ends every channel."""
        try:
            while True:
                self._dispatch(json.loads(await self._ws.get_message()))
        except ConnectionClosed as end:
            self.close_code = end.reason.code if end.reason else 1006
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            self.close_code = 1006
        finally:
            self.closed.set()
            for channel in self._channels.values():
                channel.end("socket")
            for waiting in self._waiting.values():
                waiting.close()

    def _dispatch(self, frame: list[Any]) -> None:
        join_ref, ref, _topic, event, payload = frame
        if event == "phx_reply" and ref in self._waiting:
            self._waiting[ref].send_nowait(payload)
        elif channel := self._channels.get(join_ref):
            channel.deliver(Message(event, payload))


@asynccontextmanager
async def connect(
    url: str, params: str = "", *, keep_alive: float = 25.0, headers: list[tuple[bytes, bytes]] | None = None
) -> AsyncIterator[PhoenixSocket]:
    """Connects to `url` (http://host:port of the server) and reads until the block ends."""
    address = (
        url.replace("http", "ws", 1).rstrip("/") + "/socket/websocket?vsn=2.0.0" + (f"&{params}" if params else "")
    )
    async with (
        open_websocket_url(
            address, extra_headers=headers, max_message_size=64 << 20, connect_timeout=CONNECT_WITHIN
        ) as ws,
        trio.open_nursery() as nursery,
    ):
        socket = PhoenixSocket(ws)
        nursery.start_soon(socket.read)
        nursery.start_soon(_beat, socket, keep_alive)
        try:
            yield socket
        finally:
            nursery.cancel_scope.cancel()


async def _beat(socket: PhoenixSocket, every: float) -> None:
    while True:
        with trio.move_on_after(every):
            await socket.closed.wait()
            return
        try:
            await socket.heartbeat()
        except (ChannelClosed, trio.TooSlowError):
            return
