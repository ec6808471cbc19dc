"""What users have spent today, kept in memory, and whether they may begin more: a ledger in front of the database.

A user's account is read when they are first met and again after a minute, since another server may spend for them, too;
in between, attempts that end are added to it. So nearly every check is a look into a dictionary. An attempt counts once
it has ended, and a task that passes the budget in its middle runs to its end. What a task that was accepted here may
cost is held back until it is over, by an estimate, so that many posted at once do not all pass at the budget's edge.

May import the ports and the events' data.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import trio
from attrs import define, field

from engine.errors import UserError
from engine.ports import Model, Spending, StorageDown
from engine.routing.quota import estimate
from engine.tasks.events import Usage

DAY = 24 * 3600.0
FRESH = 60.0
"""Seconds for which what was read is believed."""
READ_AGAIN = 5.0
"""Seconds until a database that was away is asked again; what is known in memory counts meanwhile."""
ACCOUNTS = 10_000
UNKNOWN_SECONDS = 5.0
"""How long a model runs of which none has ended yet."""
UNDER_WAY = 15.0
"""Seconds after which to ask again, when it is tasks under way that leave no room."""


@define(eq=False)
class Account:
    """A user's spending on one day, in US dollars: what the database had, and what ended since it was asked."""

    day: date
    stored: float = 0.0
    added: float = 0.0
    due: float = 0.0
    """Unix time at which it is to be read again."""
    reading: trio.Event | None = None

    @property
    def spent(self) -> float:
        return self.stored + self.added


@define(eq=False)
class Budgets:
    """`daily`: US dollars for each user and day of UTC; 0: no budget, nothing is kept. `clock` gives Unix seconds."""

    daily: float = 0.0
    store: Spending | None = None
    clock: Callable[[], float] = time.time
    _accounts: OrderedDict[str, Account] = field(init=False, factory=OrderedDict)
    _held: dict[UUID, tuple[str, float]] = field(init=False, factory=dict)
    _held_of: dict[str, float] = field(init=False, factory=dict)
    _typical: dict[str, float] = field(init=False, factory=dict)

    async def check(self, user: str) -> None:
        """Whether the user may begin a task. Raises UserError: `over_budget`, with `retry_after`: until midnight UTC,
        or soon, when it is only that tasks under way may use up the rest. What is begun is to be held at once."""
        if self.daily <= 0:
            return
        account = self._account(user)
        while account.due <= self.clock():
            if account.reading is not None:
                await account.reading.wait()
            else:
                await self._read(user, account)
            account = self._account(user)
        if account.spent >= self.daily:
            raise over_budget(self.daily, self.clock())
        if account.spent + self._held_of.get(user, 0.0) >= self.daily:
            raise under_way(self.daily)

    def hold(self, task_id: UUID, user: str, model: Model, given: Mapping[str, Any]) -> None:
        """A task begins: what it may cost is kept back until `release`."""
        if self.daily > 0 and task_id not in self._held and (cost := self.estimate(model, given)) > 0:
            self._held[task_id] = (user, cost)
            self._held_of[user] = self._held_of.get(user, 0.0) + cost

    def release(self, task_id: UUID) -> None:
        """The task is over, or never was."""
        user, cost = self._held.pop(task_id, ("", 0.0))
        if user:
            left = self._held_of[user] - cost
            if left > 1e-9:
                self._held_of[user] = left
            else:
                del self._held_of[user]

    def estimate(self, model: Model, given: Mapping[str, Any]) -> float:
        """US dollars that an attempt may cost: what the last ones of this model did, else by its prices."""
        if model.name in self._typical:
            return self._typical[model.name]
        tokens, seconds = estimate(given), UNKNOWN_SECONDS
        most = max(model.price.get("input_token", 0.0), model.price.get("output_token", 0.0))
        return tokens * most + seconds * model.price.get("second", 0.0)

    def learn(self, model: str, usage: Usage | None) -> None:
        """An attempt of the model ended and used this."""
        if self.daily > 0 and usage is not None and usage.cost is not None:
            before = self._typical.get(model, usage.cost)
            self._typical[model] = before + (usage.cost - before) / 4

    def add(self, user: str, usage: Usage | None, counted: Usage | None = None) -> None:
        """An attempt of the user's ended and used this, of which some was counted before."""
        cost = _cost(usage) - _cost(counted)
        if self.daily > 0 and cost:
            self._account(user).added += cost

    def _account(self, user: str) -> Account:
        today = datetime.fromtimestamp(self.clock(), UTC).date()
        account = self._accounts.get(user)
        if account is None or account.day != today:
            account = self._accounts[user] = Account(today)
        self._accounts.move_to_end(user)
        while len(self._accounts) > ACCOUNTS:
            self._accounts.popitem(last=False)
        return account

    async def _read(self, user: str, account: Account) -> None:
        """Asks the database, for all who wait. What was added before is in its answer; what comes meanwhile is not."""
        before = account.added
        account.reading = trio.Event()
        try:
            account.stored = await self.store.spent_on(user, account.day) if self.store else 0.0
        except StorageDown:
            account.due = self.clock() + READ_AGAIN
        else:
            account.added -= before
            account.due = self.clock() + FRESH
        finally:
            account.reading.set()
            account.reading = None


def under_way(daily: float) -> UserError:
    """The refusal for now: what runs may cost all that is left."""
    return UserError(
        "over_budget",
        f"Your tasks under way may use up the rest of the budget of {daily:.2f} US dollars a day. "
        "Try again when some have ended.",
        retry_after=UNDER_WAY,
    )


def _cost(usage: Usage | None) -> float:
    return (usage.cost or 0.0) if usage else 0.0


def over_budget(daily: float, now: float) -> UserError:
    """The refusal: the next day of UTC brings a new budget."""
    return UserError(
        "over_budget",
        f"The budget of {daily:.2f} US dollars a day is used up. Wait for midnight UTC, or ask the operator for more.",
        retry_after=DAY - now % DAY,
    )
