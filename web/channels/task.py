"""The channel of one task, `task:<uuid>`: what happened, what happens, and the few things a client may ask of it.

The channel subscribes at the task's TaskServer and is shown the state and what it missed in one answer; after that
news comes straight to its mailbox. What the client has been told is kept in a `Cursor`, which closes the gap that
a crash of the TaskServer may leave. The channel's own end never touches the task.

May import `engine.tasks` and `web.sockets`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from uuid import UUID

from attrs import frozen

from engine.errors import UserError
from engine.otp import Down, Ref, Shutdown, Timer, demonitor, is_clean, monitor, self_, send_after
from engine.ports import StorageDown
from engine.tasks import intake, lookup
from engine.tasks.events import TERMINAL, Actor, Responded
from engine.tasks.messages import Accepted, TaskDurable, TaskHappened, TaskProgress, TaskResumed, TaskText, View
from engine.tasks.state import Status, TaskState
from web.channels import payloads
from web.channels.cursor import Cursor, Step
from web.channels.house import ChannelHouse
from web.channels.outgoing import Told, event_of
from web.channels.requests import JoinTask, check_object, new_task, parse, repeats, task_id_of
from web.channels.troubles import TROUBLES, as_refusal
from web.sockets.channel import Channel, Connection, End, Refused, Reply, error, ok
from web.sockets.lane import Lane

CLOSING_DELAY = 1.0
"""Seconds between a task's last event and the end of its channel."""

PATIENCE = 5.0
"""Seconds that a crashed TaskServer has to come back and call its channels, before the channel looks for itself."""

NOBODY = UUID(int=0)

_ENDS_TEXT = (Responded, *TERMINAL)


@frozen
class _Finish:
    """The moment after the last event is over."""


@frozen
class _Look:
    """A TaskServer that crashed has not called: see what became of the task."""


