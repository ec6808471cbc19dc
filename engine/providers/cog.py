"""Cog model servers: predictions under ids of ours, followed by their webhooks, stopped with the task.

A Cog server keeps no history: once a prediction is over, asking for it again runs it again. So nothing is polled; the
net below lost webhooks is the server's health, and only when that leaves it open is the idempotent PUT repeated. It
takes as many predictions as it has slots, and refuses the next: that costs no attempt. Source: Cog's HTTP API page.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import aclosing
from typing import Any
from uuid import UUID

import httpx
import structlog
import trio
from attrs import frozen

from engine.providers.deliveries import Deliveries, Waiting
from engine.providers.metrics import POSSIBLE_DUPLICATES
from engine.providers.protocol import Accepted, Failed, FailureKind, ProviderEvent, ProviderRequest
from engine.providers.replicate import Story
from engine.providers.replicate_wire import BadPrediction, Prediction, newer, read_prediction

log = structlog.get_logger("elwift.cog")
BUSY_AGAIN = 1.0
STARTING_AGAIN = 2.0


@frozen
class Patience:
    """Seconds: of silence until the server's health is looked at, of bad health until the attempt fails, and how long
    a cancellation may take."""

    silence: float = 10.0
    illness: float = 30.0
    cancel: float = 5.0


@frozen
class Trouble(Exception):
    """The attempt cannot go on."""

    failed: Failed


class Cog:
    """The provider. `servers`: base URLs by the name that models have as their slug. `webhook`: the URL at which an
    attempt's deliveries reach this process, told when it is asked for, since a port may be chosen late. `ours`: names
    of servers that are started here; one of those that does not answer yet is starting, which costs no attempt."""

    name = "cog"

    def __init__(
        self,
        http: httpx.AsyncClient,
        servers: Mapping[str, str],
        webhook: Callable[[UUID], str],
        patience: Patience | None = None,
        ours: Collection[str] = (),
    ) -> None:
        self._http = http
        self._ours = frozenset(ours)
        self._servers = {name: url.rstrip("/") for name, url in servers.items()}
        self._webhook = webhook
        self._patience = patience or Patience()
        self.deliveries: Deliveries[Prediction] = Deliveries(newer)

    async def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """One attempt; closing it early cancels the prediction."""
        server = self._servers.get(request.slug)
        if server is None:
            yield _unknown_server()
            return
        with self.deliveries.waiting(request.attempt_id) as waiting:
            try:
                prediction = await self._put(server, request)
            except Trouble as trouble:
                starting = request.slug in self._ours and trouble.failed.code == "provider_unreachable"
                yield _starting() if starting else trouble.failed
                return
            async with aclosing(self._told(server, request, prediction, waiting)) as events:
                async for event in events:
                    yield event

    async def _told(
        self, server: str, request: ProviderRequest, prediction: Prediction, waiting: Waiting[Prediction]
    ) -> AsyncGenerator[ProviderEvent, None]:
        ended, story = False, Story()
        try:
            yield Accepted(prediction.id, prediction.status)
            async with aclosing(self._follow(server, request, prediction, waiting)) as all_news:
                async for news in all_news:
                    ended = news.terminal
                    for event in story.tell(news):
                        yield event
        except Trouble as trouble:
            yield trouble.failed
        finally:
            if not ended:
                await self._cancel(server, prediction.id)

    async def _follow(
        self, server: str, request: ProviderRequest, prediction: Prediction, waiting: Waiting[Prediction]
    ) -> AsyncGenerator[Prediction, None]:
        latest, heard, asked_again = prediction, trio.current_time(), False
        yield latest
        while not latest.terminal:
            news = await waiting.take(self._patience.silence)
            if news is not None:
                heard = trio.current_time()
            elif await self._may_be_over(server, heard):
                if asked_again:
                    raise Trouble(_lost())
                # Either it runs in one of several slots, and this tells how far it is; or its end was lost, and this
                # runs it once more.
                asked_again = True
                POSSIBLE_DUPLICATES.labels(provider=self.name).inc()
                news = await self._put(server, request)
            if news is not None and newer(news, latest):
                latest = news
                yield latest

    async def _may_be_over(self, server: str, heard: float) -> bool:
        """Whether the prediction may have ended unheard. Raises Trouble when the server has been ill for long."""
        match await self._health(server):
            case "BUSY":
                return False  # its slots are full, and ours is one of them
            case "READY":
                return True
            case _ if trio.current_time() - heard < self._patience.illness:
                return False
            case health:
                raise Trouble(_ill(health))

    # --- talking to the server --------------------------------------------------------------------------

    async def _put(self, server: str, request: ProviderRequest) -> Prediction:
        identifier = str(request.attempt_id)
        body = {
            "id": identifier,
            "input": request.input,
            "webhook": self._webhook(request.attempt_id),
            "webhook_events_filter": ["start", "output", "logs", "completed"],
        }
        answer = await self._ask("PUT", f"{server}/predictions/{identifier}", body, {"Prefer": "respond-async"})
        if answer.status_code not in (200, 202):
            raise Trouble(_refusal(answer))
        try:
            return read_prediction({"id": identifier, **answer.json()})
        except (ValueError, BadPrediction, TypeError) as problem:
            words = "The model server's answer cannot be read."
            raise Trouble(Failed(FailureKind.RETRYABLE, "bad_response", words, "It is tried again.")) from problem

    async def _health(self, server: str) -> str:
        try:
            answer = await self._ask("GET", f"{server}/health-check")
            return str(answer.json()["status"])
        except (Trouble, ValueError, KeyError, TypeError):
            return "UNREACHABLE"

    async def _cancel(self, server: str, identifier: str) -> None:
        with trio.CancelScope(shield=True), trio.move_on_after(self._patience.cancel):
            try:
                await self._ask("POST", f"{server}/predictions/{identifier}/cancel")
            except Trouble as trouble:
                log.warning("cancel_failed", prediction=identifier, why=trouble.failed.code)

    async def _ask(
        self, method: str, url: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        try:
            return await self._http.request(method, url, json=body, headers=headers)
        except httpx.HTTPError as problem:
            raise Trouble(_ill("UNREACHABLE")) from problem


def _refusal(answer: httpx.Response) -> Failed:
    match answer.status_code:
        case 409:
            words, action = "The model server has no free slot.", "It is tried again by itself."
            return Failed(FailureKind.UNAVAILABLE, "provider_busy", words, action, BUSY_AGAIN)
        case 503:
            return _starting()
        case 400 | 422:
            return Failed(FailureKind.INVALID_INPUT, "invalid_input", _details(answer), "Change the input.")
        case status:
            words = f"The model server answered {status}."
            return Failed(FailureKind.RETRYABLE, "provider_error", words, "It is tried again by itself.")


def _starting() -> Failed:
    words, action = "The model server is still starting.", "It is tried again by itself."
    return Failed(FailureKind.UNAVAILABLE, "provider_starting", words, action, STARTING_AGAIN)


def _details(answer: httpx.Response) -> str:
    """Which field is wrong, as the server says it."""
    try:
        found = [f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in answer.json()["detail"]]
    except (ValueError, KeyError, TypeError):
        found = []
    return "; ".join(found)[:500] or "The model server refused the input."


def _ill(health: str) -> Failed:
    words = f"The model server does not work at present ({health.lower()})."
    return Failed(FailureKind.RETRYABLE, "provider_unreachable", words, "It is tried again by itself.")


def _lost() -> Failed:
    words = "The model server said nothing of how the prediction ended."
    return Failed(FailureKind.RETRYABLE, "result_lost", words, "It is tried again by itself.")


def _unknown_server() -> Failed:
    words = "No model server of this name is known here."
    return Failed(FailureKind.PERMANENT, "no_provider", words, "Choose another model; tell the operator.")
