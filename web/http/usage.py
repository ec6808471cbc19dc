"""What a user's tasks have used and cost. `UsageRoutes` is made by the application, over the store."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any

from attrs import asdict, define

from persistence.usage import DayOfUse, UsageStore
from web.http.body import bounded_int
from web.http.exchange import Answer, Ask, json
from web.http.house import House
from web.http.route import Parameter, Route
from web.http.tasks import owner

MOST_DAYS = 366
FIGURES = ("input_tokens", "output_tokens", "predict_seconds", "cost")


@define(eq=False)
class UsageRoutes:
    """The call, over the store that answers it."""

    store: UsageStore

    @property
    def routes(self) -> tuple[Route, ...]:
        days = {"type": "integer", "minimum": 1, "maximum": MOST_DAYS, "default": 30}
        return (
            Route(
                "GET",
                "/api/usage",
                self.usage,
                "What was used and what it cost, by day and model",
                answer="UsageReport",
                parameters=(
                    Parameter("days", days, "How many days of UTC, today included."),
                    Parameter("user", {"type": "string"}, "Whose usage; other users' for operators only."),
                ),
                refusals=("invalid_request", "forbidden", "storage_down"),
                tag="users",
            ),
        )

    async def usage(self, house: House, ask: Ask) -> Answer:
        """Each attempt counts on the day (UTC) on which it ended. Figures that no attempt told are null."""
        user = owner(ask, ask.query.get("user"))
        days = bounded_int(ask.query.get("days"), "days", 30, 1, MOST_DAYS)
        first = first_day(house.runtime.clock(), days)
        used = await self.store.since(user, first)
        return json(report(user, first, used, house.runtime.budgets.daily))


def first_day(now: float, days: int) -> date:
    """The first of `days` days of UTC that end with today's."""
    return datetime.fromtimestamp(now, UTC).date() - timedelta(days=days - 1)


def report(user: str, first: date, used: Iterable[DayOfUse], daily_budget: float = 0.0) -> dict[str, Any]:
    """The answer's body."""
    rows = [asdict(row) | {"day": row.day.isoformat()} for row in used]
    return {
        "user": user,
        "since": first.isoformat(),
        "daily_budget": daily_budget or None,
        "usage": rows,
        "total": total(rows),
    }


def total(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The sums of what is known. Tasks are left out: one that ran on two days stands in both."""
    sums: dict[str, Any] = {"attempts": 0, **dict.fromkeys(FIGURES)}
    for row in rows:
        for name in sums:
            if row[name] is not None:
                sums[name] = (sums[name] or 0) + row[name]
    return sums
