"""When something recurs: each so many seconds, or by a line of cron. Pure; all times are Unix seconds, all days UTC's.

A line has five fields: minute, hour, day of the month, month, day of the week (0 or 7 is Sunday); each is `*`, a
number, a name (`jan`, `mon`), a range `a-b`, either with a step `/n`, or several of these with commas. As in cron,
when both days are restricted either of them will do. `@hourly`, `@daily`, `@weekly`, `@monthly` and `@yearly` are
lines, too.
"""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, datetime, timedelta
from typing import Protocol

from attrs import field, frozen, validators

LINES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
_MONTHS = dict(
    zip(("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), range(1, 13), strict=True)
)
_DAYS = dict(zip(("sun", "mon", "tue", "wed", "thu", "fri", "sat"), range(7), strict=True))
_LONGEST = 8 * 366
"""Days between two 29ths of February, at most."""


class Schedule(Protocol):
    def last(self, now: float) -> float:
        """The latest time at or before `now`."""
        ...

    def following(self, now: float) -> float:
        """The first time after `now`."""
        ...


@frozen
class Every:
    """Each `seconds`, aligned to the epoch."""

    seconds: float = field(validator=validators.gt(0.0))

    def last(self, now: float) -> float:
        return now // self.seconds * self.seconds

    def following(self, now: float) -> float:
        return self.last(now) + self.seconds


@frozen
class Line:
    """A line of cron; made by `parse`."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool

    def last(self, now: float) -> float:
        at = datetime.fromtimestamp(now, UTC)
        day = at.replace(hour=0, minute=0, second=0, microsecond=0)
        for back in range(_LONGEST):
            times = [moment for moment in self._times(day - timedelta(days=back)) if moment <= at]
            if times:
                return times[-1].timestamp()
        raise AssertionError("`parse` lets no line pass that never comes")

    def following(self, now: float) -> float:
        at = datetime.fromtimestamp(now, UTC)
        day = at.replace(hour=0, minute=0, second=0, microsecond=0)
        for ahead in range(_LONGEST):
            times = [moment for moment in self._times(day + timedelta(days=ahead)) if moment > at]
            if times:
                return times[0].timestamp()
        raise AssertionError("`parse` lets no line pass that never comes")

    def _times(self, day: datetime) -> list[datetime]:
        if day.month not in self.months or not self._fits(day):
            return []
        return [day.replace(hour=hour, minute=minute) for hour in sorted(self.hours) for minute in sorted(self.minutes)]

    def _fits(self, day: datetime) -> bool:
        by_date, by_name = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return by_date or by_name if self.either_day else by_date and by_name

    @property
    def possible(self) -> bool:
        """Whether the day of the month ever comes in one of the months."""
        return self.either_day or any(min(self.days) <= monthrange(2024, month)[1] for month in self.months)


def parse(line: str) -> Line:
    """Raises ValueError, with what is wrong."""
    fields = LINES.get(line.strip(), line).lower().split()
    if len(fields) != 5:
        raise ValueError(f"a line of cron has five fields, or is one of {', '.join(LINES)}; {line!r} is not")
    minutes, hours, days, months, weekdays = fields
    found = Line(
        _values(minutes, 0, 59),
        _values(hours, 0, 23),
        _values(days, 1, 31),
        _values(months, 1, 12, _MONTHS),
        frozenset(day % 7 for day in _values(weekdays, 0, 7, _DAYS)),
        either_day=not days.startswith("*") and not weekdays.startswith("*"),
    )
    if not found.possible:
        raise ValueError(f"{line!r} never comes")
    return found


def _values(text: str, low: int, high: int, names: dict[str, int] | None = None) -> frozenset[int]:
    return frozenset(value for part in text.split(",") for value in _part(part, low, high, names or {}))


def _part(text: str, low: int, high: int, names: dict[str, int]) -> range:
    span, slash, step = text.partition("/")
    first, dash, last = span.partition("-")
    try:
        start = low if first == "*" else _number(first, names)
        end = _number(last, names) if dash else high if slash or first == "*" else start
        by = int(step) if slash else 1
    except ValueError:
        raise ValueError(f"{text!r} is no number, name or range") from None
    if not low <= start <= end <= high or by < 1:
        raise ValueError(f"{text!r} is not within {low}-{high}")
    return range(start, end + 1, by)


def _number(word: str, names: dict[str, int]) -> int:
    return names[word] if word in names else int(word)
