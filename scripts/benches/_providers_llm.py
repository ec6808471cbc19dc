"""A fake LLM service for the providers' bench, an OS process of its own: chat completions streamed at an even pace.

The request's `max_tokens` says how many tokens, its `temperature` how many a second, its `seed` that the streams begin
once so many have been asked for, within a second, each by its own clock. Each token is the time at which it
was sent (CLOCK_MONOTONIC, which all processes share), and is written by a send of its own. One thread, one epoll, no
library: it sends 25,000 tokens a second on a third of a core. Run as `python _providers_llm.py`; prints its port.
"""

from __future__ import annotations

import json
import select
import socket
import time
from heapq import heappop, heappush

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
SHAPE = (
    b'{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"bench",'
    b'"choices":[{"index":0,"delta":%b,"finish_reason":%b}]%b}'
)
WIDTH = 15


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def piece(delta: bytes, finish: bytes = b"null", more: bytes = b"") -> bytes:
    return chunked(b"data: " + SHAPE % (delta, finish, more) + b"\n\n")


BEFORE, _, AFTER = piece(b'{"content":"%b "}' % (b"?" * WIDTH)).partition(b"?" * WIDTH)


def token() -> bytes:
    return BEFORE + b"%*.4f" % (WIDTH, time.monotonic()) + AFTER


def end(tokens: int) -> bytes:
    used = b',"usage":{"prompt_tokens":1,"completion_tokens":%d}' % tokens
    return piece(b"{}", b'"stop"') + piece(b"{}", b"null", used) + chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Client:
    """One connection: its request as it comes, and its stream as it goes."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.said = b""
        self.rest = b""
        self.tokens = self.sent = 0
        self.together = 0
        self.began = self.every = 0.0

    def begin(self) -> bool:
        """Whether a whole request is here; the stream begins with it."""
        head, _, body = self.said.partition(b"\r\n\r\n")
        sizes = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if not sizes or len(body) < sizes[0]:
            return False
        asked = json.loads(body[: sizes[0]])
        self.said = body[sizes[0] :]
        self.tokens, self.every, self.sent = int(asked["max_tokens"]), 1 / float(asked["temperature"]), 0
        self.together = int(asked.get("seed", 1))
        self.write(HEAD)
        return True

    def step(self) -> float | None:
        """Sends the next token; when the one after it is due, None at the end."""
        self.write(token())
        self.sent += 1
        if self.sent == self.tokens:
            self.write(end(self.tokens))
            return None
        return self.began + self.sent * self.every

    def write(self, data: bytes) -> None:
        """What the kernel does not take waits for the next token: a reader that is slow slows its own stream."""
        data = self.rest + data
        try:
            self.rest = data[self.sock.send(data) :]
        except BlockingIOError:
            self.rest = data


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener.fileno(), select.EPOLLIN)
    print(listener.getsockname()[1], flush=True)
    clients: dict[int, Client] = {}
    due: list[tuple[float, int, Client]] = []
    waiting: list[Client] = []
    while True:
        wait = due[0][0] - time.monotonic() if due else 1.0
        for fd, _ in poll.poll(max(wait, 0.0)):
            if fd == listener.fileno():
                sock, _ = listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                clients[sock.fileno()] = Client(sock)
                poll.register(sock.fileno(), select.EPOLLIN)
            elif not heard(clients[fd], waiting):
                poll.unregister(fd)
                clients.pop(fd).sock.close()
        if waiting and len(waiting) >= waiting[0].together:
            begin(waiting, due)
        now = time.monotonic()
        while due and due[0][0] <= now:
            _, fd, client = heappop(due)
            if clients.get(fd) is client:
                go_on(client, due)


def begin(waiting: list[Client], due: list[tuple[float, int, Client]]) -> None:
    """Lets the streams begin, evenly over a second."""
    for number, client in enumerate(waiting):
        client.began = time.monotonic() + number / len(waiting)
        heappush(due, (client.began, client.sock.fileno(), client))
    waiting.clear()


def heard(client: Client, waiting: list[Client]) -> bool:
    """Reads from a client; false when it is gone."""
    try:
        data = client.sock.recv(65536)
    except OSError:
        return False
    client.said += data
    if data and client.begin():
        waiting.append(client)
    return bool(data)


def go_on(client: Client, due: list[tuple[float, int, Client]]) -> None:
    try:
        at = client.step()
    except OSError:  # the client is gone; reading says so, too
        return
    if at is not None:
        heappush(due, (at, client.sock.fileno(), client))


if __name__ == "__main__":
    main()
