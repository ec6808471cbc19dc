"""One attempt at one Cog server: asking once, and following what was asked for. See `cog`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import httpx
import structlog
import trio
from attrs import define, evolve, field, frozen

from engine.ports import StorageDown
from engine.providers import cog_wire as wire
from engine.providers.cog_held import Broken, Refused, decoded, held
from engine.providers.cog_slots import Slots
from engine.providers.cog_wire import Health
from engine.providers.deliveries import Waiting
from engine.providers.metrics import POSSIBLE_DUPLICATES
from engine.providers.protocol import Accepted, Failed, Progress, ProviderEvent, ProviderRequest
from engine.providers.replicate import Story
from engine.providers.replicate_wire import BadPrediction, Prediction, newer

if TYPE_CHECKING:
    from engine.providers.cog import Cog

log = structlog.get_logger("elwift.cog")
THIS_MACHINE = frozenset({"127.0.0.1", "::1", "localhost", "0.0.0.0", "::"})
GLANCE = 1.0
"""Seconds for a look that nothing depends on."""
LINE = 8
"""How many stand in line for a slot here; whoever comes beyond them comes again later, and leaves the worker free."""


@frozen
class Patience:
    """Seconds: for one answer; of silence until the server's health is looked at; of bad health until the attempt
    fails; for the end of a prediction that is over, since the server repeats its webhook for up to 100 s after we were
    away, and for seconds otherwise; of silence when it cannot be told whether it is over, and when no word of it ever
    came; for a prediction; for a slot; for a cancellation."""

    answer: float = 15.0
    silence: float = 10.0
    illness: float = 30.0
    end: float = 15.0
    end_adopted: float = 110.0
    unclear: float = 120.0
    deaf: float = 30.0
    run: float = 1800.0
    slot: float = 10.0
    slot_again: float = 1.0
    cancel: float = 5.0


class Trouble(Exception):
    """The attempt cannot go on."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.code)
        self.failed = failed


class NoAnswer(Exception):
    """`asked`: the server may have got the request."""

    def __init__(self, asked: bool) -> None:
        super().__init__(asked)
        self.asked = asked


