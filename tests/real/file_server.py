"""A provider's file server for tests of the whole way: what each path gives, and how it may misbehave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import trio
from attrs import define, field

from tests.engine.providers import raw_http
from tests.engine.providers.raw_http import Reply, Request

Answer = Callable[[Reply], Awaitable[None]]


@define(eq=False)
class Files:
    """`answers` by path: the first of several is met first, the last one stays."""

    url: str = ""
    answers: dict[str, list[Answer]] = field(factory=dict)
    asked: list[str] = field(factory=list)
    at_work: trio.Event = field(factory=trio.Event)
    """Set when an answer holds back its rest."""

    def give(self, path: str, *answers: Answer | bytes) -> str:
        """The URL under which these answers are met."""
        self.answers[path] = [whole(answer) if isinstance(answer, bytes) else answer for answer in answers]
        return f"{self.url}{path}?signature=one"

    @property
    def origin(self) -> str:
        return urlsplit(self.url).netloc

    async def _handle(self, request: Request, reply: Reply) -> None:
        path = urlsplit(request.target).path
        self.asked.append(path)
        answers = self.answers.get(path, [status(404)])
        await (answers.pop(0) if len(answers) > 1 else answers[0])(reply)


def whole(content: bytes, **headers: str) -> Answer:
    async def answer(reply: Reply) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        await reply.whole(200, {"content-type": "image/png", **named}, content)

    return answer


def status(number: int, **headers: str) -> Answer:
    async def answer(reply: Reply) -> None:
        await reply.whole(number, headers, b"no")

    return answer


def streamed(content: bytes, times: int = 1, **headers: str) -> Answer:
    """Without a length, piece by piece, for as long as it is wanted."""

    async def answer(reply: Reply) -> None:
        await reply.begin(200, {name.replace("_", "-"): value for name, value in headers.items()})
        for _ in range(times):
            await reply.piece(content)
        await reply.end()

    return answer


def cut_off(content: bytes, length: int) -> Answer:
    """Less than it says; with `length` below the content's, more."""

    async def answer(reply: Reply) -> None:
        await reply.cut(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length + content)

    return answer


def held(files: Files, content: bytes) -> Answer:
    """Half of it, and then nothing more."""

    async def answer(reply: Reply) -> None:
        await reply.cut(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content[: len(content) // 2])
        files.at_work.set()
        await trio.sleep_forever()

    return answer


@asynccontextmanager
async def serving() -> AsyncIterator[Files]:
    """The server on a free port of loopback; ends with the block."""
    files = Files()
    async with raw_http.serving(files._handle) as (url, _):
        files.url = url
        yield files
