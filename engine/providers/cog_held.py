"""Predictions whose connection is held open until they end: the way to a Cog server whose webhooks do not reach us.

The result comes by the connection, and a connection that breaks cancels the prediction, so nothing is lost but the
work. The price: the prediction does not outlive this process. Source: Cog's page "HTTP API", on synchronous and
streaming predictions.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx
import msgspec
from attrs import evolve

from engine.providers.cog_wire import read_news
from engine.providers.replicate_wire import BadPrediction, Prediction
from engine.providers.sse import Decoder, EventTooLarge, ServerSentEvent

NO_STREAM = 406
"""What a model that does not stream answers to who wants its events; then it is asked for its end alone."""


class Refused(Exception):
    """The server does not take the prediction."""

    def __init__(self, status: int, answer: Any) -> None:
        super().__init__(status)
        self.status = status
        self.answer = answer


class Broken(Exception):
    """The connection ended before the prediction."""


async def held(
    http: httpx.AsyncClient, url: str, body: dict[str, Any], headers: dict[str, str]
) -> AsyncGenerator[Prediction, None]:
    """The prediction as it grows, to its end. The caller sets the deadline.

    Raises:
        Refused, Broken; httpx.HTTPError, BadPrediction.
    """
    try:
        async with aclosing(_streamed(http, url, body, headers)) as all_news:
            async for news in all_news:
                yield news
    except Refused as refused:
        if refused.status != NO_STREAM:
            raise
        yield await _whole(http, url, body, headers)


async def _whole(http: httpx.AsyncClient, url: str, body: dict[str, Any], headers: dict[str, str]) -> Prediction:
    answer = await http.put(url, json=body, headers=headers, timeout=httpx.Timeout(None, connect=10.0))
    if answer.status_code not in (200, 201):
        raise Refused(answer.status_code, decoded(answer))
    return read_news(body["id"], decoded(answer))


async def _streamed(
    http: httpx.AsyncClient, url: str, body: dict[str, Any], headers: dict[str, str]
) -> AsyncGenerator[Prediction, None]:
    accepts, timeout = {**headers, "Accept": "text/event-stream"}, httpx.Timeout(None, connect=10.0)
    async with http.stream("PUT", url, json=body, headers=accepts, timeout=timeout) as answer:
        if answer.status_code != 200:
            await answer.aread()
            raise Refused(answer.status_code, decoded(answer))
        if "text/event-stream" not in answer.headers.get("content-type", ""):
            await answer.aread()  # it does not stream, and has answered all the same
            yield read_news(body["id"], decoded(answer))
            return
        news, decoder = Prediction(body["id"], "starting", output=[]), Decoder()
        yield news
        async for chunk in answer.aiter_bytes():
            try:
                for event in decoder.feed(chunk):
                    news = grown(news, event)
                    yield news
            except EventTooLarge as problem:
                raise BadPrediction("an event without an end") from problem
            if news.terminal:
                return
    raise Broken


def grown(news: Prediction, event: ServerSentEvent) -> Prediction:
    """The prediction after one event of its stream. Raises BadPrediction."""
    try:
        said = msgspec.json.decode(event.data)
    except msgspec.DecodeError as problem:
        raise BadPrediction("an event that is not JSON") from problem
    match event.event, said:
        case "output", {"chunk": chunk}:
            return evolve(news, status="processing", output=[*news.output, chunk])
        case "log", {"data": str(data)}:
            return evolve(news, status="processing", logs=(news.logs + data)[-4096:])
        case "completed", dict():
            return read_news(news.id, said)
        case "error", _:
            raise BadPrediction("the stream of events has gaps")
        case _:
            return news


def decoded(answer: httpx.Response) -> Any:
    """The JSON of an answer, None when it is none."""
    try:
        return answer.json()
    except ValueError:
        return None
