"""What is live goes on to the other servers: progress and text of a task that runs here and is watched there.

A task lives on one server; where else it is watched, a mirror of it stands (see `server`). A mirror asks for news by
`watch`; whoever runs the task then hands its news to `put`, and the process `run` sends them on, gathered for a tenth
of a second. News comes and goes through the database's notifications: it may be lost, and then the mirror asks again
from where it is; durable events are not carried, only the word that there are more of them in the log.

May import `engine.otp`, the stash and the messages.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from uuid import UUID

import msgspec
import structlog
import trio
from attrs import define, field, frozen

from engine.otp import Registry, Via, cast, init_ack, send
from engine.ports import Durability, StorageDown, TaskStore
from engine.tasks.homes import Homes
from engine.tasks.ids import key
from engine.tasks.messages import TaskDurable, TaskHappened, TaskNews, TaskProgress, TaskText
from engine.tasks.stash import Live, Stash
from engine.tasks.state import Status, TaskState, fold

log = structlog.get_logger(__name__)

GATHER = 0.1
"""Seconds between two sendings."""
WATCH_EVERY = 10.0
"""Seconds between two askings of a mirror; who has not asked for INTEREST seconds is sent nothing more."""
INTEREST = 30.0
MOST = 7_000
"""Bytes of one piece of news, encoded: a notification holds less than eight thousand."""
BEHIND = 256 * 1024
"""Code points of a task's text that may wait to be sent. What is beyond them is lost, and asked for again."""


class Watch(msgspec.Struct, tag="w", array_like=True, frozen=True):
    """Some server watches the task, and has so many code points of the text of this attempt."""

    task: UUID
    attempt: int
    offset: int


class Progress(msgspec.Struct, tag="p", array_like=True, frozen=True):
    task: UUID
    attempt: int
    progress: float
    status: str
    step: str | None
    message: str | None
    eta_seconds: float | None
    at: float


class Text(msgspec.Struct, tag="t", array_like=True, frozen=True):
    task: UUID
    attempt: int
    offset: int
    text: str
    at: float


class Log(msgspec.Struct, tag="l", array_like=True, frozen=True):
    """The task's log goes up to `seq`."""

    task: UUID
    seq: int


class WatchUsers(msgspec.Struct, tag="u", array_like=True, frozen=True):
    """Some server has channels of these users."""

    users: tuple[str, ...]


class Happened(msgspec.Struct, tag="h", array_like=True, frozen=True):
    """Events from `first` on have happened to this user's task, and are in its log."""

    task: UUID
    user: str
    first: int


class ModelsChanged(msgspec.Struct, tag="m", array_like=True, frozen=True):
    """The registry of models is not what it was."""


News = Watch | Progress | Text | Log | WatchUsers | Happened | ModelsChanged
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(News)


def encode(news: News) -> Iterator[str]:
    """One notification each; what is too long for one in several, or, where it cannot be parted, not at all."""
    encoded = _encoder.encode(news)
    if len(encoded) <= MOST:
        yield encoded.decode()
        return
    for half in _halves(news):
        yield from encode(half)


def _halves(news: News) -> tuple[News, ...]:
    match news:
        case Text(task, attempt, offset, text, at):
            half = len(text) // 2
            return Text(task, attempt, offset, text[:half], at), Text(task, attempt, offset + half, text[half:], at)
        case WatchUsers(users) if len(users) > 1:
            half = len(users) // 2
            return WatchUsers(users[:half]), WatchUsers(users[half:])
        case _:
            return ()


def decode(words: str) -> News | None:
    """None: what a newer version may have sent."""
    try:
        news: News = _decoder.decode(words)
    except msgspec.MsgspecError:
        return None
    return news


@frozen
class Mirrored:
    """Cast to a mirror: what the task's home has told."""

    news: Progress | Text | Log


