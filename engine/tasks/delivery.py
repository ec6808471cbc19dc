"""How a TaskServer's decisions leave it: into the journal, to its subscribers, to the user's own channels.

Functions on a runtime and a `Live`; called by `server` alone, inside its process. The order is `outbox`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from attrs import evolve, frozen

from engine.otp import Via, cast, reply, self_, send, send_after
from engine.ports import Durability, Entry, JournalFull
from engine.runtime import Runtime
from engine.tasks import observed
from engine.tasks.events import TaskEvent
from engine.tasks.ids import key
from engine.tasks.messages import Refusal, TaskHappened, TaskNews, TaskProgress, TaskText
from engine.tasks.outbox import Answer, Outbox, Pending, Released, push, release
from engine.tasks.stash import Live
from engine.tasks.state import TaskState, fold


@frozen
class ReceiptCame:
    """Cast to a TaskServer: the journal has spoken about one of its entries."""


@frozen
class SubmitAgain:
    """To itself: the journal was full; the time it named has come."""


def pending(runtime: Runtime, entry: Entry) -> Pending:
    """An entry whose receipts wake the task's TaskServer, whichever process that is by then."""
    return Pending(entry, partial(cast, Via(runtime.names, key(entry.task.id)), ReceiptCame()))


def unborn(runtime: Runtime, entry: Entry, told: TaskState | None = None) -> Live:
    """The state of a TaskServer whose life begins with `entry`; `told` is what was known of the task before."""
    before = 0 if told is None else told.seq
    return Live(entry.task, Outbox(told or entry.task, (pending(runtime, entry),)), log_after=before)


def submit(runtime: Runtime, live: Live, entry: Entry) -> Live:
    """Hands an entry to the journal and puts its events in line, behind what waits already."""
    live = evolve(live, task=entry.task, outbox=push(live.outbox, pending(runtime, entry)))
    submit_waiting(runtime, live.outbox)
    return live


def submit_waiting(runtime: Runtime, outbox: Outbox) -> None:
    """Submits what is not submitted yet, in order; a full journal is asked again when it says."""
    for item in outbox.items:
        if isinstance(item, Pending) and not item.submitted:
            try:
                runtime.journal.submit(item.entry, item.receive)
            except JournalFull as full:
                send_after(full.retry_after, self_(), SubmitAgain())
                return
            item.submitted = True


def show(runtime: Runtime, live: Live, task: TaskState, news: TaskProgress | TaskText) -> Live:
    """Tells at once what needs no receipt, unless something before it still waits for one."""
    outbox = live.outbox
    if outbox.items:
        return _with(live, task, push(outbox, news))
    tell(runtime, live, news)
    if not live.mirror:  # what is live elsewhere is saved there
        runtime.snapshots.dirty(task)
    return _with(live, task, Outbox(task, (), outbox.unsaved))


def let_go(runtime: Runtime, live: Live) -> tuple[Live, Pending | None]:
    """Tells what may be told by now. With it comes the entry that the journal refused, if there is one."""
    released = release(live.outbox, runtime.clock())
    for effect in released.effects:
        if isinstance(effect, Answer):
            reply(effect.caller, effect.answer)
        else:
            tell(runtime, live, effect)
            if live.mirror:  # an order was given here: where the task lives they do not know yet
                runtime.relay.put(live.task.id, effect)
    if released.outbox.told is not live.outbox.told:
        runtime.snapshots.dirty(released.outbox.told)
    return _after(live, released), released.refused


@frozen
class Promised:
    """Answers that were promised upon entries that were refused: those refused with them, those still to be given."""

    refused: tuple[object, ...]
    kept: tuple[Answer, ...]


def refuse_waiting(outbox: Outbox, refusal: Refusal) -> Promised:
    """Refuses the answers that were promised upon refused entries; those that want the state keep waiting for it."""
    answers = [item for item in outbox.items if isinstance(item, Answer)]
    refused = [item for item in answers if item.answer is not None]
    for item in refused:
        reply(item.caller, refusal)
    return Promised(tuple(item.answer for item in refused), tuple(item for item in answers if item.answer is None))


def as_news(told: TaskState, events: tuple[TaskEvent, ...]) -> Iterator[TaskHappened]:
    """Events from the store as the news they would have been, for those who were told the state `told`."""
    for event in events:
        told = fold(told, event)
        yield TaskHappened(event, told, Durability.DURABLE, final=told.status.terminal)


def _after(live: Live, released: Released) -> Live:
    told = tuple(effect.event for effect in released.effects if isinstance(effect, TaskHappened))
    return evolve(live, outbox=released.outbox, log=live.log + told)


def tell(runtime: Runtime, live: Live, news: TaskNews) -> None:
    """Sends news to the task's subscribers, and what lasts to its user's channels, too."""
    for subscriber in live.subscribers:
        send(subscriber.pid, news)
    if live.task.id in runtime.relay.watched and not live.mirror:
        runtime.relay.put(live.task.id, news)
    if isinstance(news, TaskHappened):
        if runtime.spans.on and news.task.status.terminal and not live.mirror:
            observed.told(runtime.spans, news, len(live.subscribers), runtime.clock())
        if news.task.user in runtime.relay.users and not live.mirror:
            runtime.relay.happened(news)
        for pid, _ in runtime.channels.lookup(("user", news.task.user)):
            send(pid, news)


def _with(s: Live, task: TaskState, outbox: Outbox) -> Live:
    """As `evolve`, quicker: this runs at every token."""
    return Live(task, outbox, s.log, s.log_after, s.worker, s.subscribers, s.crashes, s.started, s.mirror)
