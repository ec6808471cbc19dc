"""A plain ASGI WebSocket over a transport of ours: for applications that know nothing of Socket processes.

The same bounds and the same codes as for everybody; `send` waits while the client is slow, and can be cancelled.
May import this package.
"""

from __future__ import annotations

from collections import deque

import trio

from web.endpoint.http1 import Message
from web.endpoint.stream import ABNORMAL, StreamTransport
from web.sockets.transport import CloseCode, Closed, News, Received

NORMAL = 1000


class Bridge:
    """ASGI's `receive` and `send` on one side, a transport's owner on the other."""

    def __init__(self, transport: StreamTransport) -> None:
        self.transport = transport
        self._frames: deque[str | bytes] = deque()
        self._closed: Closed | None = None
        self._news = trio.Event()

    def deliver(self, news: News) -> None:
        if isinstance(news, Received):
            self._frames.extend(news.frames)
        elif isinstance(news, Closed):
            self._closed = news
        self._news.set()
        self._news = trio.Event()

    async def receive(self) -> Message:
        while not self._frames and self._closed is None:
            await self._news.wait()  # the transport's idle timeout bounds it
        if not self._frames:
            return {"type": "websocket.disconnect", "code": self._closed.code if self._closed else ABNORMAL}
        frame = self._frames.popleft()
        if not self._frames:
            self.transport.resume()
        text, data = (frame, None) if isinstance(frame, str) else (None, frame)
        return {"type": "websocket.receive", "text": text, "bytes": data}

    async def send(self, message: Message) -> None:
        if message["type"] == "websocket.close":
            self._close(int(message.get("code") or NORMAL), message.get("reason") or "")
            return
        data = message.get("bytes")
        if data is not None:
            self.transport.send_binary(bytes(data))
        else:
            self.transport.send_text(message["text"].encode())
        while self.transport.congested and self._closed is None:
            await self._news.wait()  # until it is writable, or closed for being too slow
        await trio.lowlevel.checkpoint()

    def _close(self, code: int, reason: str) -> None:
        """1000 is what frameworks say of a handler that ended, be it by a crash; many clients do not return then."""
        self.transport.close(CloseCode.CRASHED if code == NORMAL else code, reason)
