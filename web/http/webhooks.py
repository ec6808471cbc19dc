"""Where providers tell us of their predictions: judged, stored, answered, and then acted on.

A delivery is answered 2xx only when it is in the database; one for an attempt that nobody here runs has no other effect
than to be on record. A task's end never depends on it: whoever runs the attempt also asks the provider.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from uuid import UUID

import structlog
import trio
from prometheus_client import Counter

from engine.errors import UserError
from engine.providers.replicate import Replicate
from engine.providers.replicate_wire import BadPrediction, Prediction, read_body
from engine.providers.webhooks import Verdict, verify
from persistence.webhooks import Delivery, WebhookStore
from web.http.exchange import Answer, Ask
from web.http.house import House
from web.http.route import Route

EVENTS = Counter("elwift_webhook_events_total", "Webhook deliveries, by what became of them", ["result"])
NEW, DUPLICATE = EVENTS.labels("new"), EVENTS.labels("duplicate")
PATH = "/webhooks/replicate"
MOST = 32 * 1024 * 1024
"""Bytes of a delivery: it carries all logs and outputs, and is given up after a minute."""
LONG = 256 * 1024
"""Bytes from which on a delivery is judged and read beside the loop."""
EVENT_TYPES = {"starting": "start", "processing": "output"}
log = structlog.get_logger("elwift.webhooks")


class ReplicateWebhooks:
    """The route. `secrets` are the account's signing secrets; none: every delivery is refused."""

    def __init__(self, provider: Replicate, store: WebhookStore, secrets: Sequence[str]) -> None:
        self._provider = provider
        self._store = store
        self._secrets = secrets

    @property
    def route(self) -> Route:
        return Route(
            "POST",
            PATH,
            self.deliver,
            "Replicate tells of a prediction",
            status=204,
            refusals=("bad_signature", "stale_delivery", "invalid_json", "invalid_request", "storage_down"),
            open=True,
            direct=True,
            most=self.most,
            tag="webhooks",
        )

    def most(self, query: Mapping[str, str]) -> int | None:
        """Only for an attempt that is followed here is a long one held until its signature can be judged."""
        attempt = _uuid(query.get("attempt"))
        return MOST if attempt is not None and self._provider.deliveries.awaits(attempt) else None

    async def deliver(self, house: House, ask: Ask) -> Answer:
        """Judges, stores and passes on one delivery."""
        if len(ask.body) < LONG:
            prediction = self._genuine(ask)
        else:
            prediction = await trio.to_thread.run_sync(self._genuine, ask)
        task_id, attempt_id = _uuid(ask.query.get("task")), _uuid(ask.query.get("attempt"))
        delivery = _delivery(ask.headers["webhook-id"], prediction, task_id)
        new = await self._store.add(delivery)
        (NEW if new else DUPLICATE).inc()
        if attempt_id is not None and not self._provider.deliveries.deliver(attempt_id, prediction):
            log.info("delivery_for_nobody", prediction=prediction.id, status=prediction.status)
        self._store.done(delivery, self._provider.name, attempt_id)
        return Answer(status=204)

    def _genuine(self, ask: Ask) -> Prediction:
        self._judge(ask)
        return _read(ask.body)

    def _judge(self, ask: Ask) -> None:
        verdict = verify(self._secrets, ask.headers, ask.body, time.time())
        if verdict is Verdict.GENUINE:
            return
        EVENTS.labels(verdict.value).inc()
        if verdict is Verdict.STALE:
            raise UserError("stale_delivery", "The delivery is older than five minutes.")
        raise UserError("bad_signature", "The signature is missing or not ours. Check the webhook's signing secret.")


def _read(body: bytes) -> Prediction:
    try:
        return read_body(body)
    except BadPrediction as problem:
        if not problem.is_json:
            raise UserError("invalid_json", "The body is not JSON.") from problem
        raise UserError("invalid_request", "The body is not a prediction.") from problem


def _delivery(identifier: str, prediction: Prediction, task_id: UUID | None) -> Delivery:
    """What is kept: the prediction's end without its logs, which the prediction's own row has."""
    unfinished = EVENT_TYPES.get(prediction.status, "output")
    ended = "completed" if prediction.status == "succeeded" else "failed"
    event = ended if prediction.terminal else unfinished
    payload = {"id": prediction.id, "status": prediction.status, "error": prediction.error and prediction.error[:2000]}
    return Delivery(identifier, task_id, prediction.id, event, payload)


def _uuid(text: str | None) -> UUID | None:
    try:
        return UUID(text or "")
    except ValueError:
        return None
