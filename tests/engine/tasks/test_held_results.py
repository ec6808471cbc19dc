"""A finished prediction is paid for: whatever fails between it and the store, nobody buys it a second time."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio
from attrs import define, evolve

from engine.outputs import Cure, Limits, OutputRefused, Outputs
from engine.outputs.errors import unavailable
from engine.outputs.fetch import Fetcher, Policy, Source
from engine.outputs.spool import Ending
from engine.ports import PredictionChange, StoredObject, StoreFailed
from engine.providers.protocol import (
    Accepted,
    Failed,
    FailureKind,
    Finished,
    OutputReady,
    ProviderEvent,
    ProviderRequest,
    TextDelta,
    UsageReported,
)
from engine.tasks import events as ev
from engine.tasks import lookup
from engine.tasks.events import Usage
from engine.tasks.patience import Patience
from engine.tasks.resume import HELD_FOR, Begin, Lost, Replay, Wait, plan
from engine.tasks.spent import clear_leftovers, clear_spent
from engine.tasks.state import Status
from persistence.artifacts import FolderStore, LinkSigner
from tests.engine.fakes import House, MemoryStorage, house
from tests.engine.tasks.watching import Watcher, begin_watched, over

SOON = Patience(first=0.001, longest=0.002, in_place=0.01, aside=0.001, aside_longest=0.01)
USED = Usage(predict_seconds=2.0, cost=0.25)
URL = "https://files.example/out.png?signature=1"


@define
class Painter:
    """A provider whose every run costs money, but for those that adopt. `outputs` is what it hands over."""

    outputs: tuple[OutputReady, ...] = (OutputReady(0, data=b"a picture"),)
    adopts: bool = False
    text: str = ""
    name: str = "simulate"
    bought: int = 0
    adopted: int = 0

    async def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        await trio.lowlevel.checkpoint()
        if self.adopts and request.external_id:
            self.adopted += 1
        else:
            self.bought += 1
        yield Accepted(f"pred-{self.bought}")
        if self.text:
            yield TextDelta(self.text)
        yield UsageReported(USED)
        for output in self.outputs:
            yield output
        yield Finished("succeeded", {"predict_time": 2.0})


class Store(FolderStore):
    """A folder that refuses to store as often as is said."""

    refusals: float = 0
    puts: list[str]

    def __init__(self, root: Path) -> None:
        super().__init__(root, LinkSigner(b"k" * 32))
        self.puts = []

    async def put(self, name: str, source: Path, content_type: str) -> StoredObject:
        self.puts.append(name)
        if self.refusals > 0:
            self.refusals -= 1
            raise StoreFailed("503 from the store")
        return await super().put(name, source, content_type)


class Server(Fetcher):
    """A provider's file server, without the network. `answers` are met one after the other, the last one for good."""

    def __init__(self, *answers: bytes | OutputRefused) -> None:
        super().__init__(Policy())
        self.answers = list(answers)
        self.asked: list[str] = []

    @asynccontextmanager
    async def open(self, event: OutputReady) -> AsyncIterator[Source]:
        assert event.url
        self.asked.append(event.url)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, OutputRefused):
            raise answer

        async def chunks() -> AsyncIterator[bytes]:
            yield answer

        yield Source(chunks())


STALE = OutputRefused("output_expired", "The link has expired.", "Run it again.", Cure.FRESH)


@asynccontextmanager
async def studio(
    tmp_path: Path,
    provider: Painter,
    server: Server | None = None,
    patience: Patience = SOON,
    storage: MemoryStorage | None = None,
    **limits: Any,
) -> AsyncIterator[tuple[House, Store]]:
    store = Store(tmp_path / "kept")
    fetchers = {"simulate": server} if server else {}
    outputs = Outputs(store, fetchers, tmp_path / "spool", Limits(**limits))  # type: ignore[arg-type]
    async with house({"simulate": provider}, outputs=outputs, patience=patience, storage=storage) as h:
        yield h, store
    await outputs.aclose()


def kept(tmp_path: Path) -> dict[str, bytes]:
    files = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    return {str(path.relative_to(tmp_path / "kept")): path.read_bytes() for path in files}


async def end_of(h: House, accepted: Any, watcher: Watcher) -> Status:
    await watcher.final()
    await over(h.runtime, accepted.task.id)
    task = await h.storage.load(accepted.task.id)
    assert task
    return task.status


# --- the store fails ----------------------------------------------------------------------------------------


async def test_a_store_that_is_back_soon_is_waited_for_in_place(tmp_path: Path) -> None:
    provider = Painter()
    async with studio(tmp_path, provider, patience=evolve(SOON, in_place=30.0)) as (h, store):
        store.refusals = 5
        accepted, watcher = await begin_watched(h)
        assert await end_of(h, accepted, watcher) is Status.COMPLETED
        assert watcher.events == [ev.Started, ev.OutputStored, ev.Completed]
        assert provider.bought == 1
        assert len(store.puts) == 6


