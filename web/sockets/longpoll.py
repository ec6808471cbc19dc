"""Sockets for clients that cannot keep a WebSocket: the same Socket process behind a queue that HTTP requests empty.

A session is a transport like any other; its token is the client's only claim to it. Every answer has HTTP status 200
and says in its JSON how things stand (`Poll`), as phoenix's clients expect. May import `engine.otp` and the door.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl, urlencode

import msgspec
import trio
from attrs import evolve

from engine.otp import (
    ChildSpec,
    Down,
    Exit,
    Pid,
    Start,
    StartFailed,
    init_ack,
    monitor,
    receive,
    self_,
    send,
    send_after,
)
from web.endpoint.roster import Roster
from web.sockets.door import Door, Refusal
from web.sockets.transport import Accept, CloseCode, Closed, News, Received, Upgrade

WINDOW = 10.0
"""Seconds that a poll waits for something to answer; a session dies 1.5 windows after its last poll."""
MOST_LINES = 100
MOST_SESSIONS = 10_000
MOST_QUEUED = 1_048_576
"""Bytes that wait for a poll; a client that lets more gather is closed (1013)."""
STRAINED = 65_536
ABNORMAL = 1006

_SWEEP = object()

GONE, NOTHING_YET, DENIED, TOO_SLOW, FULL = 410, 204, 403, 408, 503


class Poll(msgspec.Struct, omit_defaults=True):
    """The answer to a poll: 200 with messages, 204 without, 410 with the token of a new session, 403, 408."""

    status: int
    token: str | None = None
    messages: list[str] = msgspec.field(default_factory=list)


class PollTransport:
    """See `web.sockets.transport.Transport`."""

    def __init__(self, upgrade: Upgrade, accept: Accept) -> None:
        self.upgrade = upgrade
        self.accept = accept
        self.token = secrets.token_urlsafe(24)
        self.polled_at = trio.current_time()
        self.owner: Pid | None = None
        self._end: Closed | None = None
        self._queue: list[str] = []
        self._queued = 0
        self._news = trio.Event()
        self._busy = False

    # --- Transport ------------------------------------------------------------------------------------

    @property
    def congested(self) -> bool:
        return self._queued > STRAINED

    @property
    def closed(self) -> bool:
        return self._end is not None

    def send_text(self, utf8: bytes) -> None:
        if self._end is not None:
            return
        self._queue.append(utf8.decode())
        self._queued += len(utf8)
        if self._queued > MOST_QUEUED:
            self.close(CloseCode.TRY_LATER, "too slow")
        self._changed()

    def send_binary(self, data: bytes) -> None:
        """Nothing: phoenix's long-polling clients have no way to be given bytes."""

    def flush(self) -> None:
        """Nothing: the client has to ask."""

    def resume(self) -> None:
        self._busy = False
        self._changed()

    def close(self, code: int, reason: str = "") -> None:
        if self._end is None:
            self._end = Closed(code, reason)
            self._tell(self._end)
            self._changed()

    def abort(self) -> None:
        self.close(ABNORMAL)

    def _tell(self, news: News) -> None:
        if self.owner is not None:
            send(self.owner, news)

    def _changed(self) -> None:
        self._news.set()
        self._news = trio.Event()

    # --- the client's requests --------------------------------------------------------------------------

    async def poll(self, window: float) -> list[str]:
        """What has gathered, or the first that comes within the window (seconds)."""
        self.polled_at = trio.current_time()
        with trio.move_on_after(window):
            while not self._queue and self._end is None:
                await self._news.wait()
        self.polled_at = trio.current_time()
        messages, self._queue, self._queued = self._queue, [], 0
        return messages

    async def deliver(self, frames: tuple[str | bytes, ...], window: float) -> bool:
        """Hands frames to the Socket; False when it has not dealt with what came before within the window."""
        self.polled_at = trio.current_time()
        with trio.move_on_after(window) as patience:
            await self._until_idle()
            self._busy = True
            self._tell(Received(frames))
            await self._until_idle()
        return not patience.cancelled_caught

    async def _until_idle(self) -> None:
        while self._busy and self._end is None:
            await self._news.wait()