@define(eq=False)
class Parcel:
    """A task's news that waits to be sent: the newest progress, the joined text, how far the log goes."""

    progress: TaskProgress | None = None
    text: list[TaskText] = field(factory=list)
    seq: int = 0
    size: int = 0

    def put(self, news: TaskNews) -> None:
        match news:
            case TaskProgress():
                self.progress = news
            case TaskText() if self.size < BEHIND:
                self.text.append(news)
                self.size += len(news.text)
            case TaskHappened(event=event):
                self.seq = max(self.seq, event.seq)
            case TaskDurable(seq=seq):
                self.seq = max(self.seq, seq)

    def open(self, task: UUID) -> Iterator[News]:
        """The log first: text and progress may be of an attempt that it tells of."""
        if self.seq:
            yield Log(task, self.seq)
        yield from _joined(self.text)
        if (p := self.progress) is not None:
            yield Progress(task, p.attempt, p.progress, p.status, p.step, p.message, p.eta_seconds, p.at)


def _joined(texts: Sequence[TaskText]) -> Iterator[Text]:
    """Text of one attempt that follows upon text, as one."""
    start = 0
    for end in range(1, len(texts) + 1):
        last = texts[end - 1]
        if end == len(texts) or (texts[end].attempt, texts[end].offset) != (last.attempt, last.offset + len(last.text)):
            first = texts[start]
            text = "".join(piece.text for piece in texts[start:end])
            yield Text(first.task_id, first.attempt, first.offset, text, last.at)
            start = end


