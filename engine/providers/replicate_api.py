"""Replicate's HTTP API as far as we use it: one request, one answer, nothing repeated.

A thin client on httpx: the official one repeats GETs by itself, sleeps with asyncio when it does, and refuses statuses
that it does not know. Here every request has a deadline for the whole of it, every answer a bound, a redirect is never
followed (the token would travel with it), and an answer that did not come is told apart from a request that never left.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import trio
from attrs import define, field, frozen

from engine.providers.protocol import Failed
from engine.providers.replicate_failures import redirected, refusal, unreachable
from engine.providers.replicate_wire import BadPrediction, Prediction, read_body, read_json

BASE_URL = "https://api.replicate.com"
LARGEST_ANSWER = 64 * 1024 * 1024
PAGES = 20
"""Pages of a listing that are read, of a hundred predictions each."""
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.ProxyError)


@frozen
class Lost(Exception):
    """An answer did not come, or could not be read: the service may or may not have done what was asked.

    `pending`: it may still be at it.
    """

    why: str
    pending: bool = False


@frozen
class Refusal(Exception):
    """The service said no, or was never asked: nothing was done. `gone`: what was asked for is not there."""

    failed: Failed
    gone: bool = False


@frozen
class Answer:
    """A good answer. `clock`: how far the service's clock was ahead of ours, in seconds, when it said its time."""

    body: bytes
    clock: float | None


@define(eq=False)
class Api:
    """Requests to one account. Times in seconds; `clock` gives Unix time."""

    http: httpx.AsyncClient
    token: str = field(repr=False)
    base_url: str = BASE_URL
    within: float = 15.0
    create_within: float = 30.0
    clock: Callable[[], float] = time.time
    ahead: float | None = None
    """How far the service's clock is ahead of ours, as its last answer said."""

    def __attrs_post_init__(self) -> None:
        # the official client wants the bare host, its next version wants /v1 behind it: both are understood
        self.base_url = (self.base_url or BASE_URL).rstrip("/").removesuffix("/v1")

    async def create(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Prediction:
        """Makes a prediction. After Lost it may have been made."""
        return _prediction(await self.ask("POST", path, body, headers, within=self.create_within))

    async def get(self, identifier: str) -> Prediction:
        return _prediction(await self.ask("GET", f"/v1/predictions/{identifier}"))

    async def cancel(self, identifier: str) -> None:
        await self.ask("POST", f"/v1/predictions/{identifier}/cancel")

    async def model(self, slug: str, version: str | None) -> tuple[Any, Any]:
        """What there is to know of a model, and of one of its versions where one is named. Raises Lost or Refusal."""
        path = f"/v1/models/{slug}"
        said = read(await self.ask("GET", path))
        return said, read(await self.ask("GET", f"{path}/versions/{version}")) if version else None

    async def listing(self) -> AsyncGenerator[list[Any], None]:
        """Pages of the account's predictions, newest first. Raises Lost when there are more than can be read."""
        path = "/v1/predictions"
        for _ in range(PAGES):
            page = read(await self.ask("GET", path))
            if not isinstance(page, dict) or not isinstance(page.get("results"), list):
                raise Lost("a listing was expected")
            yield page["results"]
            following = page.get("next")
            if not following:
                return
            path = self._within(str(following))
        raise Lost("the listing has too many pages")

    def _within(self, url: str) -> str:
        """The path of the next page, on our own server and no other: the token goes with it."""
        base, parts = urlsplit(self.base_url), urlsplit(url)
        prefix = base.path.rstrip("/")
        if (parts.netloc and parts.netloc != base.netloc) or not parts.path.startswith(f"{prefix}/"):
            raise Lost("the next page of a listing is elsewhere")
        return parts.path.removeprefix(prefix) + (f"?{parts.query}" if parts.query else "")

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        within: float | None = None,
    ) -> Answer:
        """One request. Raises Lost or Refusal."""
        with trio.move_on_after(within or self.within):
            try:
                return await self._exchange(method, path, body, headers or {})
            except NEVER_SENT as problem:
                raise Refusal(unreachable(type(problem).__name__)) from problem
            except httpx.TimeoutException as problem:
                raise Lost(type(problem).__name__, pending=True) from problem
            except httpx.HTTPError as problem:
                raise Lost(type(problem).__name__) from problem
        raise Lost("no answer in time", pending=True)

    async def _exchange(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Answer:
        every = {"Authorization": f"Bearer {self.token}", "Accept": "application/json", **headers}
        url = self.base_url + path
        async with self.http.stream(method, url, json=body, headers=every, follow_redirects=False) as answer:
            content = await _whole(answer)
            self._tell_time(answer.headers.get("date"))
            status = answer.status_code
            if status >= 500:
                raise Lost(f"HTTP {status}")
            if answer.is_redirect or 300 <= status < 400:
                raise Refusal(redirected())
            if status >= 400:
                said = _or_none(content)
                raise Refusal(refusal(status, answer.headers, said, self.clock()), gone=status in (404, 410))
            return Answer(content, self.ahead)

    def _tell_time(self, date: str | None) -> None:
        try:
            self.ahead = parsedate_to_datetime(date or "").timestamp() - self.clock()
        except ValueError:
            return


async def _whole(answer: httpx.Response) -> bytes:
    chunks, size = [], 0
    async for chunk in answer.aiter_bytes():
        size += len(chunk)
        if size > LARGEST_ANSWER:
            raise Lost("the answer is too large")
        chunks.append(chunk)
    return b"".join(chunks)


def read(answer: Answer) -> Any:
    """An answer's JSON. Raises Lost."""
    try:
        return read_json(answer.body)
    except BadPrediction as problem:
        raise Lost(str(problem)) from problem


def _or_none(content: bytes) -> Any:
    try:
        return read_json(content)
    except BadPrediction:
        return None


def _prediction(answer: Answer) -> Prediction:
    try:
        return read_body(answer.body)
    except BadPrediction as problem:
        raise Lost(str(problem)) from problem