class LongPolls:
    """The sessions of one server, and the process that ends those whose client or Socket has gone."""

    def __init__(self, door: Door, roster: Roster, window: float = WINDOW) -> None:
        self.door = door
        self.roster = roster
        self.window = window
        self.name = "longpoll"
        self._sessions: dict[str, PollTransport] = {}

    def spec(self) -> ChildSpec:
        return ChildSpec(id=self.name, start=Start.process(self._run, name=self.name))

    # --- requests -----------------------------------------------------------------------------------------

    async def get(self, upgrade: Upgrade) -> Poll:
        """Answers a poll; without a live session, opens one."""
        session = self._session(upgrade)
        if session is None:
            return await self._open(upgrade)
        messages = await session.poll(self.window)
        if messages:
            return Poll(200, session.token, messages)
        return Poll(GONE if session.closed else NOTHING_YET, session.token)

    async def post(self, upgrade: Upgrade, body: bytes) -> Poll:
        """Takes frames, one a line. Lines past the hundredth are ignored."""
        session = self._session(upgrade)
        if session is None or session.closed:
            return Poll(GONE)
        frames = tuple(frames_of(body.split(b"\n")[:MOST_LINES]))
        dealt_with = not frames or await session.deliver(frames, self.window)
        return Poll(200 if dealt_with else TOO_SLOW, session.token)

    def _session(self, upgrade: Upgrade) -> PollTransport | None:
        return self._sessions.get(session_token(upgrade) or "")

    async def _open(self, upgrade: Upgrade) -> Poll:
        accept = self.door.decide(without_session(upgrade))
        if isinstance(accept, Refusal):
            return Poll(DENIED)
        if len(self._sessions) >= MOST_SESSIONS or self.roster.refusal(accept):
            return Poll(FULL)
        session = PollTransport(upgrade, accept)
        try:
            session.owner = await accept.start(session)
        except (Exit, StartFailed):
            return Poll(FULL)
        self._sessions[session.token] = session
        self.roster.add(session)
        send(self.name, session)
        return Poll(GONE, session.token)

    # --- the process ----------------------------------------------------------------------------------------

    async def _run(self) -> None:
        owners: dict[Any, PollTransport] = {}
        for session in self._sessions.values():
            self._watch(session, owners)
        init_ack()
        send_after(self.window / 4, self_(), _SWEEP)
        while True:
            match await receive():
                case PollTransport() as session:
                    self._watch(session, owners)
                case Down(ref=ref):
                    self._end(owners.pop(ref))
                case message if message is _SWEEP:
                    self._sweep()
                    send_after(self.window / 4, self_(), _SWEEP)

    def _watch(self, session: PollTransport, owners: dict[Any, PollTransport]) -> None:
        assert session.owner is not None
        owners[monitor(session.owner)] = session

    def _end(self, session: PollTransport) -> None:
        session.close(CloseCode.CRASHED)
        self.roster.remove(session)
        self._sessions.pop(session.token, None)

    def _sweep(self) -> None:
        oldest = trio.current_time() - 1.5 * self.window
        for session in list(self._sessions.values()):
            if session.polled_at < oldest:
                session.abort()


# --- reading requests -----------------------------------------------------------------------------------


def frames_of(lines: Iterable[bytes]) -> Iterable[str | bytes]:
    """Frames from lines: JSON as it is, everything else is bytes in base64. Of what is neither the Socket
    is given empty bytes, which are no frame, and ends."""
    for line in lines:
        if not line.strip():
            continue
        try:
            yield line.decode() if line[:1] in b"[{" else base64.b64decode(line, validate=True)
        except (UnicodeDecodeError, binascii.Error):
            yield b""


def session_token(upgrade: Upgrade) -> str | None:
    """The header wins over the query; there, the last `token`, for the client adds it behind its own parameters."""
    given = [upgrade.header("x-phoenix-longpoll-token"), *reversed(_tokens(upgrade))]
    return next((token for token in given if token), None)


def without_session(upgrade: Upgrade) -> Upgrade:
    """The request without the token of a session that is gone, where another token stands before it."""
    if len(_tokens(upgrade)) < 2:
        return upgrade
    pairs = parse_qsl(upgrade.query, keep_blank_values=True)
    last = max(index for index, (name, _) in enumerate(pairs) if name == "token")
    return evolve(upgrade, query=urlencode(pairs[:last] + pairs[last + 1 :]))


def _tokens(upgrade: Upgrade) -> list[str]:
    if upgrade.query.count("&") > 100:
        return []
    return [value for name, value in parse_qsl(upgrade.query) if name == "token"]