@pytest.mark.parametrize("text", ["", "a caption"])
async def test_a_store_that_is_away_for_longer_sets_the_attempt_aside_and_nothing_is_bought_again(
    tmp_path: Path, text: str
) -> None:
    provider = Painter((OutputReady(0, data=b"one"), OutputReady(1, data=b"two")), text=text)
    async with studio(tmp_path, provider) as (h, store):
        store.refusals = 60
        accepted, watcher = await begin_watched(h)
        assert await end_of(h, accepted, watcher) is Status.COMPLETED
        failures = watcher.bodies(ev.AttemptFailed)
        assert len(failures) > 1
        assert {(failed.code, failed.resumes) for failed in failures} == {("store_failed", True)}
        assert provider.bought == 1
        task = h.storage.tasks[accepted.task.id]
        assert [output.index for output in task.outputs] == [0, 1]
        assert task.text == text
        assert len(set(store.puts)) == 2, "the names stay the same from attempt to attempt"
        assert sorted(kept(tmp_path).values()) == [b"one", b"two"]
        (prediction,) = h.storage.predictions.values()
        assert (prediction.status, prediction.usage, prediction.held_by) == ("succeeded", USED, "local")
        assert prediction.completed_at is not None


async def test_what_waits_longer_than_all_patience_is_given_up_and_says_that_it_was_paid(tmp_path: Path) -> None:
    provider = Painter()
    async with studio(tmp_path, provider, patience=evolve(SOON, all_in_all=0.05)) as (h, store):
        store.refusals = float("inf")
        accepted, watcher = await begin_watched(h)
        assert await end_of(h, accepted, watcher) is Status.FAILED
        (failed,) = watcher.bodies(ev.Failed)
        assert (failed.code, failed.retryable) == ("store_failed", True)
        assert provider.bought == 1


async def test_a_task_that_is_cancelled_while_it_waits_for_the_store_is_cancelled(tmp_path: Path) -> None:
    provider = Painter()
    async with studio(tmp_path, provider, patience=evolve(SOON, in_place=60.0)) as (h, store):
        store.refusals = float("inf")
        accepted, watcher = await begin_watched(h)
        with trio.fail_after(10):
            while not store.puts:  # noqa: ASYNC110 - the store tells nobody
                await trio.sleep(0.001)
        assert (await lookup.cancel(h.runtime, accepted.task.id)).status is Status.CANCELLED
        assert await end_of(h, accepted, watcher) is Status.CANCELLED
        with trio.fail_after(10):
            while not h.runtime.outputs.spent:  # noqa: ASYNC110 - a table tells nobody
                await trio.sleep(0.001)
        await clear_spent(h.runtime)
        assert not list((tmp_path / "spool").iterdir())


async def test_a_budget_counts_a_result_that_waited_once(tmp_path: Path) -> None:
    provider = Painter()
    async with studio(tmp_path, provider) as (h, store):
        h.runtime.budgets.daily = 100.0
        store.refusals = 40
        accepted, watcher = await begin_watched(h)
        assert await end_of(h, accepted, watcher) is Status.COMPLETED
        assert watcher.bodies(ev.AttemptFailed)
        assert h.runtime.budgets._account("ada").added == 0.25


# --- the file server fails ------------------------------------------------------------------------------------


async def test_a_file_server_that_fails_is_asked_again_and_then_the_prediction_is_taken_up(tmp_path: Path) -> None:
    provider = Painter((OutputReady(0, url=URL),), adopts=True)
    server = Server(*[unavailable("503")] * 30, b"a picture")
    async with studio(tmp_path, provider, server) as (h, _):
        accepted, watcher = await begin_watched(h)
        assert await end_of(h, accepted, watcher) is Status.COMPLETED
        assert provider.bought == 1
        assert {failed.code for failed in watcher.bodies(ev.AttemptFailed)} == {"output_unavailable"}
        assert list(kept(tmp_path).values()) == [b"a picture"]


async def test_an_expired_link_is_asked_for_anew_within_the_attempt(tmp_path: Path) -> None:
    provider = Painter((OutputReady(0, url=URL),), adopts=True)
    async with studio(tmp_path, provider, Server(STALE, b"a picture")) as (h, _):
        accepted, watcher = await begin_watched(h)
        assert await end_of(h, accepted, watcher) is Status.COMPLETED
        assert (provider.bought, provider.adopted) == (1, 1)
        assert watcher.events == [ev.Started, ev.OutputStored, ev.Completed]


