"""What is left at Replicate when an attempt is over: stopped there, looked up, and put on the bill.

A cancelled task's prediction is stopped, and what it had cost by then is written down. A prediction that was made while
its answer was lost is found, stopped and counted. What is in doubt stands in the database, so a crash forgets nothing.
Every step may be repeated; a row is settled once. May import the provider and the prices.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, Protocol
from uuid import UUID

import structlog
import trio
from attrs import define, evolve, field, frozen

from engine.models.price import priced, together
from engine.otp import ChildSpec, Start, init_ack
from engine.ports import Model, StorageDown
from engine.providers.metrics import POSSIBLE_DUPLICATES
from engine.providers.protocol import ProviderRequest
from engine.providers.replicate import Replicate
from engine.providers.replicate_api import Lost, Refusal
from engine.providers.replicate_search import Wanted
from engine.providers.replicate_wire import Prediction, counts_of, usage_of
from engine.tasks.events import Usage

AT_ONCE = 50
log = structlog.get_logger("elwift.settlement")


@frozen
class Doubt:
    """An attempt that is over, and what is known of its prediction. Times are Unix seconds."""

    id: UUID
    task_id: UUID
    model_id: UUID
    external_id: str | None
    status: str
    input: dict[str, Any] = field(repr=False)
    began_at: float
    ended_at: float
    duplicates: int | None = None
    beside: list[str] = field(factory=list)
    """The provider's ids of others that were paid for it."""


@frozen
class Settled:
    """What turned out: `usage` of the attempt's own prediction, `more` of those `beside` it, as they were noted when
    this was found. `searched`: whether others were looked for, too, which is asked of an attempt that called twice."""

    external_id: str | None = None
    status: str | None = None
    metrics: dict[str, Any] | None = None
    usage: Usage = field(factory=Usage)
    searched: bool = False
    beside: list[str] = field(factory=list)
    more: Usage = field(factory=Usage)


class Ledger(Protocol):
    """The record of predictions. Every method raises StorageDown when the database is away."""

    async def in_doubt(self, provider: str, limit: int) -> Sequence[Doubt]:
        """Attempts that are over for good and not settled."""
        ...

    async def settle(self, attempt_id: UUID, settled: Settled) -> bool:
        """Writes down how it ended; False when there is no such attempt in doubt (any more), or there is more to it."""
        ...

    async def add(self, attempt_id: UUID, external_id: str, usage: Usage) -> bool:
        """One more prediction was paid for this attempt, over or not; whether that had not been reckoned with."""
        ...


class ModelTable(Protocol):
    """As much of the model registry as is needed for prices."""

    def find(self, name: str) -> Model | None: ...

    def get(self, model_id: UUID) -> Model | None: ...


@frozen
class Rhythm:
    """Seconds: between two rounds, and after an attempt's end until nothing more can come of a lost request."""

    round: float = 10.0
    surely_listed: float = 120.0
    too_young: float = 10.0
    """A prediction so young may be one that somebody is being told of at this moment."""


@define(eq=False)
class Settlement:
    """Made once, beside the provider; `spec` is its process."""

    provider: Replicate
    ledger: Ledger
    models: ModelTable
    rhythm: Rhythm = field(factory=Rhythm)

    def __attrs_post_init__(self) -> None:
        self.provider.left = self.left

    def spec(self) -> ChildSpec:
        return ChildSpec("settlement", Start.process(self._process, name="settlement"), shutdown=5.0)

    async def _process(self) -> None:
        init_ack()
        while True:
            await self.round()
            await trio.sleep(self.rhythm.round)

    # --- at once, when an attempt is cut short ---------------------------------------------------------

    async def left(self, request: ProviderRequest, identifier: str, beside: bool) -> None:
        """A prediction that nobody wants: it is stopped and put on the bill. What fails here the next round does.

        Raises Lost, Refusal, StorageDown.
        """
        last = await self.provider.ended(identifier)
        if last is not None:
            model = self.models.find(f"{request.model}:{request.version}") or self.models.find(request.model)
            await self._note(request.attempt_id, last, model, beside)

    async def _note(self, attempt_id: UUID, last: Prediction, model: Model | None, beside: bool) -> None:
        if not beside:
            await self.ledger.settle(attempt_id, evolve(_settled(last, model), beside=[]))
        elif await self.ledger.add(attempt_id, last.id, _usage(last, model)):
            POSSIBLE_DUPLICATES.labels(provider=self.provider.name).inc()

    # --- round by round, from the record ---------------------------------------------------------------

    async def round(self) -> None:
        """All that is in doubt, oldest first, as long as the service and the database can be reached."""
        try:
            for doubt in await self.ledger.in_doubt(self.provider.name, AT_ONCE):
                settled = await self._outcome(doubt)
                if settled is not None and await self.ledger.settle(doubt.id, settled):
                    log.info("settled", task_id=str(doubt.task_id), status=settled.status)
        except (Lost, Refusal, StorageDown) as problem:
            log.warning("settlement waits", why=str(problem))

    async def _outcome(self, doubt: Doubt) -> Settled | None:
        """What became of it; None while that cannot be said. Raises Lost, Refusal, StorageDown."""
        model = self.models.get(doubt.model_id)
        last = await self.provider.ended(doubt.external_id) if doubt.external_id else None
        paid = [await self.provider.ended(identifier) for identifier in doubt.beside]
        more = together([_usage(each, model) for each in paid if each is not None])
        settled = evolve(_settled(last, model), beside=doubt.beside, more=more)
        if doubt.external_id and doubt.duplicates is None:
            return settled
        if model is None:
            return evolve(settled, searched=True)  # nobody knows any more what to look for
        others = await self._others(doubt, model)
        if others is None:
            return None
        if doubt.external_id is None and doubt.status != "succeeded" and len(others) == 1:
            return evolve(_settled(others[0], model), beside=doubt.beside, more=more, searched=True)
        for other in others[doubt.external_id is None and doubt.status != "succeeded" :]:
            await self._note(doubt.id, other, model, beside=True)
        young = self.provider.api.clock() - doubt.ended_at < self.rhythm.surely_listed
        return None if others or young else evolve(settled, searched=True)

    async def _others(self, doubt: Doubt, model: Model) -> list[Prediction] | None:
        """Predictions that fit the attempt and that nobody has, stopped by now; None: one may be on its way."""
        webhooks = bool(self.provider.public_url)
        wanted = Wanted(doubt.id, model.slug, model.version, doubt.input, doubt.began_at, webhooks, doubt.external_id)
        search = self.provider.search
        if search.busy(wanted) or doubt.id in self.provider.tidying:
            return None
        found = []
        async with aclosing(search.all(wanted, older_than=self.rhythm.too_young)) as orphans:
            async for orphan in orphans:
                try:
                    last = await self.provider.ended(orphan.id)
                finally:
                    search.claimed.discard(orphan.id)
                found += [last] if last else []
        return found


def _settled(last: Prediction | None, model: Model | None) -> Settled:
    return Settled() if last is None else Settled(last.id, last.status, last.metrics, _usage(last, model))


def _usage(last: Prediction, model: Model | None) -> Usage:
    """What it used and cost; one that never started is not billed."""
    if last.status == "aborted":
        return Usage()
    return priced(usage_of(last.metrics) or Usage(), model.price if model else {}, counts_of(last))
