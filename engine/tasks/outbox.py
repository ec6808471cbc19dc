"""The order in which a task's news goes out: nothing is told before its entry has a receipt, nothing overtakes.

Pure but for `Pending`, which takes the journal's receipts. A durable event waits here until the journal has it; live
news and answers that came after it wait behind it. While nothing waits, news does not come here at all.
"""

from __future__ import annotations

from collections.abc import Callable

import trio
from attrs import define, evolve, field, frozen

from engine.otp.calls import From
from engine.ports import Buffered, Committed, Durability, Entry, Receipt
from engine.tasks.messages import TaskDurable, TaskHappened, TaskNews, TaskProgress, TaskText
from engine.tasks.state import TaskState, fold, with_progress, with_text


@define(eq=False)
class Pending:
    """An entry on its way through the journal. It outlives its TaskServer, so that no receipt is lost in a crash."""

    entry: Entry
    wake: Callable[[], None] = field(repr=False)
    submitted: bool = False
    receipt: Receipt | None = None
    heard: trio.Event = field(factory=trio.Event)

    @property
    def refused(self) -> bool:
        """Whether the journal did not take it."""
        return self.receipt is not None and not isinstance(self.receipt, Committed | Buffered)

    def receive(self, receipt: Receipt) -> None:
        """Called by the journal, on the loop, with each receipt."""
        self.receipt = receipt
        self.heard.set()
        self.wake()


@frozen
class Answer:
    """A reply that must not be given before what stands ahead of it is told. None stands for the state told by then."""

    caller: From
    answer: object | None = None


Item = Pending | TaskProgress | TaskText | Answer
Effect = TaskNews | Answer


@frozen
class Outbox:
    """`told` is the state that others may know; `items` wait, in order; `unsaved` was told from memory."""

    told: TaskState
    items: tuple[Item, ...] = ()
    unsaved: tuple[Pending, ...] = ()

    @property
    def settled(self) -> bool:
        """Whether everything is told and in the database."""
        return not self.items and not self.unsaved

    @property
    def durable_seq(self) -> int | None:
        """The last seq that was told and is in the database; None: everything that was told is."""
        unsaved = (p.entry.events for p in self.unsaved if not isinstance(p.receipt, Committed))
        first = next((events[0].seq for events in unsaved if events), None)
        return None if first is None else first - 1


@frozen
class Released:
    """What may go out now. `refused` is an entry that the journal did not take: the truth is elsewhere."""

    outbox: Outbox
    effects: tuple[Effect, ...] = ()
    refused: Pending | None = None


def push(outbox: Outbox, item: Item) -> Outbox:
    """Puts an item in line. Live news that is not out yet is joined with its like, so that the line stays short."""
    items = outbox.items
    match items, item:
        case (*rest, TaskProgress() as last), TaskProgress() if last.attempt == item.attempt:
            items = tuple(rest)
        case (*rest, TaskText() as last), TaskText() if last.attempt == item.attempt:
            items, item = tuple(rest), _joined(last, item)
        case (*rest, TaskText() as text, TaskProgress() as last), TaskText() if text.attempt == item.attempt:
            items, item = (*rest, _joined(text, item)), last
    return Outbox(outbox.told, (*items, item), outbox.unsaved)


def release(outbox: Outbox, now: float) -> Released:
    """Takes from the line what no longer has to wait; `now` is Unix time."""
    told, items, unsaved = outbox.told, list(outbox.items), outbox.unsaved
    effects: list[Effect] = []
    while items:
        item = items[0]
        if isinstance(item, Pending):
            if not isinstance(item.receipt, Committed | Buffered):
                break
            unsaved = unsaved if isinstance(item.receipt, Committed) else (*unsaved, item)
            told = _tell_entry(told, item, effects)
        else:
            told = _tell(told, item, effects)
        del items[0]
    refused = next((p for p in (*unsaved, *items[:1]) if isinstance(p, Pending) and p.refused), None)
    return Released(_saved(Outbox(told, tuple(items), unsaved), effects, now), tuple(effects), refused)


def _tell_entry(told: TaskState, item: Pending, effects: list[Effect]) -> TaskState:
    durability = Durability.DURABLE if isinstance(item.receipt, Committed) else Durability.MEMORY
    for event in item.entry.events:
        # `told` is what the entry was made upon, except at a task's birth, where it is already its outcome
        told = fold(told, event) if event.seq > told.seq else told
        final = told.status.terminal and durability is Durability.DURABLE
        effects.append(TaskHappened(event, told, durability, final))
    return told


def _tell(told: TaskState, item: TaskProgress | TaskText | Answer, effects: list[Effect]) -> TaskState:
    match item:
        case TaskProgress():
            told = with_progress(told, item.progress, item.step, item.message, item.eta_seconds)
        case TaskText():
            told = with_text(told, item.text)
        case Answer(caller, None):
            item = Answer(caller, told)
    effects.append(item)
    return told


def _saved(outbox: Outbox, effects: list[Effect], now: float) -> Outbox:
    """Once the last entry that was told from memory is in the database, that is news."""
    if not outbox.unsaved:
        return outbox
    unsaved = tuple(p for p in outbox.unsaved if not isinstance(p.receipt, Committed))
    if unsaved == outbox.unsaved:
        return outbox
    if not unsaved:
        effects.append(TaskDurable(outbox.told.id, outbox.unsaved[-1].entry.task.seq, now))
    return evolve(outbox, unsaved=unsaved)


def _joined(first: TaskText, second: TaskText) -> TaskText:
    return evolve(second, offset=first.offset, text=first.text + second.text)