@pytest.mark.parametrize("adopts", [True, False])
async def test_a_link_that_stays_expired_fails_the_task_and_does_not_buy_another(tmp_path: Path, adopts: bool) -> None:
    provider = Painter((OutputReady(0, url=URL),), adopts=adopts)
    async with studio(tmp_path, provider, Server(STALE)) as (h, _):
        accepted, watcher = await begin_watched(h)
        assert await end_of(h, accepted, watcher) is Status.FAILED
        (failed,) = watcher.bodies(ev.Failed)
        assert (failed.code, failed.retryable) == ("output_expired", True)
        assert provider.bought == 1
        assert provider.adopted == (3 if adopts else 0)


async def test_a_result_that_is_no_good_is_made_again_only_if_the_user_wants_it(tmp_path: Path) -> None:
    provider = Painter((OutputReady(0, data=b""),))
    async with studio(tmp_path, provider) as (h, _):
        accepted, watcher = await begin_watched(h)
        assert await end_of(h, accepted, watcher) is Status.FAILED
        (failed,) = watcher.bodies(ev.Failed)
        assert (failed.code, failed.retryable, provider.bought) == ("empty_output", True, 1)
        await lookup.retry(h.runtime, accepted.task.id)
        await over(h.runtime, accepted.task.id)
        assert provider.bought == 2


# --- this disk fails -------------------------------------------------------------------------------------------


async def test_a_full_disk_is_waited_for_and_the_data_are_not_bought_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, fsync = [True] * 5, os.fsync

    def sync(handle: int) -> None:
        if full:
            full.pop()
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", sync)
    provider = Painter()
    async with studio(tmp_path, provider) as (h, _):
        accepted, watcher = await begin_watched(h)
        assert await end_of(h, accepted, watcher) is Status.COMPLETED
        assert provider.bought == 1
        assert watcher.events == [ev.Started, ev.OutputStored, ev.Completed]


# --- this process fails -----------------------------------------------------------------------------------------


async def unfinished(tmp_path: Path, provider: Painter, server: Server | None = None) -> tuple[MemoryStorage, UUID]:
    """What a server leaves that is killed while it stores the first of a prediction's two outputs."""
    async with studio(tmp_path, provider, server, patience=evolve(SOON, in_place=60.0)) as (h, store):
        store.refusals = float("inf")
        accepted, _ = await begin_watched(h)
        with trio.fail_after(10):
            while not list((tmp_path / "spool").glob("*/end")):  # noqa: ASYNC110 - a folder tells nobody
                await trio.sleep(0.001)
        return h.storage, accepted.task.id


TWO = (OutputReady(0, data=b"one"), OutputReady(1, data=b"two"))


async def resumed(
    tmp_path: Path, storage: MemoryStorage, task_id: UUID, provider: Painter, server: Server | None = None
) -> tuple[Store, Status]:
    """The task's end on a server that starts over the same database."""
    async with studio(tmp_path, provider, server, storage=storage) as (h, store):
        assert await lookup.ensure(h.runtime, task_id)
        job = storage.jobs[storage.tasks[task_id].job_id or uuid4()]
        h.queue._jobs[job.id] = (job, 1)
        h.queue._enqueue(job, 1, 0.0)
        await over(h.runtime, task_id)
        return store, storage.tasks[task_id].status


async def test_after_a_crash_the_result_is_taken_from_the_spool_without_the_provider(tmp_path: Path) -> None:
    provider = Painter(TWO)
    storage, task_id = await unfinished(tmp_path, provider)
    store, status = await resumed(tmp_path, storage, task_id, provider)
    assert (status, provider.bought) == (Status.COMPLETED, 1)
    assert [name.split("/")[1] for name in store.puts] == ["1", "1"], "the number of the attempt that bought it"
    assert storage.tasks[task_id].attempt == 2
    assert sorted(kept(tmp_path).values()) == [b"one", b"two"]
    assert [prediction.attempt for prediction in storage.predictions.values()] == [1]


async def test_a_file_of_the_spool_that_was_damaged_is_not_taken_for_the_result(tmp_path: Path) -> None:
    provider = Painter(TWO)
    storage, task_id = await unfinished(tmp_path, provider)
    (one,) = (tmp_path / "spool").glob("*/0")
    one.write_bytes(b"two")
    _, status = await resumed(tmp_path, storage, task_id, provider)
    assert status is Status.COMPLETED
    assert provider.bought == 2, "the provider was at work when the server died, as far as anybody knows"
    assert sorted(kept(tmp_path).values()) == [b"one", b"two"]


