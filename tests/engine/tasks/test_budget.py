"""Budgets: who has spent it waits for midnight UTC; what runs, runs to its end; the database is asked once a minute."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import date
from typing import Any
from uuid import UUID

import pytest
import trio
import trio.testing
from attrs import define, field

from engine.errors import UserError
from engine.ports import Model, Refused, StorageDown
from engine.providers.protocol import Failed, FailureKind, Finished, ProviderEvent, ProviderRequest, UsageReported
from engine.tasks import intake, lookup
from engine.tasks.budget import FRESH, READ_AGAIN, Budgets
from engine.tasks.events import Usage
from engine.tasks.messages import NewTask
from engine.tasks.state import Status, TaskState
from tests.engine.fakes import House, house
from tests.engine.tasks.watching import begin, over

NOON = 1_773_489_600.0
"""2026-03-14 12:00 UTC."""


@define
class Books:
    """What the database would say, and a clock. `gate` holds answers back."""

    spent: float = 0.0
    now: float = NOON
    asked: list[date] = field(factory=list)
    down: bool = False
    gate: trio.Event | None = None

    async def spent_on(self, user: str, day: date) -> float:
        self.asked.append(day)
        answer = self.spent
        await trio.lowlevel.checkpoint()
        if self.down:
            raise StorageDown
        if self.gate is not None:
            await self.gate.wait()
        return answer

    def budgets(self, daily: float = 1.0) -> Budgets:
        return Budgets(daily, self, lambda: self.now)


async def refused(budgets: Budgets) -> UserError | None:
    try:
        await budgets.check("ada")
    except UserError as error:
        return error
    return None


async def test_without_a_budget_nobody_is_asked() -> None:
    books = Books(spent=1e9)
    budgets = books.budgets(daily=0.0)
    budgets.add("ada", Usage(cost=1e9))
    assert await refused(budgets) is None
    assert books.asked == []


async def test_at_the_budget_a_user_waits_for_midnight_utc() -> None:
    books = Books(spent=1.0)
    budgets = books.budgets()
    error = await refused(budgets)
    assert error
    assert (error.code, error.retry_after) == ("over_budget", 12 * 3600.0)
    books.spent, books.now = 0.0, NOON + 12 * 3600
    assert await refused(budgets) is None
    assert books.asked == [date(2026, 3, 14), date(2026, 3, 15)]


async def test_many_at_once_ask_once_and_then_nobody_for_a_minute() -> None:
    books = Books()
    budgets = books.budgets()
    async with trio.open_nursery() as accepts:
        for _ in range(50):
            accepts.start_soon(budgets.check, "ada")
    books.now += FRESH - 1
    await budgets.check("ada")
    assert len(books.asked) == 1
    books.now += 1
    await budgets.check("ada")
    assert len(books.asked) == 2


async def test_what_ended_counts_at_once_and_not_twice_when_it_is_read_back() -> None:
    books = Books(spent=0.25)
    budgets = books.budgets()
    await budgets.check("ada")
    budgets.add("ada", Usage(cost=0.5))
    assert await refused(budgets) is None
    books.spent, books.now = 0.75, NOON + FRESH
    assert await refused(budgets) is None
    budgets.add("ada", Usage(cost=0.25))
    assert await refused(budgets)


async def test_what_ends_while_the_database_is_asked_is_not_lost(nursery: trio.Nursery) -> None:
    books = Books(gate=trio.Event())
    budgets = books.budgets()
    nursery.start_soon(refused, budgets)
    await trio.testing.wait_all_tasks_blocked()
    budgets.add("ada", Usage(cost=1.0))
    assert books.gate is not None
    books.gate.set()
    assert await refused(budgets)
    assert len(books.asked) == 1


async def test_while_the_database_is_away_what_is_known_counts() -> None:
    books = Books(down=True)
    budgets = books.budgets()
    assert await refused(budgets) is None
    budgets.add("ada", Usage(cost=1.0))
    books.now += READ_AGAIN
    assert await refused(budgets)
    assert len(books.asked) == 2


async def test_who_asks_and_leaves_leaves_the_question_to_who_waits(nursery: trio.Nursery) -> None:
    books = Books(spent=1.0, gate=trio.Event())
    budgets = books.budgets()
    leaving, heard = trio.CancelScope(), []

    async def first() -> None:
        with leaving:
            await budgets.check("ada")

    async def second() -> None:
        heard.append(await refused(budgets))

    nursery.start_soon(first)
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(second)
    await trio.testing.wait_all_tasks_blocked()
    leaving.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert books.gate is not None
    books.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert len(books.asked) == 2
    assert heard[0] is not None


# --- tasks ------------------------------------------------------------------------------------------------


@define
class Priced:
    """A provider of which each attempt costs `cost`; the first `failures` fail."""

    cost: float
    failures: int = 0
    kind: FailureKind = FailureKind.RETRYABLE
    name: str = "simulate"
    attempts: int = 0

    async def run(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        self.attempts += 1
        await trio.lowlevel.checkpoint()
        yield UsageReported(Usage(cost=self.cost / 2))
        yield UsageReported(Usage(cost=self.cost))
        if self.attempts <= self.failures:
            yield Failed(self.kind, "broken", "It broke.", "Wait.", retry_after=0.0)
        else:
            yield Finished()


def budget(h: House, daily: float) -> Books:
    books = Books()
    h.runtime.budgets.daily, h.runtime.budgets.store, h.runtime.budgets.clock = daily, books, lambda: books.now
    return books


async def ended(h: House) -> TaskState:
    """A task of ada's, when it is over."""
    accepted = await begin(h.runtime)
    await over(h.runtime, accepted.task.id)
    task = await h.storage.load(accepted.task.id)
    assert task
    return task