class TaskChannel(Channel):
    """One client's view of one task. `status` is None while there is no such task."""

    def __init__(self, lane: Lane, connection: Connection, house: ChannelHouse) -> None:
        super().__init__(lane, connection)
        self.house = house
        self.runtime = house.runtime
        self.task_id = NOBODY
        self.owner = ""
        self.status: Status | None = None
        self.cursor = Cursor()
        self.server: Ref | None = None
        self.timer: Timer | None = None

    # --- joining and asking -----------------------------------------------------------------------------

    async def join(self, params: Any) -> Mapping[str, Any] | Refused:
        try:
            self.house.check_open()
            self.task_id = task_id_of(self.topic)
            return await self._first_look(parse(params or {}, JoinTask).last_seq)
        except TROUBLES as trouble:
            return Refused(as_refusal(trouble))

    async def _first_look(self, last_seq: int | None) -> Mapping[str, Any]:
        """While the database is away, who has seen nothing yet is let in: it may be about to create the task."""
        try:
            return await self._open(last_seq)
        except StorageDown:
            if last_seq:
                raise
            return payloads.joined(None) | {"unverified": True}

    async def handle_in(self, event: str, payload: Any) -> Reply | End | None:
        ask = _ASKS.get(event)
        if ask is None:
            return error({"reason": "unknown_event", "message": f"A task's topic knows {', '.join(_ASKS)}."})
        try:
            check_object(payload)
            return ok(await ask(self, payload))
        except TROUBLES as trouble:
            return error(as_refusal(trouble))

    async def _ping(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        return payload

    async def _get_state(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        last_seq = parse(payload, JoinTask).last_seq
        if self.status is None:
            # It may have been created elsewhere since the join: then this channel belongs to it from now on.
            return await self._open(last_seq)
        return payloads.joined(await lookup.view(self.runtime, self.task_id, last_seq))

    async def _generate(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        self.house.check_open()
        trace_parent = self.connection.upgrade.header("traceparent")
        wish = new_task(payload, self.identity.user, self.task_id, trace_parent)
        try:
            answer = await intake.accept(self.runtime, wish)
        except UserError as refused:
            # A client that lost the reply says it again; the id is the client's own, so it names one wish.
            before = await lookup.find(self.runtime, self.task_id) if refused.code == "task_exists" else None
            if before is None or not repeats(wish, before):
                raise
            answer = Accepted(before, lookup.durability(self.runtime, self.task_id), created=False)
        if answer.task.id == self.task_id and self.status is None:
            await self._catch_up()
        return payloads.accepted(answer)

    async def _cancel(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        task = await lookup.cancel(self.runtime, self._known(), self._actor)
        return self._status(task)

    async def _retry(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        self.house.check_open()
        task = await lookup.retry(self.runtime, self._known(), self._actor)
        self._set_timer(None)
        await self._catch_up()
        return self._status(task)

    def _status(self, task: TaskState) -> Mapping[str, Any]:
        return {"status": task.status.value, "durability": lookup.durability(self.runtime, task.id).value}

    def _known(self) -> UUID:
        if self.status is None:
            raise UserError("unknown_task", "There is no such task yet. Create it with llm_generate.")
        return self.task_id

    @property
    def _actor(self) -> Actor:
        return Actor.USER if self.owner == self.identity.user else Actor.OPERATOR

    # --- what happens ---------------------------------------------------------------------------------------

    async def handle_info(self, message: object) -> End | None:
        match message:
            case TaskProgress():
                self._tell(message)
            case TaskText():
                await self._text(message)
            case TaskHappened():
                await self._happened(message)
            case TaskDurable():
                self._tell(message)
            case TaskResumed():
                self._set_timer(None)
                await self._catch_up()
            case Down(ref=ref, reason=reason) if ref == self.server:
                await self._server_down(clean=is_clean(reason))
            case _Look():
                await self._catch_up()
            case _Finish():
                return End(Shutdown("finished"))
        return None

    async def _text(self, news: TaskText) -> None:
        match self.cursor.judge_text(news):
            case Step.NEXT:
                self._tell(self.cursor.unseen(news))
                self.cursor = self.cursor.after_text(news)
            case Step.GAP:
                await self._catch_up()

    async def _happened(self, news: TaskHappened) -> None:
        match self.cursor.judge(news.event):
            case Step.NEXT:
                self._tell(news)
                self.cursor = self.cursor.after(news.event)
                self.status = news.task.status
            case Step.GAP:
                await self._catch_up()
        if news.final:
            self._set_timer(CLOSING_DELAY, _Finish())

    async def _server_down(self, clean: bool) -> None:
        """A TaskServer ends when its task has; else it comes back, and says so."""
        self.server = None
        if not clean:
            self._set_timer(PATIENCE, _Look())
        elif self.timer is None:
            await self._catch_up()

    def _tell(self, news: Told) -> None:
        self.lane.push(event_of(news, self.topic))

    def _set_timer(self, seconds: float | None, message: object = None) -> None:
        """Replaces the timer; the channel has one at most."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = None if seconds is None else send_after(seconds, self_(), message)

    # --- following the task ---------------------------------------------------------------------------------

    async def _open(self, last_seq: int | None) -> Mapping[str, Any]:
        """Shows the client the task as it is and what it missed; later pages of that follow as ordinary pushes."""
        view = await self._subscribe(last_seq)
        if view is None:
            return payloads.joined(None)
        self.cursor = Cursor.at(view.task)
        last = view.events[-1].seq if view.events else view.task.seq
        while view.has_more and last < self.cursor.seq:
            page = await lookup.view(self.runtime, self.task_id, last)
            if page is None or not page.events:
                break
            last = self._tell_events(page, upto=self.cursor.seq)
        return payloads.joined(view)

    async def _catch_up(self) -> None:
        """Tells the client all that happened since its cursor: after a gap, a crash, a retry, or a creation."""
        view = await self._subscribe(self.cursor.seq)
        while view is not None:
            self._tell_events(view, upto=view.task.seq)
            if not view.has_more or not view.events:
                break
            view = await self._subscribe(self.cursor.seq)
        if view is None or view.reset:
            # The client joins again, and is given the whole state.
            raise LookupError("what the client missed is not to be had")
        self._tell_missing_text(view.task)
        if self.server is None and view.task.status.terminal:
            self._set_timer(CLOSING_DELAY, _Finish())

    def _tell_events(self, view: View, upto: int) -> int:
        """Pushes a view's events up to one; answers the last one's seq. Text stands before the event that ends it.

        Those beyond have happened since the client's state was taken, and come as news of their own.
        """
        wanted = [event for event in view.events if event.seq <= upto]
        for event in wanted:
            if isinstance(event.body, _ENDS_TEXT):
                self._tell_missing_text(view.task)
            self.push(*payloads.happened(event, view.task, view.durability(event.seq)))
            if self.cursor.judge(event) is Step.NEXT:
                self.cursor = self.cursor.after(event)
        return wanted[-1].seq if wanted else upto

    def _tell_missing_text(self, task: TaskState) -> None:
        text = self.cursor.missing_text(task, self.runtime.clock())
        if text is not None:
            self._tell(text)
            self.cursor = self.cursor.after_text(text)

    async def _subscribe(self, last_seq: int | None) -> View | None:
        """Makes the task's news come here. Raises UserError `unauthorized`.

        The channel must be known under the task before it subscribes, so that a TaskServer which crashes in between
        finds it again; under a task that is not there, or not this client's, it must never stand.
        """
        self._unsubscribe()
        task = await lookup.find(self.runtime, self.task_id)
        if task is None:
            return None
        if not self.identity.operator and task.user != self.identity.user:
            raise UserError("unauthorized", "This topic is not yours to join.")
        self.runtime.channels.register(("channel", self.task_id))
        view = await lookup.join(self.runtime, self_(), self.task_id, last_seq)
        if view is None:
            raise LookupError("the task was there a moment ago")
        self.owner, self.status = task.user, view.task.status
        pid = lookup.whereis(self.runtime, self.task_id)
        self.server = None if pid is None else monitor(pid)
        return view

    def _unsubscribe(self) -> None:
        self.runtime.channels.unregister(("channel", self.task_id))
        if self.server is not None:
            demonitor(self.server, flush=True)
            self.server = None


Ask = Callable[[TaskChannel, dict[str, Any]], Awaitable[Mapping[str, Any]]]

_ASKS: dict[str, Ask] = {
    "llm_generate": TaskChannel._generate,
    "cancel": TaskChannel._cancel,
    "retry": TaskChannel._retry,
    "get_state": TaskChannel._get_state,
    "ping": TaskChannel._ping,
}
