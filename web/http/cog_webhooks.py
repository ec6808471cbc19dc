"""Where Cog servers tell of predictions. They sign nothing, so the URL that they were given carries the proof.

News is passed on at once to whoever follows the prediction here. Its end is stored with its output before it is
answered 2xx, for the server forgets it then: whoever else takes the attempt up, after a crash or on another server,
finds it in the record. Until it is stored, the server is asked to come again.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from hmac import compare_digest
from typing import Any
from uuid import UUID

import msgspec
import structlog

from engine.errors import UserError
from engine.providers.cog import Cog
from engine.providers.cog_wire import read_news
from engine.providers.replicate_wire import BadPrediction, Prediction
from engine.providers.webhooks import Verdict
from persistence.webhooks import Delivery, WebhookStore
from web.http.exchange import Answer, Ask
from web.http.house import House
from web.http.route import Route
from web.http.webhooks import DUPLICATE, EVENTS, NEW

PATH = "/webhooks/cog"
MOST = 64 * 1024 * 1024
"""Bytes of a delivery that carries our proof: outputs come as data URLs in it."""
MOST_KEPT = 16 * 1024 * 1024
"""Bytes of a delivery that is stored with its output; above, it is only for those who follow it here."""
log = structlog.get_logger("elwift.webhooks")


class CogWebhooks:
    """The route. `key` makes the proofs."""

    def __init__(self, provider: Cog, store: WebhookStore, key: bytes) -> None:
        self._provider = provider
        self._store = store
        self._key = key

    @property
    def route(self) -> Route:
        return Route(
            "POST",
            PATH,
            self.deliver,
            "A Cog server tells of a prediction",
            status=204,
            refusals=("bad_signature", "invalid_json", "storage_down"),
            open=True,
            direct=True,
            most=self.most,
            tag="webhooks",
        )

    def most(self, query: Mapping[str, str]) -> int | None:
        """How large a delivery may be; a stranger's as large as others' requests."""
        return None if self._proven(query) is None else MOST

    async def deliver(self, house: House, ask: Ask) -> Answer:
        """Passes one delivery on, and keeps the last one of a prediction."""
        attempt_id = self._proven(ask.query)
        if attempt_id is None:
            EVENTS.labels(Verdict.BAD_SIGNATURE.value).inc()
            raise UserError("bad_signature", "This address was not given out by this server.")
        prediction = _read(attempt_id, ask.body)
        if prediction is not None:
            self._provider.deliver(attempt_id, prediction)
            if prediction.terminal:
                await self._keep(attempt_id, prediction, whole=len(ask.body) <= MOST_KEPT)
        return Answer(status=204)

    def _proven(self, query: Mapping[str, str]) -> UUID | None:
        """The attempt that the address was given out for."""
        try:
            attempt_id = UUID(query.get("attempt", ""))
        except ValueError:
            return None
        given = query.get("signature", "").encode("ascii", "replace")
        return attempt_id if compare_digest(proof(self._key, attempt_id).encode(), given) else None

    async def _keep(self, attempt_id: UUID, prediction: Prediction, whole: bool) -> None:
        """The first end of a prediction is the one that stays on record."""
        event = "completed" if prediction.status == "succeeded" else "failed"
        delivery = Delivery(_name(attempt_id), None, prediction.id, event, _payload(prediction, whole))
        new = await self._store.add(delivery)
        (NEW if new else DUPLICATE).inc()
        self._store.done(delivery, self._provider.name, attempt_id)


async def stored(store: WebhookStore, attempt_id: UUID) -> Prediction | None:
    """How an attempt's prediction ended, if that is on record. Raises StorageDown."""
    payload = await store.stored(_name(attempt_id))
    if payload is None or not payload.get("whole"):
        return None
    return read_news(str(attempt_id), payload)


def proof(key: bytes, attempt_id: UUID) -> str:
    """What an attempt's webhook URL carries to show that it is one of ours."""
    return hmac.new(key, b"webhook:" + attempt_id.bytes, hashlib.sha256).hexdigest()


def _name(attempt_id: UUID) -> str:
    return f"cog:{attempt_id}"


def _read(attempt_id: UUID, body: bytes) -> Prediction | None:
    """The news, None when it is of a kind that we do not know: to be told again would help nobody."""
    try:
        return read_news(str(attempt_id), msgspec.json.decode(body))
    except msgspec.MsgspecError as problem:
        raise UserError("invalid_json", "The body is not JSON.") from problem
    except BadPrediction:
        log.warning("unknown news of a cog prediction", attempt=str(attempt_id))
        return None


def _payload(prediction: Prediction, whole: bool) -> dict[str, Any]:
    """What is kept: the end without its logs. `whole` says whether the output is there."""
    kept = {"id": prediction.id, "status": prediction.status, "error": prediction.error, "whole": whole}
    return {**kept, "output": prediction.output, "metrics": prediction.metrics} if whole else kept
