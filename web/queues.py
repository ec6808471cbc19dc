"""Queues as the settings write them: `gpu=2 global=8 rate=100/60, slow=1 timeout=600`. Pure.

First the name and how many attempts run at once on each server; then, after spaces, what else binds the queue:
`global` (at once over all servers), `rate` (starts in so many seconds, over all servers), `timeout` (seconds an attempt
may take), `max_wait` (seconds; who would wait longer is refused).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from engine.errors import UserError
from engine.jobs.config import QueueConfig, Rate

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,49}")
_LIMIT = re.compile(r"[1-9]\d{0,3}")
_HOW = "Queues are written as name=4, with commas between them; options: name=4 global=8 rate=100/60 timeout=600."


def _rate(text: str) -> Rate:
    allowed, _, period = text.partition("/")
    return Rate(int(allowed), float(period or 1))


_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "global": ("global_limit", int),
    "rate": ("rate", _rate),
    "timeout": ("timeout", float),
    "max_wait": ("max_wait", float),
}


def read_queues(text: str, usual: QueueConfig) -> dict[str, QueueConfig]:
    """Configurations by name, with `usual` for what is left open. Raises UserError."""
    return dict(_queue(part, usual) for part in filter(None, (part.strip() for part in text.split(","))))


def _queue(part: str, usual: QueueConfig) -> tuple[str, QueueConfig]:
    first, *options = part.split()
    name, _, limit = first.partition("=")
    if not _NAME.fullmatch(name) or not _LIMIT.fullmatch(limit):
        raise UserError("bad_settings", f"{part!r} is no queue. {_HOW}")
    if name == "housekeeping":
        raise UserError("bad_settings", "The queue housekeeping is the house's own.")
    try:
        return name, _with(usual, int(limit), options)
    except (KeyError, ValueError, ZeroDivisionError):
        raise UserError("bad_settings", f"{part!r} cannot be read. {_HOW}") from None


def _with(usual: QueueConfig, limit: int, options: list[str]) -> QueueConfig:
    given: dict[str, Any] = {"max_waiting": usual.max_waiting, "user_quota": usual.user_quota}
    for option in options:
        word, _, value = option.partition("=")
        name, read = _OPTIONS[word]
        given[name] = read(value)
    return QueueConfig(limit, **given)
