"""Finding a prediction whose id was never heard: by the account's listing, and without taking somebody else's.

Replicate has no idempotency key. What ties a prediction to its attempt is the webhook's URL, where the answer shows it;
else the same model, the very same input, the time, and that no attempt on record has it. May import the API and its
words.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

from attrs import define, field, frozen

from engine.providers.protocol import ProviderRequest
from engine.providers.replicate_api import Api
from engine.providers.replicate_wire import BadPrediction, Prediction, is_pinned, read_prediction

MARGIN, BLIND_MARGIN = 5.0, 120.0
"""Seconds by which the service's clock may be off: when it said the time, and when it never did."""


@frozen
class Wanted:
    """What is looked for: an attempt's prediction, made at `since` or later (Unix seconds, our clock).

    `webhooks`: it was asked for with an address of ours.
    """

    attempt: UUID
    slug: str
    version: str
    input: dict[str, Any] = field(repr=False)
    since: float = 0.0
    webhooks: bool = False
    but: str | None = None
    """The one that is known, when others are looked for."""

    @classmethod
    def of(cls, request: ProviderRequest, since: float, webhooks: bool) -> Wanted:
        return cls(request.attempt_id, request.slug, request.version, request.input, since, webhooks)


@define(eq=False)
class Search:
    """`known`: whether a prediction's id stands in our records, as that of another attempt than the one that is given;
    it may raise StorageDown."""

    api: Api
    known: Callable[[str, UUID], Awaitable[bool]]
    claimed: set[str] = field(factory=set)
    """Predictions that attempts of this process follow."""
    _asked: list[Wanted] = field(factory=list)

    @contextmanager
    def asking(self, wanted: Wanted) -> Iterator[None]:
        """While a prediction is being asked for here, nobody may take one like it for an orphan."""
        self._asked.append(wanted)
        try:
            yield
        finally:
            self._asked.remove(wanted)

    def busy(self, wanted: Wanted) -> bool:
        """Whether one like it is being asked for at this moment."""
        return any((each.slug, each.input) == (wanted.slug, wanted.input) for each in self._asked)

    async def first(self, wanted: Wanted) -> Prediction | None:
        """The prediction, claimed for whoever asks. Raises Lost, Refusal, StorageDown: it is not known."""
        async with aclosing(self.all(wanted)) as found:
            async for prediction in found:
                return prediction
        return None

    async def all(self, wanted: Wanted, older_than: float = 0.0) -> AsyncGenerator[Prediction, None]:
        """Every prediction that fits and that nobody else has; each is claimed. `older_than`: its age in seconds."""
        async with aclosing(self.api.listing()) as pages:
            async for page in pages:
                recent = [item for item in page if isinstance(item, dict) and self._is_recent(item, wanted.since)]
                for item in recent:
                    if older_than and self._age(item) < older_than:
                        continue
                    if (prediction := await self._fitting(item, wanted)) is not None:
                        yield prediction
                if page and not recent:
                    return

    async def _fitting(self, item: dict[str, Any], wanted: Wanted) -> Prediction | None:
        try:
            brief = read_prediction(item)
        except BadPrediction:
            return None
        if brief.id in self.claimed or brief.id == wanted.but or not may_be(brief, wanted):
            return None
        if "input" in item and not is_it(brief, wanted):
            return None
        if await self.known(brief.id, wanted.attempt):
            return None
        whole = await self.api.get(brief.id)  # a listing may leave out more than the input
        if brief.id in self.claimed or not is_it(whole, wanted):
            return None
        self.claimed.add(brief.id)
        return whole

    def _is_recent(self, item: dict[str, Any], since: float) -> bool:
        created = _time(item.get("created_at"))
        margin = BLIND_MARGIN if self.api.ahead is None else MARGIN
        return created is None or created >= since + (self.api.ahead or 0.0) - margin

    def _age(self, item: dict[str, Any]) -> float:
        created = _time(item.get("created_at"))
        return 0.0 if created is None else self.api.clock() + (self.api.ahead or 0.0) - created


def may_be(prediction: Prediction, wanted: Wanted) -> bool:
    """What can be told without the input: the model, and the address that the prediction was given."""
    if (attempt := attempt_in(prediction.webhook)) is not None:
        return attempt == str(wanted.attempt)
    if prediction.webhook and wanted.webhooks:
        return False
    if is_pinned(wanted.version) and is_pinned(prediction.version):
        return prediction.version == wanted.version
    slug = wanted.slug.strip("/")
    if slug.startswith("deployments/"):
        return prediction.deployment in (None, slug.removeprefix("deployments/"))
    return prediction.model in (None, slug)


def is_it(prediction: Prediction, wanted: Wanted) -> bool:
    """Whether this is the prediction; by the address it was given, or by its input."""
    if not may_be(prediction, wanted):
        return False
    return attempt_in(prediction.webhook) == str(wanted.attempt) or same_input(wanted.input, prediction.input)


def same_input(ours: dict[str, Any], theirs: Any) -> bool:
    """The very same input; a file that we sent as a data URL may have become another address there."""
    if not isinstance(theirs, dict) or ours.keys() != theirs.keys():
        return False
    return all(theirs[name] == value or _is_data(value) for name, value in ours.items())


def _is_data(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("data:")


def attempt_in(webhook: str | None) -> str | None:
    """The attempt that a webhook's URL of ours names."""
    try:
        return parse_qs(urlsplit(webhook or "").query).get("attempt", [None])[0]
    except ValueError:
        return None


def _time(text: Any) -> float | None:
    try:
        at = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