@define(eq=False)
class Visit:
    """One attempt at one server. `asked`: there may be a prediction of it there, which has not ended as far as we
    know. `word`: whether any news of it has come. `away`: since when, by trio's clock, the server has not been well."""

    cog: Cog
    slots: Slots
    request: ProviderRequest
    waiting: Waiting[Prediction]
    asked: bool = False
    held: bool = False
    repeats: int | None = None
    latest: Prediction = field(init=False)
    story: Story = field(factory=Story)
    began: float = field(factory=trio.current_time)
    heard: float = field(factory=trio.current_time)
    word: bool = False
    away: float | None = None
    over: float | None = None
    born: str | None = None

    def __attrs_post_init__(self) -> None:
        self.latest = Prediction(str(self.request.attempt_id), "starting")

    @property
    def _adopted(self) -> bool:
        """Whether an earlier life of this attempt had asked, or may have."""
        return self.request.external_id is not None or self.request.intent_at is not None

    @property
    def _trace(self) -> dict[str, str]:
        return {"traceparent": self.request.trace_parent} if self.request.trace_parent else {}

    @property
    def _url(self) -> str:
        return f"{self.slots.server.url}/predictions/{self.request.attempt_id}"

    async def events(self) -> AsyncGenerator[ProviderEvent, None]:
        """The attempt, to its end."""
        try:
            async with aclosing(self._begin()) as events:
                async for event in events:
                    yield event
            async with aclosing(self._hold() if self.held else self._follow()) as all_news:
                async for news in all_news:
                    self._note(news)
                    for event in wire.tell(self.story, news, self._adopted):
                        yield event
        except Trouble as trouble:
            yield trouble.failed

    def _note(self, news: Prediction) -> None:
        self.latest = news
        if news.terminal:
            self.asked = False
            self.slots.ended(self.request.attempt_id)

    async def leave(self) -> None:
        """Whatever may still run there is stopped, unless another life of this server will take it up."""
        self.slots.ended(self.request.attempt_id)
        if self.asked and (self.held or not self.cog.leaving()):
            await self._cancel()

    # --- beginning: asking once ------------------------------------------------------------------------

    async def _begin(self) -> AsyncGenerator[ProviderEvent, None]:
        """Has the server take the prediction, or finds it taken."""
        request = self.request
        if request.external_id is not None or (request.intent_at is not None and await self._heard_of()):
            self.asked = True
        else:
            if request.intent_at is not None:
                self._count_twice()
            if self.slots.lossy or self._deaf():
                self.held = True
                self.cog.holds(request.attempt_id, self.slots)
            async with aclosing(self._slot()) as waits:
                async for wait in waits:
                    yield wait
        self.slots.took(request.attempt_id)
        yield Accepted(str(request.attempt_id), self.latest.status, self.repeats)
        if not self.held and request.external_id is None:
            with trio.move_on_after(GLANCE):
                health = await self._health()
                self.slots.seen(health.status)
                self.born = health.born

    async def _slot(self) -> AsyncGenerator[ProviderEvent, None]:
        """Asks, and while there is no slot waits in line for one. Held predictions are asked for when they are held."""
        slots, patience = self.slots, self.cog.patience
        if not slots.waiting and await self._taken():
            return
        yield Progress(0.0, step="waiting", message="Waiting for a free slot of the model server.")
        limit = trio.current_time() + patience.slot
        if slots.waiting >= LINE or not await slots.stand(limit):
            raise Trouble(wire.busy(self.request))
        with slots.in_line():
            while not await self._taken():
                if trio.current_time() >= limit:
                    raise Trouble(wire.busy(self.request))
                await slots.freed(patience.slot_again)

    async def _taken(self) -> bool:
        """Whether the server takes it; False: no slot. Raises Trouble."""
        if self.slots.full:
            return False
        if self.held:
            return (await self._health()).status != "BUSY"
        try:
            return await self._put()
        except NoAnswer as silence:
            if not silence.asked:
                self.asked = False
                raise Trouble(self._down()) from silence
        if await self._heard_of():
            return True
        self._count_twice()
        try:
            return await self._put()  # of one that still runs it tells how far it is; one that is over runs once more
        except NoAnswer as silence:
            raise Trouble(self._down()) from silence

    async def _put(self) -> bool:
        body = self._body(["start", "output", "logs", "completed"])
        self.asked = True
        answer = await self._ask("PUT", self._url, body, {"Prefer": "respond-async", **self._trace})
        if answer.status_code in (200, 201, 202):
            self._read(answer)
            return True
        self.asked = _may_be_taken(answer.status_code)
        await self._refused(answer.status_code, decoded(answer))
        return False

    def _read(self, answer: httpx.Response) -> None:
        try:
            self.latest = wire.read_news(self.latest.id, decoded(answer))
        except BadPrediction as problem:
            raise Trouble(wire.unreadable()) from problem

    async def _refused(self, status: int, answer: Any) -> None:
        """Comes back when there is no slot. Raises Trouble."""
        if status not in (409, 503):
            raise Trouble(wire.refusal(status, answer))
        health = (await self._health()).status
        if health in wire.ILL or health == wire.UNREACHABLE:
            raise Trouble(self._down(health))
        if status == 503 or health == "STARTING":
            raise Trouble(wire.starting())

    def _down(self, health: str = wire.UNREACHABLE) -> Failed:
        """One of ours is being started again, unless that is in vain."""
        life = self.slots.server.life
        return wire.starting() if life is not None and not life.hopeless else wire.ill(health)

    async def _heard_of(self) -> bool:
        """Whether there is word of the prediction, so that the server must have taken it."""
        news = await self._stored() or await self.waiting.take(self.cog.patience.silence)
        if news is not None:
            self.latest = news
        return news is not None

    def _count_twice(self) -> None:
        """It is asked for although it may have been taken before."""
        self.repeats = 1
        POSSIBLE_DUPLICATES.labels(provider=self.cog.name).inc()

    def _deaf(self) -> bool:
        """Whether webhooks cannot reach us: to another machine our address means itself."""
        ours, theirs = urlsplit(self.cog.webhook(self.request.attempt_id)), urlsplit(self.slots.server.url)
        return ours.hostname in THIS_MACHINE and theirs.hostname not in THIS_MACHINE

    def _body(self, webhooks: list[str]) -> dict[str, Any]:
        request = self.request
        return {
            "id": str(request.attempt_id),
            "input": request.input,
            "webhook": self.cog.webhook(request.attempt_id),
            "webhook_events_filter": webhooks,
        }

    # --- following: by webhooks ------------------------------------------------------------------------

    async def _follow(self) -> AsyncGenerator[Prediction, None]:
        """The prediction as it grows, newest news first of all. Raises Trouble."""
        yield self.latest
        stored = await self._stored() if self.request.external_id is not None else None
        while not self.latest.terminal:
            news = stored or await self.waiting.take(self.cog.patience.silence) or await self._stored()
            stored = None
            if news is None:
                await self._look()
                continue
            self.heard, self.over, self.word = trio.current_time(), None, True
            self.slots.told(self.request.attempt_id, news.terminal)
            if newer(news, self.latest):
                yield news

    async def _look(self) -> None:
        """It has been silent: is it at work? Raises Trouble when it is not, and its result will not come any more."""
        now, patience = trio.current_time(), self.cog.patience
        if now - self.began > patience.run:
            raise Trouble(wire.too_long(patience.run))
        health = await self._health()
        if self._born_again(health):
            raise Trouble(wire.died())
        if health.status not in ("READY", "BUSY"):
            self.away = self.away or now
            if now - self.away >= patience.illness:
                self._leave(health.status)
            return
        self.away = None
        if await self._is_over(health.status, now):
            self.over = self.over or now
        if self.over is not None and now - self.over >= self._last_patience():
            await self._give_up()

    def _leave(self, health: str) -> NoReturn:
        """What is out of reach can be neither stopped nor followed, but it may be at work: the next attempt goes on
        with it."""
        in_doubt = health == wire.UNREACHABLE
        self.asked = self.asked and not in_doubt
        raise Trouble(evolve(self._down(health), in_doubt=in_doubt))

    def _born_again(self, health: Health) -> bool:
        self.born = self.born or health.born
        return health.status == "STARTING" or (health.born is not None and health.born != self.born)

    async def _is_over(self, health: str, now: float) -> bool:
        """As far as it can be known without asking for it again."""
        if self.slots.passed(self.request.attempt_id):
            return True
        if health == "BUSY":
            return False
        match self.slots.at_once:
            case 1:
                return True
            case None:
                patience = self.cog.patience
                return now - self.heard >= (patience.unclear if self.word else patience.deaf)
            case _:
                return not await self._at_work()

    def _last_patience(self) -> float:
        return self.cog.patience.end_adopted if self._adopted else self.cog.patience.end

    async def _at_work(self) -> bool:
        """Of a server with several slots, one of which is free: a request that no model can be run with, since its
        input is no object. A prediction that is at work is told of all the same."""
        try:
            answer = await self._ask("PUT", self._url, {"id": self.latest.id, "input": 0})
        except NoAnswer:
            return True
        if answer.status_code != 202:
            return False
        self._read(answer)
        return True

    async def _give_up(self) -> None:
        """The result is lost, if the server has nothing to cancel; else it was at work after all, and is no more."""
        stopped = await self._cancel()
        self.slots.lossy = True
        if stopped:
            self.slots.crowded = True
            raise Trouble(wire.too_long(trio.current_time() - self.began))
        self._count_twice()
        log.error("cog result lost", server=self.slots.server.name, webhooks_heard=self.word)
        raise Trouble(wire.lost())

    # --- following: by the connection ------------------------------------------------------------------

    async def _hold(self) -> AsyncGenerator[Prediction, None]:
        """The prediction as it grows, told by its connection. Raises Trouble."""
        limit, self.asked = trio.current_time() + self.cog.patience.run, True
        body = self._body(["completed"])
        async with aclosing(held(self.cog.http, self._url, body, self._trace)) as all_news:
            while not self.latest.terminal:
                with trio.move_on_at(limit) as scope:
                    news = await self._next(all_news)
                if scope.cancelled_caught:
                    raise Trouble(wire.too_long(self.cog.patience.run))
                yield news

    async def _next(self, all_news: AsyncGenerator[Prediction, None]) -> Prediction:
        try:
            return await anext(all_news)
        except Refused as refused:
            self.asked = _may_be_taken(refused.status)
            await self._refused(refused.status, refused.answer)
            raise Trouble(wire.busy(self.request)) from refused
        except (Broken, httpx.HTTPError, StopAsyncIteration) as problem:
            raise Trouble(wire.broken()) from problem
        except BadPrediction as problem:
            raise Trouble(wire.unreadable()) from problem

    # --- talking to the server --------------------------------------------------------------------------

    async def _stored(self) -> Prediction | None:
        try:
            return await self.cog.stored(self.request.attempt_id)
        except StorageDown:
            return None

    async def _health(self) -> Health:
        try:
            answer = await self._ask("GET", f"{self.slots.server.url}/health-check")
        except NoAnswer:
            return Health(wire.UNREACHABLE)
        return wire.read_health(decoded(answer))

    async def _cancel(self) -> bool:
        """Whether there was anything to cancel; it is not cancelled twice."""
        self.asked = False
        with trio.CancelScope(shield=True), trio.move_on_after(self.cog.patience.cancel):
            try:
                answer = await self._ask("POST", f"{self._url}/cancel")
            except NoAnswer:
                log.warning("cancel failed", server=self.slots.server.name, prediction=self.latest.id)
                return False
            return answer.status_code in (200, 202)
        log.warning("cancel failed", server=self.slots.server.name, prediction=self.latest.id)
        return False

    async def _ask(
        self, method: str, url: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """One request, whole answer. Raises NoAnswer."""
        with trio.move_on_after(self.cog.patience.answer):
            try:
                return await self.cog.http.request(method, url, json=body, headers=headers)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as problem:
                raise NoAnswer(asked=False) from problem
            except httpx.HTTPError as problem:
                raise NoAnswer(asked=True) from problem
        raise NoAnswer(asked=True)


def _may_be_taken(status: int) -> bool:
    """Whether a prediction may be at work although its request was answered so."""
    return status < 300 or (status >= 500 and status != 503)