@define(eq=False)
class Relay:
    """See the module."""

    homes: Homes
    names: Registry
    channels: Registry
    stash: Stash
    store: TaskStore
    watched: dict[UUID, float] = field(factory=dict)
    """Tasks that other servers watch, and until when (trio's clock)."""
    users: dict[str, float] = field(factory=dict)
    """Users who have channels on other servers, and until when."""
    other_models: trio.Event = field(factory=trio.Event)
    """Set when a server has changed the registry of models."""
    _changed_models: bool = False
    _happened: dict[UUID, Happened] = field(factory=dict)
    _heard: dict[UUID, Happened] = field(factory=dict)
    _new_users: set[str] = field(factory=set)
    _parcels: defaultdict[UUID, Parcel] = field(factory=lambda: defaultdict(Parcel))
    _asking: dict[UUID, Watch] = field(factory=dict)
    _mirrors: set[UUID] = field(factory=set)
    """What is watched here and lives elsewhere, as far as is known."""
    _something: trio.Event = field(factory=trio.Event)

    # --- what is told here ---

    def put(self, task_id: UUID, news: TaskNews) -> None:
        """News of a task in `watched`, to be sent on."""
        self._parcels[task_id].put(news)
        self._something.set()

    def happened(self, news: TaskHappened) -> None:
        """A durable event of a user in `users`, to be told of."""
        task = news.task
        if news.durability is Durability.DURABLE:
            self._happened.setdefault(task.id, Happened(task.id, task.user, news.event.seq))
            self._something.set()

    def watch_user(self, user: str) -> None:
        """A channel of this user is here."""
        if not self.homes.alone:
            self._new_users.add(user)
            self._something.set()

    def models_changed(self) -> None:
        """The registry of models was changed here."""
        self._changed_models = True
        self._something.set()

    def watch(self, told: TaskState) -> None:
        """A mirror that knows so much wants to know more."""
        self._mirrors.add(told.id)
        self._asking[told.id] = Watch(told.id, told.attempt, len(told.text))
        self._something.set()

    # --- what other servers say ---

    def heard(self, words: str) -> None:
        """A notification: from another server, or our own coming back."""
        match decode(words):
            case Watch() as wish:
                self._show(wish)
            case ModelsChanged():
                self.other_models.set()
            case WatchUsers(users):
                self.users |= dict.fromkeys(users, trio.current_time() + INTEREST)
            case Happened(task=task) as happened if self._wanted(happened):
                first = min(happened.first, self._heard.get(task, happened).first)
                self._heard[task] = Happened(task, happened.user, first)
                self._something.set()
            case Progress(task=task) | Text(task=task) | Log(task=task) as news:
                if self._concerns(self.stash.get(task), news):
                    cast(Via(self.names, key(task)), Mirrored(news))

    def _wanted(self, happened: Happened) -> bool:
        """Whether channels of the user here have not heard it from the task itself."""
        return happened.task not in self.stash and bool(self.channels.lookup(("user", happened.user)))

    def _concerns(self, live: Live | None, news: Progress | Text | Log) -> bool:
        """A mirror wants to know all; where the task lives, only what others have written is news."""
        if live is None:
            return False
        return news.seq > live.task.seq if isinstance(news, Log) else live.mirror

    def _show(self, wish: Watch) -> None:
        """Takes note of the wish, and sends what the other lacks, if the task lives here."""
        self.watched[wish.task] = trio.current_time() + INTEREST
        live = self.stash.get(wish.task)
        if live is not None and not live.mirror:
            for news in lacking(live.outbox.told, wish):
                self.put(wish.task, news)

    # --- sending ---

    async def run(self) -> None:
        """The body of the relay's process."""
        init_ack()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask_again)
            while True:
                await self._something.wait()
                self._something = trio.Event()
                await self._send()
                await self._tell_users()
                await trio.sleep(GATHER)

    async def _ask_again(self) -> None:
        while True:
            await trio.sleep(WATCH_EVERY)
            now = trio.current_time()
            self.watched = {task: until for task, until in self.watched.items() if until > now}
            self.users = {user: until for user, until in self.users.items() if until > now}
            mirrors, self._mirrors = self._mirrors, set()
            for live in map(self.stash.get, mirrors):
                if live is not None and live.mirror and live.subscribers:
                    self.watch(live.outbox.told)
            if not self.homes.alone:
                found = self.channels.select(lambda key, pid, value: key[0] == "user")
                self._new_users |= {key[1] for key, _, _ in found}
                self._something.set()

    async def _send(self) -> None:
        asking, self._asking = self._asking, {}
        parcels, self._parcels = self._parcels, defaultdict(Parcel)
        happened, self._happened = self._happened, {}
        users, self._new_users = tuple(self._new_users), set()
        news: list[News] = [*asking.values(), *happened.values()]
        if users:
            news.append(WatchUsers(users))
        if self._changed_models:
            self._changed_models = False
            news.append(ModelsChanged())
        for task, parcel in parcels.items():
            news += parcel.open(task)
        try:
            if news:
                await self.homes.tell([word for piece in news for word in encode(piece)])
        except StorageDown:
            log.debug("news for other servers is lost", pieces=len(news))

    async def _tell_users(self) -> None:
        """What has happened on other servers goes to the users' channels here."""
        heard, self._heard = self._heard, {}
        for happened in heard.values():
            try:
                log_of_task = await self.store.events(happened.task)
            except StorageDown:
                return
            state: TaskState | None = None
            for event in log_of_task:
                state = fold(state, event)
                if event.seq >= happened.first:
                    news = TaskHappened(event, state, Durability.DURABLE, final=state.status.terminal)
                    for pid, _ in self.channels.lookup(("user", happened.user)):
                        send(pid, news)


def lacking(told: TaskState, wish: Watch) -> Iterator[TaskNews]:
    """What a mirror lacks that knows as much as its wish says."""
    yield TaskDurable(told.id, told.seq, told.created_at)
    if told.status is not Status.PROCESSING:
        return
    offset = wish.offset if wish.attempt == told.attempt else 0
    if len(told.text) > offset:
        yield TaskText(told.id, told.attempt, offset, told.text[offset:], told.created_at)
    yield TaskProgress(
        told.id, told.attempt, told.progress, told.status, told.step, told.message, told.eta_seconds, told.created_at
    )
