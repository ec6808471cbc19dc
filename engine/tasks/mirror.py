"""What a TaskServer does about a task that lives on another server: functions on a runtime and a `Live`.

A mirror learns durable events from the log, and progress and text from `relay`. Called by `server` alone, inside its
process; nothing of ours is under way for the task then.
"""

from __future__ import annotations

from attrs import evolve, frozen

from engine.ports import StorageDown
from engine.providers import protocol as provider
from engine.runtime import Runtime
from engine.tasks import attempt as rules
from engine.tasks import delivery, relay
from engine.tasks.events import Responded, TaskEvent
from engine.tasks.messages import TaskText
from engine.tasks.outbox import Outbox
from engine.tasks.relay import Mirrored
from engine.tasks.stash import Live
from engine.tasks.state import Status, TaskState

__all__ = ["Adopted", "CatchUp", "Mirrored", "Moved", "caught_up", "learnt", "moved"]


@frozen
class CatchUp:
    """The task's log goes on beyond `seq`, by another server's hand; void once this one has gone on, too."""

    seq: int


@frozen
class Moved:
    """The task lives on another server by now."""


@frozen
class Adopted:
    """The task lives here from now on: the server where it did is lost."""


def moved(runtime: Runtime, live: Live) -> Live:
    """The TaskServer is a mirror from now on; whoever watches here wants to see more."""
    if live.subscribers and not live.mirror:
        runtime.relay.watch(live.outbox.told)
    return evolve(live, mirror=True)


async def learnt(runtime: Runtime, live: Live, news: relay.Progress | relay.Text | relay.Log) -> Live:
    """What another server tells. Text and progress of an attempt are told once the log has come to it."""
    match news:
        case relay.Log(seq=seq):
            return live if seq <= live.task.seq else await caught_up(runtime, live)
        case relay.Progress(attempt=attempt) | relay.Text(attempt=attempt) if attempt > live.task.attempt:
            live = await caught_up(runtime, live)
    task = live.task
    if news.attempt != task.attempt or task.status is not Status.PROCESSING or not live.mirror:
        return live
    if isinstance(news, relay.Progress):
        progress = provider.Progress(news.progress, news.step, news.message, news.eta_seconds)
        return delivery.show(runtime, live, *rules.progress_step(task, progress, news.at))
    if news.offset > len(task.text):
        runtime.relay.watch(task)  # some was lost on the way
        return live
    step = rules.text_step(task, news.offset, news.text, news.at)
    return live if step is None else delivery.show(runtime, live, *step)


def _rest_of_text(told: TaskState, event: TaskEvent) -> TaskText | None:
    """What of an attempt's text has not come by the relay, when the event has all of it."""
    whole, has = event.body.text if isinstance(event.body, Responded) else "", len(told.text)
    if len(whole) <= has or not whole.startswith(told.text):
        return None
    return TaskText(told.id, event.attempt, has, whole[has:], event.at)


async def caught_up(runtime: Runtime, live: Live) -> Live:
    """Tells what another server has added to the log. What is live of the attempt stays."""
    told = live.outbox.told
    try:
        missed = await runtime.store.events(told.id, after=told.seq)
    except StorageDown:
        return live  # it is asked for again
    for news in delivery.as_news(told, missed):
        if (text := _rest_of_text(told, news.event)) is not None:
            delivery.tell(runtime, live, text)
        delivery.tell(runtime, live, news)
        told = news.task
    return evolve(live, task=told, outbox=Outbox(told), log=(), log_after=told.seq) if missed else live
