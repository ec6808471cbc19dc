"""One task from its acceptance to its end, and every way in which something may fall on the way."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any
from uuid import uuid4

import pytest
import trio
import trio.testing
from attrs import define, evolve, field

from engine.errors import UserError
from engine.jobs.job import Cancel, Complete, Discard, Fence, JobChange, Recorded, Retry, Snooze
from engine.otp import KILL, Shutdown, call, exit, receive, spawn
from engine.ports import Durability, JournalFull, StorageDown
from engine.providers.protocol import (
    Accepted,
    Failed,
    Finished,
    Progress,
    ProviderEvent,
    ProviderRequest,
    TextDelta,
)
from engine.tasks import events as ev
from engine.tasks import intake, lookup
from engine.tasks.messages import (
    BeginAttempt,
    NewTask,
    Refusal,
    Step,
    TaskDurable,
    TaskHappened,
    TaskProgress,
    TaskResumed,
    TaskText,
)
from engine.tasks.state import Status, fold
from tests.engine.fakes import House, Shared, house
from tests.engine.tasks.watching import begin, begin_watched, over, watch


@define
class Scripted:
    """A provider that says what the test puts in, when it puts it in. `closed` counts streams closed early."""

    name: str = "simulate"
    requests: list[ProviderRequest] = field(factory=list)
    closed: int = 0
    _send: trio.MemorySendChannel[ProviderEvent] | None = None
    _started: trio.Event = field(factory=trio.Event)

    async def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        self._send, receive = trio.open_memory_channel[ProviderEvent](1000)
        self.requests.append(request)
        self._started.set()
        try:
            async for event in receive:
                yield event
        except BaseException:
            self.closed += 1
            raise

    async def says(self, *events: ProviderEvent) -> None:
        with trio.fail_after(10):
            await self._started.wait()
        assert self._send is not None
        for event in events:
            self._send.send_nowait(event)
            if isinstance(event, Finished | Failed):
                self._started = trio.Event()


def logged(house: House, accepted: Any) -> list[type]:
    return [type(event.body) for event in house.storage.logs[accepted.task.id]]


# --- the good way ----------------------------------------------------------------------------------------


async def test_a_task_is_accepted_runs_is_told_and_leaves_memory() -> None:
    async with house() as h:
        h.queue.paused = True
        accepted = await begin(h.runtime, steps=3, text=True)
        assert (accepted.durability, accepted.created, accepted.task.status) == (Durability.DURABLE, True, "queued")
        watcher = await watch(h.runtime, accepted.task.id)
        h.queue.paused = False
        h.queue.go()
        await watcher.final()
        assert watcher.events == [ev.Started, ev.Responded, ev.Completed]
        assert watcher.text == "Every task is"
        assert watcher.bodies(ev.Responded)[0].text == "Every task is"
        assert watcher.progress() == sorted(watcher.progress())
        await over(h.runtime, accepted.task.id)
        assert lookup.whereis(h.runtime, accepted.task.id) is None
        task = await lookup.find(h.runtime, accepted.task.id)
        assert task is not None
        assert (task.status, task.progress, task.text) == (Status.COMPLETED, 1.0, "Every task is")
        assert h.queue.outcomes == [Recorded()]
        assert [type(change.outcome) for change in h.storage.outcomes] == [Complete]
        assert accepted.task.id not in h.snapshots.pending


async def test_every_step_of_simulate_is_reported_once_and_in_order(autojump_clock: Any) -> None:
    async with house() as h:
        _, watcher = await begin_watched(h, steps=5, interval=0.05)
        await watcher.final()
        assert [(n.progress, n.step) for n in watcher.told(TaskProgress)] == [(i / 5, f"{i}/5") for i in range(1, 6)]


async def test_progress_never_falls_whatever_the_provider_says() -> None:
    provider = Scripted()
    async with house({"simulate": provider}) as h:
        _, watcher = await begin_watched(h)
        for fraction in (0.5, 0.2, 7.0):
            await provider.says(Progress(fraction, step=str(fraction)))
            await watcher.until(lambda w, step=str(fraction): step in [n.step for n in w.told(TaskProgress)])
        assert watcher.progress() == [0.5, 0.5, 1.0]


async def test_the_user_hears_of_what_happens_but_not_of_progress() -> None:
    async with house() as h:
        heard: list[Any] = []

        async def user_channel() -> None:
            h.runtime.channels.register(("user", "ada"))
            while True:
                heard.append(await receive())

        await spawn(user_channel)
        await trio.testing.wait_all_tasks_blocked()
        accepted = await begin(h.runtime, text=True)
        await over(h.runtime, accepted.task.id)
        await trio.testing.wait_all_tasks_blocked()
        assert {type(news) for news in heard} == {TaskHappened}
        assert [type(news.event.body) for news in heard] == [ev.Created, ev.Started, ev.Responded, ev.Completed]


async def test_a_join_is_told_what_it_missed_and_the_news_follows_without_gap() -> None:
    provider = Scripted()
    async with house({"simulate": provider}) as h:
        accepted = await begin(h.runtime)
        early = await watch(h.runtime, accepted.task.id)
        await provider.says(TextDelta("one "), Progress(0.5))
        await early.until(lambda w: w.progress())
        late = await watch(h.runtime, accepted.task.id, last_seq=0)
        assert late.view is not None
        assert [type(event.body) for event in late.view.events] == [ev.Created, ev.Started]
        assert (late.view.task.text, late.view.task.seq, late.view.reset) == ("one ", 2, False)
        await provider.says(TextDelta("two"), Finished())
        await late.final()
        assert [n.offset for n in late.told(TaskText)] == [4]
        assert [n.event.seq for n in late.told(TaskHappened)] == [3, 4]


@pytest.mark.parametrize("last_seq", [3, -1, 10**9])
async def test_a_last_seq_from_nowhere_gets_the_whole_state(last_seq: int) -> None:
    async with house({"simulate": Scripted()}) as h:
        accepted = await begin(h.runtime)
        watcher = await watch(h.runtime, accepted.task.id, last_seq)
        assert watcher.view is not None
        assert (watcher.view.reset, watcher.view.events) == (True, ())


async def test_a_finished_task_is_seen_from_the_store() -> None:
    async with house() as h:
        accepted = await begin(h.runtime)
        await over(h.runtime, accepted.task.id)
        watcher = await watch(h.runtime, accepted.task.id, last_seq=1)
        assert watcher.view is not None
        assert [event.seq for event in watcher.view.events] == [2, 3]
        assert await lookup.view(h.runtime, uuid4(), 0) is None


async def test_subscribing_twice_tells_once() -> None:
    provider = Scripted()
    async with house({"simulate": provider}) as h:
        accepted, watcher = await begin_watched(h)
        assert watcher.pid is not None
        await lookup.join(h.runtime, watcher.pid, accepted.task.id, 0)
        await provider.says(TextDelta("x"), Finished())
        await watcher.final()
        assert watcher.text == "x"


# --- order: nothing is told before it is safe ------------------------------------------------------------------


async def test_what_has_no_receipt_is_not_told_and_what_follows_waits_behind_it() -> None:
    provider = Scripted()
    async with house({"simulate": provider}) as h:
        h.queue.paused = True
        accepted, watcher = await begin_watched(h)
        h.storage.hold()
        h.queue.paused = False
        h.queue.go()
        await trio.testing.wait_all_tasks_blocked()
        assert provider.requests == []  # the intent is written down before the provider is asked
        assert watcher.news == []
        h.storage.let_go()
        await provider.says(TextDelta("a"))
        await watcher.until(lambda w: w.text == "a")
        h.storage.hold()
        await provider.says(TextDelta("b"), Finished())
        await trio.testing.wait_all_tasks_blocked()
        assert watcher.events == [ev.Started]
        task = await lookup.find(h.runtime, accepted.task.id)
        assert task is not None
        assert task.status is Status.PROCESSING
        h.storage.let_go()
        await watcher.final()
        assert watcher.events == [ev.Started, ev.Responded, ev.Completed]
        assert watcher.text == "ab"


async def test_live_news_behind_a_waiting_event_is_joined_and_keeps_its_order() -> None:
    provider = Scripted()
    async with house({"simulate": provider}) as h:
        _, watcher = await begin_watched(h)
        await provider.says()
        h.storage.hold()
        await provider.says(Accepted("ext-1"))
        for number in range(5):
            await provider.says(TextDelta(str(number)), Progress(number / 10))
            await trio.testing.wait_all_tasks_blocked(0.03)
        assert watcher.text == ""
        h.storage.let_go()
        await watcher.until(lambda w: w.text == "01234")
        assert len(watcher.told(TaskText)) == 1
        assert len(watcher.progress()) == 1
        assert [p.external_id for p in h.storage.predictions.values()] == ["ext-1"]


# --- durability ----------------------------------------------------------------------------------------------


async def test_without_a_database_a_task_is_accepted_in_memory_and_said_to_be_so() -> None:
    async with house() as h:
        h.storage.down = True
        h.queue.paused = True
        accepted = await begin(h.runtime)
        assert accepted.durability is Durability.MEMORY
        watcher = await watch(h.runtime, accepted.task.id)
        h.queue.paused = False
        h.queue.go()
        await watcher.until(lambda w: ev.Completed in w.events)
        assert {n.durability for n in watcher.told(TaskHappened)} == {Durability.MEMORY}
        assert not any(n.final for n in watcher.told(TaskHappened))
        assert h.storage.logs == {}
        h.storage.back()
        await watcher.until(lambda w: w.told(TaskDurable))
        assert watcher.told(TaskDurable)[0].seq == 3
        await over(h.runtime, accepted.task.id)
        assert logged(h, accepted) == [ev.Created, ev.Started, ev.Completed]


async def test_a_task_in_memory_that_the_database_then_refuses_ends_for_all_to_see() -> None:
    async with house() as h:
        h.storage.down = True
        h.queue.paused = True
        wish = NewTask("ada", {"steps": 1}, idempotency_key="k")
        accepted = await intake.accept(h.runtime, wish)
        watcher = await watch(h.runtime, accepted.task.id)
        h.storage.keys["ada", "k"] = uuid4()  # another server was first with this key
        h.storage.back()
        await watcher.final()
        (failed,) = watcher.bodies(ev.Failed)
        assert failed.code == "not_stored"
        await over(h.runtime, accepted.task.id)
        assert accepted.task.id not in h.storage.logs


async def test_a_full_journal_refuses_new_tasks_and_leaves_nothing_behind() -> None:
    async with house() as h:
        h.storage.full = 3.0
        with pytest.raises(JournalFull):
            await begin(h.runtime)
        await trio.testing.wait_all_tasks_blocked()
        assert len(h.runtime.stash) == 0
        assert h.runtime.names.count() == 0


@pytest.mark.parametrize("crash", [False, True])
async def test_a_full_journal_makes_a_running_task_wait_not_fail(crash: bool, autojump_clock: Any) -> None:
    provider = Scripted()
    async with house({"simulate": provider}) as h:
        accepted, watcher = await begin_watched(h)
        await provider.says(TextDelta("a"))
        await watcher.until(lambda w: w.text == "a")
        h.storage.full = 3.0
        await provider.says(Finished())
        await trio.sleep(1)
        assert watcher.events == [ev.Started]
        server = lookup.whereis(h.runtime, accepted.task.id)
        assert server is not None
        if crash:
            exit(server, KILL)
            await trio.sleep(1)
        h.storage.full = None
        await watcher.final()
        assert logged(h, accepted) == [ev.Created, ev.Started, ev.Responded, ev.Completed]


async def test_the_same_idempotency_key_is_the_same_task() -> None:
    async with house({"simulate": Scripted()}) as h:
        new = NewTask("ada", {"steps": 1}, idempotency_key="k")
        first = await intake.accept(h.runtime, new)
        second = await intake.accept(h.runtime, new)
        assert (second.task.id, second.created) == (first.task.id, False)
        other = await intake.accept(h.runtime, NewTask("bob", {"steps": 1}, idempotency_key="k"))
        assert other.created
        with pytest.raises(UserError, match="idempotency_conflict"):
            await intake.accept(h.runtime, NewTask("ada", {"steps": 2}, idempotency_key="k"))
        await trio.testing.wait_all_tasks_blocked()
        assert len(h.runtime.stash) == 2


async def test_an_id_of_the_clients_own_is_taken_once() -> None:
    async with house() as h:
        id = uuid4()
        accepted = await intake.accept(h.runtime, NewTask("ada", {"steps": 1, "interval": 0}, id=id))
        assert accepted.task.id == id
        for _ in range(2):  # while it lives, and when it has left memory
            with pytest.raises(UserError, match="task_exists"):
                await intake.accept(h.runtime, NewTask("ada", {}, id=id))
            with pytest.raises(UserError, match="unauthorized"):
                await intake.accept(h.runtime, NewTask("bob", {}, id=id))
            await over(h.runtime, id)
        assert [type(e.body) for e in h.storage.logs[id]] == [ev.Created, ev.Started, ev.Completed]


async def test_what_the_queue_refuses_is_not_begun() -> None:
    async with house() as h:
        h.queue.refusal = UserError("over_quota", "Too many.", retry_after=2.0)
        with pytest.raises(UserError, match="over_quota"):
            await begin(h.runtime)
        assert h.storage.entries == []


# --- failures ------------------------------------------------------------------------------------------------


async def test_a_permanent_failure_ends_the_task() -> None:
    async with house() as h:
        accepted = await begin(h.runtime, steps=5, fail_at=2)
        await over(h.runtime, accepted.task.id)
        task = h.storage.tasks[accepted.task.id]
        assert task.status is Status.FAILED
        assert task.error is not None
        assert (task.error.code, task.error.retryable) == ("simulated_failure", False)
        assert task.progress == 0.2
        assert isinstance(h.storage.outcomes[-1].outcome, Discard)


async def test_a_retryable_failure_voids_what_was_shown_and_runs_again(autojump_clock: Any) -> None:
    async with house() as h:
        failing = {"fail_at": 2, "fail_kind": "retryable", "fail_attempts": 1}
        _, watcher = await begin_watched(h, steps=3, interval=1, text=True, **failing)
        await watcher.final()
        assert watcher.events == [
            ev.Started, ev.AttemptFailed, ev.Reset, ev.Started, ev.Responded, ev.Completed,
        ]  # fmt: skip
        failed = next(n for n in watcher.told(TaskHappened) if isinstance(n.event.body, ev.AttemptFailed))
        assert isinstance(failed.event.body, ev.AttemptFailed)
        assert 2.0 <= failed.event.body.will_retry_at - failed.event.at <= 2.2  # the quick back-off
        assert failed.task.status is Status.QUEUED
        for attempt in (1, 2):
            assert watcher.progress(attempt) == sorted(watcher.progress(attempt))
        assert next(n.offset for n in watcher.told(TaskText) if n.attempt == 2) == 0
        change = h.storage.outcomes[0]
        assert change.outcome == Retry("simulated_failure", failed.event.body.will_retry_at)
        assert change.fence is not None


async def test_the_last_attempt_that_fails_is_the_end(autojump_clock: Any) -> None:
    async with house() as h:
        accepted = await begin(h.runtime, fail_at=1, fail_kind="retryable", retry_after=0.5)
        await over(h.runtime, accepted.task.id)
        assert logged(h, accepted) == [
            ev.Created, ev.Started, ev.AttemptFailed, ev.Started, ev.AttemptFailed, ev.Started, ev.Failed,
        ]  # fmt: skip
        error = h.storage.tasks[accepted.task.id].error
        assert error is not None
        assert error.retryable


async def test_no_capacity_burns_no_attempt(autojump_clock: Any) -> None:
    async with house() as h:
        accepted = await begin(h.runtime, steps=1, fail_at=1, fail_kind="unavailable", fail_attempts=5, retry_after=0.5)
        await over(h.runtime, accepted.task.id)
        assert h.storage.tasks[accepted.task.id].status is Status.COMPLETED
        assert [type(change.outcome) for change in h.storage.outcomes] == [Snooze] * 5 + [Complete]


async def test_a_worker_that_crashes_fails_its_attempt_and_the_task_goes_on(autojump_clock: Any) -> None:
    async with house() as h:
        accepted = await begin(h.runtime, steps=3, text=True, worker_crash_at=2)
        await over(h.runtime, accepted.task.id)
        assert logged(h, accepted) == [
            ev.Created, ev.Started, ev.AttemptFailed, ev.Reset, ev.Started, ev.Responded, ev.Completed,
        ]  # fmt: skip
        failed = h.storage.logs[accepted.task.id][2].body
        assert isinstance(failed, ev.AttemptFailed)
        assert failed.code == "worker_crashed"


async def test_a_stream_that_ends_without_a_word_is_a_failed_attempt(autojump_clock: Any) -> None:
    @define
    class Silent:
        name: str = "simulate"

        async def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
            yield TextDelta("half")

    async with house({"simulate": Silent()}) as h:
        accepted = await begin(h.runtime)
        await over(h.runtime, accepted.task.id)
        assert logged(h, accepted)[-1] is ev.Failed
        assert {e.body.code for e in h.storage.logs[accepted.task.id] if isinstance(e.body, ev.AttemptFailed)} == {
            "incomplete"
        }


async def test_a_model_without_a_provider_fails_with_a_word_about_it() -> None:
    async with house({"other": Scripted()}) as h:
        accepted = await begin(h.runtime)
        await over(h.runtime, accepted.task.id)
        error = h.storage.tasks[accepted.task.id].error
        assert error is not None
        assert error.code == "no_provider"


# --- crashes of the TaskServer ---------------------------------------------------------------------------------


async def test_a_task_server_that_crashes_is_rebuilt_and_nothing_is_lost() -> None:
    async with house() as h:
        h.queue.paused = True
        accepted = await begin(h.runtime, steps=6, interval=0.03, text=True, crash_at=3)
        neighbour = await begin(h.runtime, steps=6, interval=0.03, text=True)
        watcher = await watch(h.runtime, accepted.task.id)
        beside = await watch(h.runtime, neighbour.task.id)
        first = lookup.whereis(h.runtime, accepted.task.id)
        h.queue.paused = False
        h.queue.go()
        await watcher.final()
        await beside.final()
        assert watcher.events == beside.events == [ev.Started, ev.Responded, ev.Completed]
        assert watcher.text == beside.text == "Every task is a small process"
        assert watcher.progress() == sorted(watcher.progress())
        (resumed,) = watcher.told(TaskResumed)
        assert resumed.server != first
        assert beside.told(TaskResumed) == []
        await trio.testing.wait_all_tasks_blocked()
        assert h.queue.outcomes == [Recorded(), Recorded()]


@pytest.mark.parametrize("reason", [KILL, Shutdown("odd")])
async def test_a_task_server_that_is_killed_loses_nothing(reason: object) -> None:
    provider = Scripted()
    async with house({"simulate": provider}) as h:
        accepted, watcher = await begin_watched(h)
        await provider.says(TextDelta("one "))
        await watcher.until(lambda w: w.text == "one ")
        server = lookup.whereis(h.runtime, accepted.task.id)
        assert server is not None
        exit(server, reason)
        await provider.says(TextDelta("two"), Finished())
        if reason is KILL:
            await watcher.final()
            assert watcher.text == "one two"
        await over(h.runtime, accepted.task.id)
        assert h.storage.tasks[accepted.task.id].text == "one two"
        assert logged(h, accepted) == [ev.Created, ev.Started, ev.Responded, ev.Completed]


async def test_a_rebuilt_task_server_that_lacks_text_is_sent_it_again() -> None:
    provider = Scripted()
    async with house({"simulate": provider}) as h:
        accepted, watcher = await begin_watched(h)
        await provider.says(TextDelta("one "))
        await watcher.until(lambda w: w.text == "one ")
        server = lookup.whereis(h.runtime, accepted.task.id)
        live = h.runtime.stash.get(accepted.task.id)
        assert server is not None
        assert live is not None
        blank = evolve(live.task, text="")
        h.runtime.stash.put(evolve(live, task=blank, outbox=evolve(live.outbox, told=blank)))
        exit(server, KILL)
        await provider.says(TextDelta("two"), Finished())
        await watcher.final()
        assert watcher.bodies(ev.Responded)[0].text == "one two"


async def test_receipts_that_come_while_the_task_server_is_down_are_not_lost() -> None:
    provider = Scripted()
    async with house({"simulate": provider}) as h:
        accepted, watcher = await begin_watched(h)
        await provider.says(TextDelta("a"))
        await watcher.until(lambda w: w.text == "a")
        h.storage.hold()
        await provider.says(Finished())
        await trio.testing.wait_all_tasks_blocked(0.03)
        server = lookup.whereis(h.runtime, accepted.task.id)
        assert server is not None
        exit(server, KILL)
        h.storage.let_go()  # before anybody has noticed
        await watcher.final()
        assert watcher.events == [ev.Started, ev.Responded, ev.Completed]


async def test_an_attempt_that_is_being_begun_when_the_task_server_crashes_is_begun_once() -> None:
    provider = Scripted()
    async with house({"simulate": provider}) as h:
        h.queue.paused = True
        accepted = await begin(h.runtime)
        h.storage.hold()
        h.queue.paused = False
        h.queue.go()
        await trio.testing.wait_all_tasks_blocked()
        server = lookup.whereis(h.runtime, accepted.task.id)
        assert server is not None
        exit(server, KILL)
        await trio.testing.wait_all_tasks_blocked()
        h.storage.let_go()
        await provider.says(TextDelta("a"), Finished())
        await over(h.runtime, accepted.task.id)
        assert logged(h, accepted) == [ev.Created, ev.Started, ev.Responded, ev.Completed]


async def test_a_worker_that_died_with_the_task_server_is_noticed(autojump_clock: Any) -> None:
    provider = Scripted()
    async with house({"simulate": provider}) as h:
        accepted, watcher = await begin_watched(h)
        await provider.says(TextDelta("a"))
        await watcher.until(lambda w: w.text == "a")
        (worker,) = h.queue.workers.values()
        server = lookup.whereis(h.runtime, accepted.task.id)
        assert server is not None
        exit(worker, KILL)
        exit(server, KILL)
        await trio.sleep(5)
        await provider.says(Finished())
        await over(h.runtime, accepted.task.id)
        assert logged(h, accepted)[:4] == [ev.Created, ev.Started, ev.AttemptFailed, ev.Reset]


async def test_a_task_that_always_crashes_its_server_fails_and_takes_nobody_along() -> None:
    async with house({"simulate": Scripted()}) as h:
        accepted = await begin(h.runtime)
        neighbour = await begin(h.runtime)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(4):
            server = lookup.whereis(h.runtime, accepted.task.id)
            if server is not None:
                exit(server, KILL)
            await trio.testing.wait_all_tasks_blocked()
        await over(h.runtime, accepted.task.id)
        error = h.storage.tasks[accepted.task.id].error
        assert error is not None
        assert error.code == "task_crashed"
        assert lookup.whereis(h.runtime, neighbour.task.id) is not None


# --- cancel and retry ------------------------------------------------------------------------------------------


async def test_cancel_while_queued() -> None:
    async with house() as h:
        h.queue.paused = True
        accepted = await begin(h.runtime)
        task = await lookup.cancel(h.runtime, accepted.task.id)
        assert task.status is Status.CANCELLED
        await over(h.runtime, accepted.task.id)
        assert h.storage.outcomes == [JobChange(accepted.task.job_id, Cancel("requested"))]  # type: ignore[arg-type]
        h.queue.paused = False
        h.queue.go()
        await trio.testing.wait_all_tasks_blocked()
        assert logged(h, accepted) == [ev.Created, ev.Cancelled]


@pytest.mark.parametrize("kept_back", ["by an outage", "on its way"])
async def test_a_job_is_not_ended_by_an_end_of_its_task_that_a_crash_could_undo(kept_back: str) -> None:
    async with house() as h:
        h.queue.paused = True
        accepted = await begin(h.runtime)
        h.storage.down = kept_back == "by an outage"
        if not h.storage.down:
            h.storage.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lookup.cancel, h.runtime, accepted.task.id)
            await trio.testing.wait_all_tasks_blocked()
            h.queue.paused = False
            h.queue.go()
            await trio.testing.wait_all_tasks_blocked()
            assert [type(outcome) for outcome in h.queue.outcomes] == [Snooze]
            h.storage.back()
            h.storage.let_go()
        await over(h.runtime, accepted.task.id)
        assert logged(h, accepted) == [ev.Created, ev.Cancelled]
        assert h.storage.outcomes == [JobChange(accepted.task.job_id, Cancel("requested"))]  # type: ignore[arg-type]


async def test_cancel_while_running_stops_the_providers_work_and_nothing_follows() -> None:
    provider = Scripted()
    async with house({"simulate": provider}) as h:
        accepted, watcher = await begin_watched(h)
        await provider.says(TextDelta("a"))
        await watcher.until(lambda w: w.text == "a")
        task = await lookup.cancel(h.runtime, accepted.task.id)
        assert (task.status, task.text) == (Status.CANCELLED, "a")
        await watcher.final()
        await trio.testing.wait_all_tasks_blocked()
        assert provider.closed == 1
        assert watcher.events == [ev.Started, ev.Cancelled]
        again = await lookup.cancel(h.runtime, accepted.task.id)
        assert again.status is Status.CANCELLED
        (prediction,) = h.storage.predictions.values()
        assert prediction.status == "canceled"


async def test_cancel_answers_only_when_it_is_safe() -> None:
    provider = Scripted()
    async with house({"simulate": provider}) as h:
        accepted = await begin(h.runtime)
        await provider.says(TextDelta("a"))
        h.storage.hold()
        answers: list[Any] = []
        async with trio.open_nursery() as nursery:

            async def cancel() -> None:
                answers.append(await lookup.cancel(h.runtime, accepted.task.id))

            nursery.start_soon(cancel)
            await trio.testing.wait_all_tasks_blocked()
            assert answers == []
            assert provider.closed == 1  # the work stops at once, whatever the database does
            h.storage.let_go()
        assert answers[0].status is Status.CANCELLED


async def test_the_first_outcome_wins() -> None:
    provider = Scripted()
    async with house({"simulate": provider}) as h:
        accepted = await begin(h.runtime)
        await provider.says(TextDelta("a"))
        h.storage.hold()
        await provider.says(Finished())
        await trio.testing.wait_all_tasks_blocked(0.03)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lookup.cancel, h.runtime, accepted.task.id)
            await trio.testing.wait_all_tasks_blocked()
            h.storage.let_go()
        await over(h.runtime, accepted.task.id)
        assert logged(h, accepted) == [ev.Created, ev.Started, ev.Responded, ev.Completed]


async def test_cancel_of_an_unknown_or_finished_task() -> None:
    async with house() as h:
        with pytest.raises(UserError, match="unknown_task"):
            await lookup.cancel(h.runtime, uuid4())
        accepted = await begin(h.runtime)
        await over(h.runtime, accepted.task.id)
        assert (await lookup.cancel(h.runtime, accepted.task.id)).status is Status.COMPLETED


async def test_a_failed_task_is_retried_by_hand(autojump_clock: Any) -> None:
    async with house() as h:
        accepted = await begin(h.runtime, steps=1, text=True, fail_at=1, fail_attempts=1)
        await over(h.runtime, accepted.task.id)
        task = await lookup.retry(h.runtime, accepted.task.id)
        assert task.status is Status.QUEUED
        await over(h.runtime, accepted.task.id)
        assert logged(h, accepted) == [
            ev.Created, ev.Started, ev.Failed, ev.Requeued, ev.Started, ev.Responded, ev.Completed,
        ]  # fmt: skip
        with pytest.raises(UserError, match="not_failed"):
            await lookup.retry(h.runtime, accepted.task.id)
        with pytest.raises(UserError, match="unknown_task"):
            await lookup.retry(h.runtime, uuid4())


async def test_a_failed_task_that_is_still_in_memory_is_retried_there() -> None:
    async with house() as h:
        h.storage.down = True
        accepted = await begin(h.runtime, steps=1, fail_at=1, fail_attempts=1)
        watcher = await watch(h.runtime, accepted.task.id)
        await watcher.until(lambda w: ev.Failed in w.events or (w.view and w.view.task.status is Status.FAILED))
        await lookup.retry(h.runtime, accepted.task.id)
        await watcher.until(lambda w: ev.Completed in w.events)
        h.storage.back()
        await over(h.runtime, accepted.task.id)
        assert logged(h, accepted)[3:] == [ev.Requeued, ev.Started, ev.Completed]


# --- what comes late, or from elsewhere --------------------------------------------------------------------------


async def test_steps_of_an_attempt_that_is_over_are_refused() -> None:
    provider = Scripted()
    async with house({"simulate": provider}) as h:
        accepted = await begin(h.runtime)
        await provider.says(TextDelta("a"))
        server = lookup.whereis(h.runtime, accepted.task.id)
        assert server is not None
        late = await call(server, Step(0, (Progress(0.9),)))
        assert late == Refusal("stale_attempt", "Attempt 0 is over.")
        me = h.queue.workers[accepted.task.job_id]  # type: ignore[index]
        stale = BeginAttempt(me, Fence(accepted.task.job_id, 0, uuid4()), uuid4(), "simulate", "simulate")  # type: ignore[arg-type]
        refused = await call(server, stale)
        assert isinstance(refused, Refusal)
        assert refused.code == "stale_fence"
        strange = BeginAttempt(me, Fence(uuid4(), 9, uuid4()), uuid4(), "simulate", "simulate")
        refused = await call(server, strange)
        assert isinstance(refused, Refusal)
        assert refused.code == "stale_job"


async def test_a_text_step_is_taken_once_however_often_it_is_sent() -> None:
    provider = Scripted()
    async with house({"simulate": provider}) as h:
        accepted, watcher = await begin_watched(h)
        await provider.says(TextDelta("añ🙂"))
        await watcher.until(lambda w: w.text == "añ🙂")
        server = lookup.whereis(h.runtime, accepted.task.id)
        assert server is not None
        steps = [
            Step(1, (TextDelta("ñ🙂"), TextDelta("x")), 1),
            Step(1, (TextDelta("a"),), 0),
            Step(1, (TextDelta("far"), Finished()), 9),
        ]
        offsets = [(await call(server, step)).text_offset for step in steps]  # type: ignore[union-attr]
        assert offsets == [4, 4, 4]
        await watcher.until(lambda w: w.text == "añ🙂x")
        assert [(n.offset, n.text) for n in watcher.told(TaskText)][-1] == (3, "x")


async def test_an_entry_that_the_journal_refuses_makes_the_store_the_truth() -> None:
    provider = Scripted()
    async with house({"simulate": provider}) as h:
        accepted, watcher = await begin_watched(h)
        await provider.says(TextDelta("a"))
        await watcher.until(lambda w: w.text == "a")
        # another node, which took the job when our lease ran out, was first
        log = h.storage.logs[accepted.task.id]
        body = ev.Completed(1.0)
        log.append(ev.TaskEvent(accepted.task.id, len(log) + 1, h.clock(), 1, ev.Actor.WORKER, body))
        await provider.says(Finished())
        await watcher.final()
        assert watcher.events == [ev.Started, ev.Completed]
        await over(h.runtime, accepted.task.id)
        assert logged(h, accepted) == [ev.Created, ev.Started, ev.Completed]


async def test_a_node_whose_knowledge_is_out_of_date_learns_and_runs_the_job_later(autojump_clock: Any) -> None:
    async with house() as h:
        accepted, watcher = await begin_watched(
            h, steps=1, interval=0, fail_at=1, fail_kind="retryable", retry_after=60
        )
        await watcher.until(lambda w: ev.AttemptFailed in w.events)
        # meanwhile another node made an attempt, which failed too
        state = h.storage.tasks[accepted.task.id]
        for body in (ev.Started("simulate", "simulate"), ev.AttemptFailed("x", "y", "z", 0.0)):
            log = h.storage.logs[state.id]
            attempt = 2 if isinstance(body, ev.Started) else log[-1].attempt
            log.append(ev.TaskEvent(state.id, len(log) + 1, h.clock(), attempt, ev.Actor.WORKER, body))
        h.queue.start(h.storage.jobs[state.job_id], 3, 0.0)  # type: ignore[index]
        await watcher.final()
        assert any(isinstance(outcome, Snooze) for outcome in h.queue.outcomes)
        assert [n.event.seq for n in watcher.told(TaskHappened)] == [2, 3, 4, 5, 6, 7]
        assert [n.event.attempt for n in watcher.told(TaskHappened)] == [1, 1, 2, 2, 3, 3]


async def test_what_another_server_does_to_a_task_is_told_here_and_its_end_ends_it_here(autojump_clock: Any) -> None:
    async with house(recover=True, homes=Shared()) as h:
        h.queue.paused = True
        accepted = await begin(h.runtime)
        watcher = await watch(h.runtime, accepted.task.id)
        log = h.storage.logs[accepted.task.id]
        for body in (ev.Started("simulate", "simulate"), ev.Responded("done"), ev.Completed(1.0)):
            log.append(ev.TaskEvent(accepted.task.id, len(log) + 1, h.clock(), 1, ev.Actor.WORKER, body))
            await trio.sleep(2)
        await watcher.final()
        assert watcher.events == [ev.Started, ev.Responded, ev.Completed]
        assert watcher.bodies(ev.Responded) == [ev.Responded("done")]
        await over(h.runtime, accepted.task.id)


async def test_a_task_that_another_server_has_begun_can_be_cancelled_here() -> None:
    async with house() as h:
        h.queue.paused = True
        accepted = await begin(h.runtime)
        body = ev.Started("simulate", "simulate")
        h.storage.logs[accepted.task.id].append(ev.TaskEvent(accepted.task.id, 2, h.clock(), 1, ev.Actor.WORKER, body))
        assert (await lookup.cancel(h.runtime, accepted.task.id)).status is Status.CANCELLED
        assert logged(h, accepted) == [ev.Created, ev.Started, ev.Cancelled]


async def test_a_worker_that_is_drained_leaves_the_attempt_open_and_the_next_one_voids_it() -> None:
    provider = Scripted()
    async with house({"simulate": provider}) as h:
        accepted, watcher = await begin_watched(h)
        await provider.says(Accepted("ext-7"), TextDelta("a"))
        await watcher.until(lambda w: w.text == "a")
        (worker,) = h.queue.workers.values()
        exit(worker, Shutdown("draining"))
        await trio.testing.wait_all_tasks_blocked()
        assert logged(h, accepted) == [ev.Created, ev.Started]
        new_job = h.storage.jobs[accepted.task.job_id]  # type: ignore[index]
        h.queue.start(new_job, 1, 0.0)
        await watcher.until(lambda w: ev.Reset in w.events)
        await provider.says()
        again = provider.requests[-1]
        assert (again.external_id, again.attempt_id) == ("ext-7", provider.requests[0].attempt_id)
        assert again.attempt == 2


# --- recovery ------------------------------------------------------------------------------------------------------


async def test_unfinished_tasks_come_back_by_priority_and_age_and_finish() -> None:
    async with house() as h:
        h.queue.paused = True
        made = [
            (await intake.accept(h.runtime, NewTask("ada", {"steps": 1, "interval": 0}, priority=priority))).task.id
            for priority in (5, 0, 5, 0)
        ]
        storage = h.storage
    async with house(storage=storage, recover=True) as h:
        with trio.fail_after(5):
            while len(h.runtime.stash) < 4:  # noqa: ASYNC110 - see watching.over
                await trio.sleep(0.001)
        assert [task.id for task in h.runtime.stash] == [made[1], made[3], made[0], made[2]]
        for job in storage.jobs.values():
            h.queue._enqueue(job, 1, 0.0)
        for id in made:
            await over(h.runtime, id)
        assert {storage.tasks[id].status for id in made} == {Status.COMPLETED}


async def test_a_task_that_was_running_when_the_server_died_says_reset_and_runs_again() -> None:
    async with house({"simulate": Scripted()}) as h:
        accepted = await begin(h.runtime, text=True)
        await trio.testing.wait_all_tasks_blocked()
        storage = h.storage
    async with house(storage=storage, recover=True) as h:
        await trio.testing.wait_all_tasks_blocked()
        watcher = await watch(h.runtime, accepted.task.id, last_seq=1)
        assert watcher.view is not None
        assert [event.seq for event in watcher.view.events] == [2]  # from the store
        h.queue._enqueue(storage.jobs[accepted.task.job_id], 1, 0.0)  # type: ignore[index]
        await watcher.final()
        assert watcher.events == [ev.Reset, ev.Started, ev.Responded, ev.Completed]


async def test_the_state_in_memory_is_the_fold_of_the_log() -> None:
    async with house() as h:
        accepted = [await begin(h.runtime, text=True, fail_at=fail) for fail in (None, 1, 2)]
        for one in accepted:
            await over(h.runtime, one.task.id)
            state = None
            for event in h.storage.logs[one.task.id]:
                state = fold(state, event)
            assert state is not None
            assert (state.status, state.seq) == (h.storage.tasks[one.task.id].status, len(h.storage.logs[one.task.id]))


async def test_reads_of_a_live_task_need_no_database() -> None:
    async with house({"simulate": Scripted()}) as h:
        accepted = await begin(h.runtime)
        h.storage.down = True
        assert await lookup.find(h.runtime, accepted.task.id) is not None
        assert await lookup.view(h.runtime, accepted.task.id, 0) is not None
        with pytest.raises(StorageDown):
            await lookup.find(h.runtime, uuid4())