async def test_data_of_a_run_that_was_repeated_are_not_mixed_with_those_of_the_first(tmp_path: Path) -> None:
    provider = Painter(TWO)
    storage, task_id = await unfinished(tmp_path, provider)
    for end in (tmp_path / "spool").glob("*/end"):
        end.unlink()
    provider.outputs = (OutputReady(0, data=b"three"), OutputReady(1, data=b"four"))
    _, status = await resumed(tmp_path, storage, task_id, provider)
    assert (status, provider.bought) == (Status.COMPLETED, 2)
    assert sorted(kept(tmp_path).values()) == [b"four", b"three"]


async def test_a_file_that_was_fetched_before_the_crash_is_not_fetched_again(tmp_path: Path) -> None:
    provider = Painter((OutputReady(0, url=URL),), adopts=True)
    storage, task_id = await unfinished(tmp_path, provider, Server(b"a picture"))
    for end in (tmp_path / "spool").glob("*/end"):
        end.unlink()
    provider.outputs = (OutputReady(0, url=URL.replace("=1", "=2")),)
    server = Server(STALE)
    _, status = await resumed(tmp_path, storage, task_id, provider, server)
    assert (status, provider.bought, provider.adopted, server.asked) == (Status.COMPLETED, 1, 1, [])


# --- what to go on from ------------------------------------------------------------------------------------------

EARLIER = PredictionChange(uuid4(), uuid4(), 1, "simulate", "succeeded", external_id="x", held_by="one", held_since=0.0)
ENDING = Ending((OutputReady(0),))


@pytest.mark.parametrize(
    ("earlier", "ending", "adopts", "node", "now", "expected"),
    [
        (None, None, False, "one", 1.0, Begin()),
        (EARLIER, ENDING, False, "one", 1.0, Replay(EARLIER, ENDING)),
        (EARLIER, None, True, "two", 1.0, Begin(EARLIER)),
        (EARLIER, None, False, "two", 1.0, Wait(10.0)),
        (EARLIER, None, False, "two", HELD_FOR, Lost(EARLIER)),
        (EARLIER, None, False, "one", 1.0, Lost(EARLIER)),
        (evolve(EARLIER, held_since=None, held_by=None), None, False, "one", 1.0, "begin"),
    ],
    ids=["first", "here", "at the provider", "on another server", "too long", "lost here", "not known to be done"],
)
def test_an_attempt_goes_on_from_what_there_is(
    earlier: PredictionChange | None, ending: Ending | None, adopts: bool, node: str, now: float, expected: Any
) -> None:
    expected = Begin(earlier) if expected == "begin" else expected
    assert plan(earlier, ending, adopts, node, now) == expected


async def test_a_result_that_is_nowhere_any_more_fails_the_task_and_is_not_bought_again(tmp_path: Path) -> None:
    provider = Painter(TWO)
    async with studio(tmp_path, provider) as (h, store):
        store.refusals = float("inf")
        accepted, watcher = await begin_watched(h)
        await watcher.until(lambda w: w.bodies(ev.AttemptFailed))
        for file in (tmp_path / "spool").rglob("*"):
            if file.is_file():
                file.unlink()
        assert await end_of(h, accepted, watcher) is Status.FAILED
        assert watcher.bodies(ev.Failed)[-1].code in ("result_lost", "store_failed")
        assert provider.bought == 1


def test_what_waits_is_tried_later_and_later_but_not_for_ever() -> None:
    patience = Patience()
    waits = [until - now for now in (0.0, 100.0, 10_000.0) if (until := patience.until(0.0, now)) is not None]
    assert waits == [5.0, 50.0, 300.0]
    assert patience.until(0.0, 24 * 3600.0) is None


async def test_what_lies_in_the_spool_goes_when_nobody_needs_it_any_more(tmp_path: Path) -> None:
    provider = Painter(TWO)
    storage, _ = await unfinished(tmp_path, provider)
    async with studio(tmp_path, provider, storage=storage) as (h, _):
        (tmp_path / "spool" / str(uuid4())).mkdir()
        await clear_leftovers(h.runtime, older_than=3600.0)
        assert len(list((tmp_path / "spool").iterdir())) == 2, "they are fresh"
        await clear_leftovers(h.runtime, older_than=-1.0)
        (left,) = (tmp_path / "spool").iterdir()
        assert UUID(left.name) in storage.predictions


async def test_a_provider_that_fails_after_its_files_is_believed(tmp_path: Path) -> None:
    @define
    class Fails(Painter):
        async def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
            self.bought += 1
            yield OutputReady(0, data=b"half a film")
            await trio.lowlevel.checkpoint()
            yield Failed(FailureKind.PERMANENT, "broken", "It broke.", "Wait.")

    async with studio(tmp_path, Fails()) as (h, store):
        store.refusals = float("inf")
        accepted, watcher = await begin_watched(h)
        assert await end_of(h, accepted, watcher) is Status.FAILED
        assert watcher.bodies(ev.Failed)[0].code == "broken"
