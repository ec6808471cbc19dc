"""The provider's side of an attempt: its events go into the feed, and its files to this machine's disk on the way.

Once the provider has said its last word, that is noted beside the files: from then on neither a crash of ours nor a
store that is down needs the provider again. A link that has expired is asked for anew, where the provider can.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog
import trio
from attrs import define, evolve, field

from engine.outputs import Cure, OutputRefused, Outputs
from engine.outputs.spool import Ending, Spooled
from engine.providers.protocol import (
    Accepted,
    Failed,
    FailureKind,
    Finished,
    OutputReady,
    Progress,
    Provider,
    ProviderEvent,
    ProviderRequest,
    TextDelta,
    UsageReported,
)
from engine.tasks.feed import Feed
from engine.tasks.patience import Patience

log = structlog.get_logger(__name__)

FRESH_LINKS = 3
"""How often a provider is asked for a fresh link within one attempt."""
CUT_SHORT = Failed(
    FailureKind.RETRYABLE, "incomplete", "The provider ended without a result.", "It is tried again by itself."
)


class _Stale(Exception):
    """The links of this telling have expired; another one has fresh ones."""


@define(eq=False)
class Harvest:
    """What one attempt gets from its provider. `over` is set after its last word; `unfetched` is why some files are not
    here by then."""

    outputs: Outputs
    provider: Provider
    request: ProviderRequest
    feed: Feed
    patience: Patience
    ending: Ending | None = None
    """What is there already, of an earlier life: then the provider is asked for fresh links at most."""
    files: dict[int, Spooled] = field(factory=dict)
    usage: UsageReported | None = None
    end: Finished | Failed | None = None
    noted: bool = False
    """Whether all that the provider said is on the disk."""
    unfetched: OutputRefused | None = None
    held: bool = False
    """Whether the attempt was set aside: its files are wanted again."""
    over: trio.Event = field(factory=trio.Event)
    over_at: float = -1.0
    _announced: list[OutputReady] = field(factory=list)
    _said: list[str] = field(factory=list)
    _tellings: int = 0

    @property
    def adoptable(self) -> bool:
        """Whether the provider can be asked for the result again, without making it again."""
        return self.request.external_id is not None and bool(getattr(self.provider, "adopts", False))

    @property
    def safe(self) -> bool:
        """Whether the result can be had again when this process forgets it."""
        return self.noted or self.adoptable

    async def run(self) -> None:
        """Reads to the end. Closing it early closes the provider's generator, which stops its work."""
        try:
            telling = told(self.ending) if self.ending else self.provider.run(self.request)
            while not await self._read(telling):
                telling = self.provider.run(self.request)
        except OutputRefused as refused:
            await self._finish(failure_of(refused))

    async def _read(self, telling: AsyncGenerator[ProviderEvent, None]) -> bool:
        """One telling; False when another is needed for its links."""
        self._tellings += 1
        async with aclosing(telling) as events:
            async for event in events:
                match event:
                    case TextDelta() if self._tellings == 1:
                        self._said.append(event.text)
                        await self.feed.put(event)
                    case TextDelta() | Progress() if self._tellings > 1:
                        continue
                    case OutputReady():
                        try:
                            await self._output(event)
                        except _Stale:
                            return False
                    case Finished() | Failed():
                        await self._finish(event)
                        return True
                    case _:
                        self._notice(event)
                        await self.feed.put(event)
        await self._finish(CUT_SHORT)
        return True

    def _notice(self, event: ProviderEvent) -> None:
        match event:
            case UsageReported():
                self.usage = event
            case Accepted(external_id=identifier):
                self.request = evolve(self.request, external_id=identifier)

    async def _output(self, event: OutputReady) -> None:
        """Brings a file here, and announces it. Raises OutputRefused or _Stale."""
        if event.index in self.files:
            return  # of an earlier telling
        bare = evolve(event, data=None, url=None) if _is_data(event) else event
        if (spooled := await self._fetched(event)) is not None:
            self.files[event.index] = spooled
        self._announced = [*(each for each in self._announced if each.index != event.index), bare]
        await self.feed.put(bare)

    async def _fetched(self, event: OutputReady) -> Spooled | None:
        """The file; None when it could not be had for longer than we wait, but may be later."""
        lasting = event.url is not None and not _is_data(event)
        if lasting and self.unfetched is not None:
            return None
        limit = trio.current_time() + (self.patience.in_place if lasting else self.patience.at_most)
        for pause in self.patience.pauses():
            try:
                return await self.outputs.fetch(self.provider.name, self.request.attempt_id, event)
            except OutputRefused as refused:
                if refused.cure is Cure.FRESH and self.adoptable and self._tellings <= FRESH_LINKS:
                    raise _Stale from refused
                if refused.cure is not Cure.WAIT:
                    raise
                last = refused
            log.warning("output not fetched", code=last.code, why=last.message)
            if trio.current_time() >= limit:
                break
            await trio.sleep(pause)
        if not lasting:
            raise evolve(last, cure=Cure.FRESH)
        self.unfetched = last
        return None

    async def _finish(self, end: Finished | Failed) -> None:
        if isinstance(end, Finished) and self._announced:
            ending = Ending(tuple(self._announced), "".join(self._said), self.usage, end)
            self.noted = await self.outputs.spool.end(self.request.attempt_id, ending)
        self.end, self.over_at = end, trio.current_time()
        self.over.set()
        await self.feed.put(end)


async def told(ending: Ending) -> AsyncGenerator[ProviderEvent, None]:
    """The events of a result that is here already."""
    if ending.text:
        yield TextDelta(ending.text)
    for output in ending.outputs:
        yield output
    if ending.usage is not None:
        yield ending.usage
    yield ending.finished


def failure_of(refused: OutputRefused) -> Failed:
    """What an output that cannot be kept means for the attempt: its prediction is paid, and no other one follows by
    itself. Where one might help, that is for who pays to decide."""
    kind = FailureKind.PERMANENT if refused.cure is Cure.NONE else FailureKind.LOST
    return Failed(kind, refused.code, refused.message, refused.action)


def _is_data(event: OutputReady) -> bool:
    return event.data is not None or (event.url is not None and event.url.startswith("data:"))
