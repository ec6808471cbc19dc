"""The clients of the providers' bench, an OS process of their own: many streams on real sockets, and how late they are.

    python _providers_watch.py elwift|relay URL STREAMS TOKENS RATE WINDOW

Prints a line when every stream has begun, and after WINDOW seconds one with what was seen in them: tokens, frames, and
the lag from a token's sending by the service to its arrival here. Then it waits for the streams' ends, checks that
nothing of any text was lost, and prints a last line. One thread and one epoll; frames are taken apart by hand.
"""

from __future__ import annotations

import http.client
import json
import select
import socket
import sys
import time
from typing import Any
from urllib.parse import urlsplit

from websockets.frames import Frame, Opcode

PER_SOCKET = 10
PATIENCE = 120.0


class Stream:
    """One text as it comes. `tokens` counts what has come, `whole` what the end says that there were."""

    def __init__(self) -> None:
        self.length = self.tokens = 0
        self.whole: int | None = None


class Watch:
    """All streams. Lags are kept while `window` is true."""

    def __init__(self) -> None:
        self.poll = select.epoll()
        self.socks: dict[int, tuple[socket.socket, bytearray]] = {}
        self.streams: dict[str, Stream] = {}
        self.window = False
        self.lags: list[float] = []
        self.frames = 0

    def connect(self, url: str, path: str) -> socket.socket:
        parts = urlsplit(url)
        sock = socket.create_connection((parts.hostname or "", parts.port or 80))
        sock.sendall(
            b"GET %b HTTP/1.1\r\nHost: %b\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            % (path.encode(), parts.netloc.encode())
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(1)
        assert head.startswith(b"HTTP/1.1 101"), head
        sock.setblocking(False)
        self.socks[sock.fileno()] = (sock, bytearray())
        self.poll.register(sock.fileno(), select.EPOLLIN)
        return sock

    def read(self, seconds: float) -> None:
        for fd, _ in self.poll.poll(seconds):
            sock, rest = self.socks[fd]
            data = sock.recv(1 << 20)
            if not data:
                self.poll.unregister(fd)
                continue
            now = time.monotonic()
            rest += data
            for message in frames(rest):
                self.take(message, now)

    def take(self, message: bytes, now: float) -> None:
        raise NotImplementedError

    def text(self, stream: Stream, text: str, now: float) -> None:
        stamps = text.split()
        stream.length += len(text)
        stream.tokens += len(stamps)
        if self.window:
            self.frames += 1
            self.lags += [now - float(stamp) for stamp in stamps]


class Elwift(Watch):
    """Tasks on Phoenix channels."""

    def begin(self, url: str, count: int, tokens: int, rate: float) -> None:
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
        sock: socket.socket | None = None
        for number in range(count):
            if number % PER_SOCKET == 0:
                sock = self.connect(url, "/socket/websocket?vsn=2.0.0")
            pace = {"max_tokens": tokens, "temperature": rate, "seed": count}
            wish = {"prompt": "hi", "model": "bench", "input": pace}
            connection.request("POST", "/api/tasks", json.dumps(wish), {"content-type": "application/json"})
            answer = json.loads(connection.getresponse().read())
            topic = f"task:{answer['task_id']}"
            self.streams[topic] = Stream()
            assert sock is not None
            sock.send(frame(["1", str(number), topic, "phx_join", {"last_seq": 0}]))
            self.read(0)

    def take(self, message: bytes, now: float) -> None:
        _, _, topic, event, payload = json.loads(message)
        stream = self.streams[topic]
        match event:
            case "text_delta":
                assert payload["offset"] == stream.length, "text was lost"
                self.text(stream, payload["text"], now)
            case "phx_reply" if not stream.tokens:
                self.text(stream, payload["response"]["task"].get("response") or "", now)
            case "llm_response":
                stream.whole = len(payload["text"].split())
            case "error":
                raise AssertionError(payload)


class Relay(Watch):
    """A socket a stream: the peers' tokens come as `{"text": …}`, their end as `{"end": true}`."""

    def begin(self, url: str, count: int, tokens: int, rate: float) -> None:
        for number in range(count):
            sock = self.connect(url, f"/{number}")
            self.streams[str(number)] = Stream()
            sock.send(frame({"max_tokens": tokens, "temperature": rate, "seed": count}))
            self.read(0)

    def take(self, message: bytes, now: float) -> None:
        said = json.loads(message)
        stream = self.streams[said["id"]]
        if "text" in said:
            self.text(stream, said["text"], now)
        else:
            stream.whole = stream.tokens


def frame(said: Any) -> bytes:
    return Frame(Opcode.TEXT, json.dumps(said).encode()).serialize(mask=True)


def frames(data: bytearray) -> list[bytes]:
    """Takes whole text messages of a server off the front of `data`."""
    found, at = [], 0
    while len(data) >= at + 2:
        size, head = data[at + 1], 2
        if size == 126:
            size, head = int.from_bytes(data[at + 2 : at + 4], "big"), 4
        elif size == 127:
            size, head = int.from_bytes(data[at + 2 : at + 10], "big"), 10
        if len(data) < at + head + size:
            break
        if data[at] == 0x81:
            found.append(bytes(data[at + head : at + head + size]))
        at += head + size
    del data[:at]
    return found


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * q))]


def main(kind: str, url: str, count: int, tokens: int, rate: float, window: float) -> None:
    watch = Elwift() if kind == "elwift" else Relay()
    deadline = time.monotonic() + PATIENCE + tokens / rate
    watch.begin(url, count, tokens, rate)
    while not all(stream.tokens for stream in watch.streams.values()):
        watch.read(0.1)
        assert time.monotonic() < deadline, "some streams do not begin"
    settle = time.monotonic() + 1.0
    while time.monotonic() < settle:
        watch.read(0.1)
    print(json.dumps({"ready": True}), flush=True)
    watch.window, until = True, time.monotonic() + window
    while (now := time.monotonic()) < until:
        watch.read(until - now)
    watch.window = False
    early = any(stream.whole for stream in watch.streams.values())
    lags = {"p50": quantile(watch.lags, 0.5), "p99": quantile(watch.lags, 0.99), "most": max(watch.lags)}
    print(json.dumps({"tokens": len(watch.lags), "frames": watch.frames, "early": early, **lags}), flush=True)
    while not all(stream.whole for stream in watch.streams.values()):
        watch.read(0.1)
        assert time.monotonic() < deadline, "some streams do not end"
    assert all(stream.whole == stream.tokens == tokens for stream in watch.streams.values()), "tokens were lost"
    print(json.dumps({"done": True}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]), float(sys.argv[6]))
