"""What users have spent today, kept in memory, and whether they may begin more: a ledger in front of the database.

A user's account is read when they are first met and again after a minute, since another server may spend for them, too;
in between, attempts that end are added to it. So nearly every check is a look into a dictionary. An attempt counts once
it has ended: what runs at the moment, or is just being written, is not in the sum, and a task that passes the budget in
its middle runs to its end.

May import the ports and the events' data.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, date, datetime

import trio
from attrs import define, field

from engine.errors import UserError
from engine.ports import Spending, StorageDown
from engine.tasks.events import Usage

DAY = 24 * 3600.0
FRESH = 60.0
"""Seconds for which what was read is believed."""
READ_AGAIN = 5.0
"""Seconds until a database that was away is asked again; what is known in memory counts meanwhile."""
ACCOUNTS = 10_000


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

    async def check(self, user: str) -> None:
        """Whether the user may begin a task. Raises UserError: `over_budget`, with `retry_after` until midnight UTC."""
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


def _cost(usage: Usage | None) -> float:
    return (usage.cost or 0.0) if usage else 0.0


def over_budget(daily: float, now: float) -> UserError:
    """The refusal: the next day of UTC brings a new budget."""
    return UserError(
        "over_budget",
        f"The budget of {daily:.2f} US dollars a day is used up. Wait for midnight UTC, or ask the operator for more.",
        retry_after=DAY - now % DAY,
    )