async def code(h: House, **wish: Any) -> str:
    with pytest.raises(UserError) as caught:
        await intake.accept(h.runtime, NewTask(**{"user": "ada", "input": {}} | wish))
    return caught.value.code


async def test_a_new_task_over_the_budget_is_refused_and_another_user_is_not() -> None:
    async with house({"simulate": Priced(0.5)}) as h:
        budget(h, 1.0)
        for _ in range(2):
            await ended(h)
        entries = len(h.storage.entries)
        assert await code(h) == "over_budget"
        assert len(h.storage.entries) == entries
        assert await intake.accept(h.runtime, NewTask(user="bob", input={}))


async def test_a_task_that_passes_the_budget_in_its_middle_runs_to_its_end() -> None:
    async with house({"simulate": (provider := Priced(2.0, failures=1))}) as h:
        budget(h, 1.0)
        task = await ended(h)
        assert (task.status, provider.attempts) == (Status.COMPLETED, 2)
        assert await code(h) == "over_budget"


async def test_a_failed_task_is_not_tried_again_over_the_budget() -> None:
    async with house({"simulate": Priced(2.0, failures=1, kind=FailureKind.PERMANENT)}) as h:
        books = budget(h, 1.0)
        task = await ended(h)
        with pytest.raises(UserError) as caught:
            await lookup.retry(h.runtime, task.id)
        assert caught.value.code == "over_budget"
        books.now += 24 * 3600
        assert (await lookup.retry(h.runtime, task.id)).status is Status.QUEUED


PRICED = Model(UUID(int=5), "priced", "simulate", "priced", "1", "image", price={"second": 0.1})


async def test_many_posted_at_once_do_not_all_pass_at_the_edge_of_the_budget() -> None:
    async with house({"simulate": Priced(0.5)}, models=(PRICED,)) as h:
        budget(h, 2.0)
        h.queue.paused = True
        ends: list[str] = []

        async def post() -> None:
            try:
                await intake.accept(h.runtime, NewTask("ada", {}, model="priced"))
            except UserError as error:
                ends.append(f"{error.code} {error.retry_after}")
            else:
                ends.append("accepted")

        async with trio.open_nursery() as posts:
            for _ in range(50):
                posts.start_soon(post)
        assert ends.count("accepted") == 4, "four of about 0.5 dollars fit into 2"
        assert ends.count("over_budget 15.0") == 46
        h.queue.paused = False
        h.queue.go()
        for task_id in list(h.runtime.stash.ids()):
            await over(h.runtime, task_id)
        assert await code(h, model="priced") == "over_budget"
        assert not h.runtime.budgets._held
        assert not h.runtime.budgets._held_of


async def test_what_a_task_may_cost_is_learnt_and_let_go_with_it() -> None:
    async with house({"simulate": Priced(0.001)}, models=(PRICED,)) as h:
        budget(h, 1.0)
        first = await intake.accept(h.runtime, NewTask("ada", {}, model="priced"))
        await over(h.runtime, first.task.id)
        assert h.runtime.budgets.estimate(PRICED, {}) == 0.001
        h.queue.paused = True
        accepted = await intake.accept(h.runtime, NewTask("ada", {}, model="priced"))
        assert h.runtime.budgets._held_of == {"ada": 0.001}
        await lookup.cancel(h.runtime, accepted.task.id)
        assert h.runtime.budgets._held_of == {}
        h.storage.refuse_next = Refused("poison")
        with pytest.raises(UserError):
            await intake.accept(h.runtime, NewTask("ada", {}, model="priced"))
        assert h.runtime.budgets._held_of == {}


async def test_over_the_budget_a_key_still_answers_its_task() -> None:
    async with house({"simulate": Priced(2.0)}) as h:
        budget(h, 1.0)
        wish = NewTask(user="ada", input={}, idempotency_key="k")
        first = await intake.accept(h.runtime, wish)
        await over(h.runtime, first.task.id)
        again = await intake.accept(h.runtime, wish)
        assert (again.task.id, again.created) == (first.task.id, False)
        assert await code(h, idempotency_key="k", input={"steps": 3}) == "idempotency_conflict"
        assert await code(h, idempotency_key="other") == "over_budget"
