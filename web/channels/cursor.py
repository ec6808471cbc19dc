"""What a client has been shown of a task, and what a piece of news adds to it. Pure.

A TaskServer may tell something twice, or leave a gap, when it crashed and was restarted in between. The cursor turns
that into what the protocol promises: every durable event once, in order; text without an overlap or a hole.
"""

from __future__ import annotations

from enum import Enum, auto

from attrs import evolve, frozen

from engine.tasks import events as ev
from engine.tasks.events import TaskEvent
from engine.tasks.messages import TaskText
from engine.tasks.state import TaskState


class Step(Enum):
    """How a piece of news stands to the cursor."""

    NEXT = auto()
    KNOWN = auto()
    GAP = auto()


@frozen
class Cursor:
    """`seq` is the last durable event that was told; `offset` the code points of text told of attempt `attempt`."""

    seq: int = 0
    attempt: int = 0
    offset: int = 0

    @classmethod
    def at(cls, task: TaskState) -> Cursor:
        """The cursor of a client that has just been given the whole state."""
        return cls(task.seq, task.attempt, len(task.text))

    def judge(self, event: TaskEvent) -> Step:
        if event.seq <= self.seq:
            return Step.KNOWN
        return Step.NEXT if event.seq == self.seq + 1 else Step.GAP

    def after(self, event: TaskEvent) -> Cursor:
        """The cursor when `event`, the next one, has been told."""
        match event.body:
            case ev.Started():
                same = event.attempt == self.attempt
                return Cursor(event.seq, event.attempt, self.offset if same else 0)
            case ev.Reset() | ev.Requeued():
                return evolve(self, seq=event.seq, offset=0)
        return evolve(self, seq=event.seq)

    def judge_text(self, news: TaskText) -> Step:
        """KNOWN: wholly told before, or of an attempt that is over. Its beginning may overlap (`unseen`)."""
        if news.attempt != self.attempt:
            return Step.KNOWN if news.attempt < self.attempt else Step.GAP
        if news.offset > self.offset:
            return Step.GAP
        return Step.KNOWN if news.offset + len(news.text) <= self.offset else Step.NEXT

    def unseen(self, news: TaskText) -> TaskText:
        """The part of `news` that was not told; `news` itself when that is all of it."""
        told = self.offset - news.offset
        return news if told == 0 else evolve(news, offset=self.offset, text=news.text[told:])

    def after_text(self, news: TaskText) -> Cursor:
        return evolve(self, offset=news.offset + len(news.text))

    def missing_text(self, task: TaskState, at: float) -> TaskText | None:
        """What `task` has of the attempt's text beyond what was told."""
        if task.attempt != self.attempt or len(task.text) <= self.offset:
            return None
        return TaskText(task.id, task.attempt, self.offset, task.text[self.offset :], at)
