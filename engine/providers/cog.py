"""Cog model servers: predictions under ids of ours, followed by their webhooks, stopped with the task.

A Cog server keeps no history: a prediction that is over is forgotten, and asked for again it runs again, at its price.
So an attempt asks once, and everything else is found out by looks that start nothing: webhooks, the deliveries on
record, the server's health. What they leave open is settled by a cancellation, which says whether there was anything
to cancel. A result that is lost for good is said to be; the next attempts at that server hold its connection
(`cog_held`). Source: Cog's page "HTTP API".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from uuid import UUID

import httpx

from engine.providers import cog_wire as wire
from engine.providers.cog_slots import Slots
from engine.providers.cog_visit import Patience, Visit
from engine.providers.cog_wire import Server
from engine.providers.deliveries import Deliveries
from engine.providers.protocol import ProviderEvent, ProviderRequest
from engine.providers.replicate_wire import Prediction, newer

__all__ = ["Cog", "Patience"]

HELD_KNOWN = 1000
"""Attempts of which it is known that their connections were held: a webhook for one of them is news of its server."""


async def _nothing_stored(_: UUID) -> Prediction | None:
    return None


class Cog:
    """The provider. Models have a server's name as their slug.

    `webhook`: the URL at which an attempt's deliveries reach us, told when it is asked for, since a port may be chosen
    late. `stored`: the end of an attempt's prediction, if its delivery is on record; may raise StorageDown. `leaving`:
    whether this process is ending, and a prediction is to be left at work for whoever takes the attempt up.
    """

    name = "cog"
    adopts = True

    def __init__(
        self,
        http: httpx.AsyncClient,
        servers: Iterable[Server],
        webhook: Callable[[UUID], str],
        patience: Patience | None = None,
        stored: Callable[[UUID], Awaitable[Prediction | None]] = _nothing_stored,
        leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        self.http = http
        self.webhook = webhook
        self.patience = patience or Patience()
        self.stored = stored
        self.leaving = leaving
        self.deliveries: Deliveries[Prediction] = Deliveries(newer)
        self._slots = {server.name: Slots(server) for server in servers}
        self._held: OrderedDict[UUID, Slots] = OrderedDict()

    def deliver(self, attempt_id: UUID, prediction: Prediction) -> None:
        """A webhook has come. The end of a prediction that was held shows that its server's webhooks do reach us."""
        slots = self._held.pop(attempt_id, None) if prediction.terminal else None
        if slots is not None:
            slots.lossy = False
        self.deliveries.deliver(attempt_id, prediction)

    def holds(self, attempt_id: UUID, slots: Slots) -> None:
        """The attempt's connection is held, since webhooks of this server were lost."""
        self._held[attempt_id] = slots
        while len(self._held) > HELD_KNOWN:
            self._held.popitem(last=False)

    async def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """One attempt; closing it early cancels the prediction."""
        slots = self._slots.get(request.slug)
        if slots is None:
            yield wire.unknown_server()
            return
        with self.deliveries.waiting(request.attempt_id) as waiting:
            visit = Visit(self, slots, request, waiting)
            try:
                async with aclosing(visit.events()) as events:
                    async for event in events:
                        yield event
            finally:
                await visit.leave()
