"""The engine's news as events for the wire, each encoded once for all channels that it reaches.

A TaskServer sends one message object to all its subscribers; the first channel to handle it makes the event, and the
others find it here. May import `payloads` and `web.sockets`.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from engine.tasks.messages import TaskDurable, TaskHappened, TaskProgress, TaskText
from web.channels import payloads
from web.channels.payloads import TextTold
from web.sockets.event import Event, Merge

Told = TaskProgress | TaskText | TaskHappened | TaskDurable

_MOST = 64
"""News that are remembered: enough for those in flight, too few to matter."""

_recent: dict[tuple[int, str], tuple[Told, Event]] = {}


def event_of(news: Told, topic: str) -> Event:
    """The event that tells `news` on `topic`; the same one for the same object.

    The topic is given in the client's own spelling (Swift writes UUIDs in capitals): it finds its pushes by it.
    """
    key = (id(news), topic)
    found = _recent.get(key)
    if found is not None:
        return found[1]
    if len(_recent) >= _MOST:
        _recent.clear()
    event = _make(news, topic)
    # The news is kept beside its event: its id cannot be another's while it is.
    _recent[key] = (news, event)
    return event


def _make(news: Told, topic: str) -> Event:
    if isinstance(news, TaskProgress):
        return Event(topic, "progress", payloads.progress(news), Merge.NEWEST)
    if isinstance(news, TaskText):
        return TextDelta(topic, payloads.text_delta(news))
    if isinstance(news, TaskDurable):
        return Event(topic, "durable", payloads.durable(news))
    return Event(topic, *payloads.happened(news.event, news.task, news.durability))


class TextDelta(Event):
    """Text as it is generated; what waits for a slow client becomes one delta."""

    __slots__ = ()
    payload: TextTold

    def __init__(self, topic: str, payload: TextTold) -> None:
        super().__init__(topic, "text_delta", payload, Merge.JOIN)

    @property
    def weight(self) -> int:
        return len(self.payload.text) * 2

    def joined(self, later: Sequence[Event]) -> Event:
        text = "".join([self.payload.text, *(event.payload.text for event in later)])
        return TextDelta(self.topic, replace(self.payload, text=text, at=later[-1].payload.at))
