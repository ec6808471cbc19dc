"""The process of a connection: reads frames, keeps what its client has joined, and starts and ends channels.

It owns the transport and is linked to its channels: it hears of their ends and tells the client, and when it goes
they go. What happens to a frame is decided in `rules`; a channel's own frames do not pass through here.

May import `engine.otp`, `transport` and the channels' machinery.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeAlias

from attrs import define, field, frozen

from engine.otp import (
    ExitSignal,
    GenServer,
    NoReply,
    Ok,
    Pid,
    Reason,
    Shutdown,
    StartFailed,
    Stop,
    exit,
    is_clean,
    self_,
    send,
)
from web.endpoint.faults import FaultLog
from web.sockets.backlog import Backlog
from web.sockets.channel import Connection, MakeChannel, Refused
from web.sockets.channel_server import CaughtUp, ChannelServer, Joined, Left, Said
from web.sockets.frames import CLOSE, ERROR, PHOENIX, BadFrame, Inbound, Ref
from web.sockets.lane import Lane, write
from web.sockets.router import Router
from web.sockets.rules import MOST_CHANNELS, Action, decide
from web.sockets.serializers import Serializer
from web.sockets.transport import CloseCode, Closed, Received, Transport, Writable


@frozen
class Protocol:
    """What all sockets of one endpoint share."""

    router: Router[MakeChannel]
    faults: FaultLog = field(factory=FaultLog, repr=False)
    most_channels: int = MOST_CHANNELS


@define
class Seat:
    """A topic that is joined, or about to be, or being left (then `leaving` is the leave's join_ref and ref)."""

    pid: Pid
    lane: Lane
    joined: bool = False
    leaving: tuple[Ref, Ref] | None = None


@define
class SocketState:
    """Seats by topic, and the topics of the channels' processes."""

    transport: Transport
    serializer: Serializer
    connection: Connection
    protocol: Protocol
    seats: dict[str, Seat] = field(factory=dict)
    topics: dict[Pid, str] = field(factory=dict)
    backlog: Backlog = field(factory=Backlog)


Next: TypeAlias = NoReply[SocketState] | Stop[SocketState]


class Socket(GenServer[SocketState]):
    """Traps exits: a channel's end is an event of the protocol."""

    trap_exit: ClassVar[bool] = True
    hibernate_after: ClassVar[float | None] = 15.0

    async def init(
        self, transport: Transport, serializer: Serializer, connection: Connection, protocol: Protocol
    ) -> Ok[SocketState]:
        return Ok(SocketState(transport, serializer, connection, protocol))

    async def handle_info(self, message: object, state: SocketState) -> Next:
        match message:
            case Received(frames):
                return await self._received(frames, state)
            case ExitSignal(reason=Shutdown("memory") as reason):
                state.transport.close(CloseCode.TRY_LATER, "out of memory")
                return Stop(reason, state)
            case ExitSignal(pid=pid, reason=reason) if pid is not None:
                _channel_ended(state, pid, reason)
            case Joined(pid):
                _joined(state, pid)
            case Writable():
                for seat in state.seats.values():
                    seat.lane.release()
            case CaughtUp():
                state.transport.resume()
            case Closed():
                # Not a normal end: channels are linked, and links pass over normal ends.
                return Stop(Shutdown("closed"), state)
        return NoReply(state)

    async def terminate(self, reason: Reason, state: SocketState) -> None:
        """An orderly end of the server; for a crash the transport itself says 1011."""
        if is_clean(reason):
            state.transport.close(CloseCode.RESTART, "restarting")

    def format_status(self, state: SocketState) -> object:
        return {"client": state.connection.upgrade.client, "topics": sorted(state.seats)}

    async def _received(self, frames: tuple[str | bytes, ...], state: SocketState) -> Next:
        for message in frames:
            try:
                frame = state.serializer.decode(message)
            except BadFrame as problem:
                state.protocol.faults.client("malformed_frame", state.connection.upgrade.client, str(problem))
                state.transport.close(CloseCode.CRASHED, "malformed frame")
                return Stop(Shutdown("malformed frame"), state)
            await self._act(frame, len(message), state)
        state.backlog.paused = state.backlog.full
        if not state.backlog.paused:
            state.transport.resume()
        return NoReply(state)

    async def _act(self, frame: Inbound, size: int, state: SocketState) -> None:
        seat = state.seats.get(frame.topic)
        known = state.protocol.router.match(frame.topic) if seat is None else None
        room = len(state.seats) < state.protocol.most_channels
        join_ref = seat.lane.join_ref if seat else None
        match decide(frame, seat is not None, join_ref, known is not None, room):
            case Action.DELIVER if seat:
                weight = seat.lane.expect(size)
                send(seat.pid, Said(weight, frame.join_ref, frame.ref, frame.event, frame.payload))
            case Action.HEARTBEAT:
                _reply(state, None, frame.ref, PHOENIX, "ok", {})
            case Action.JOIN:
                await _join(state, frame)
            case Action.REJOIN if seat:
                _replace(state, seat)
                await _join(state, frame)
            case Action.LEAVE if seat:
                seat.leaving = (frame.join_ref, frame.ref)
                send(seat.pid, Left())
            case Action.LEAVE_NOTHING:
                _reply(state, frame.join_ref, frame.ref, frame.topic, "ok", {})
            case Action.TOO_MANY:
                refusal = {"reason": "too many channels joined"}
                _reply(state, frame.join_ref, frame.ref, frame.topic, "error", refusal)
            case Action.UNMATCHED:
                _reply(state, None, frame.ref, frame.topic, "error", {"reason": "unmatched topic"})


# --- joining ------------------------------------------------------------------------------------------


async def _join(state: SocketState, frame: Inbound) -> None:
    make = state.protocol.router.match(frame.topic)
    assert make is not None
    lane = Lane(state.transport, state.serializer, frame.topic, frame.join_ref, frame.ref, state.backlog)
    try:
        pid = await ChannelServer.start_link(make, lane, state.connection, self_(), frame.payload)
    except StartFailed:
        lane.reply(frame.join_ref, frame.ref, "error", {"reason": "join crashed"})
        return
    state.seats[frame.topic] = Seat(pid, lane)
    state.topics[pid] = frame.topic


def _joined(state: SocketState, pid: Pid) -> None:
    topic = state.topics.get(pid)
    if topic is not None:
        state.seats[topic].joined = True


def _replace(state: SocketState, seat: Seat) -> None:
    """A second join of the topic: the first one is over for its client before its process has ended."""
    _forget(state, seat)
    _answer_leave(seat)
    seat.lane.end(CLOSE, {})
    exit(seat.pid, Shutdown("replaced"))


# --- ending -------------------------------------------------------------------------------------------


def _channel_ended(state: SocketState, pid: Pid, reason: Reason) -> None:
    topic = state.topics.get(pid)
    if topic is None:
        return
    seat = state.seats[topic]
    _forget(state, seat)
    if not seat.joined:
        _answer_failed_join(seat, reason)
    _answer_leave(seat)
    if seat.joined:
        clean = is_clean(reason) or seat.leaving is not None
        seat.lane.end(*((CLOSE, {}) if clean else (ERROR, {"reason": "channel_crash"})))
    seat.lane.shut = True


def _answer_failed_join(seat: Seat, reason: Reason) -> None:
    match reason:
        case Shutdown(Refused(response)):
            pass
        case Shutdown(Left()):
            return
        case _:
            response = {"reason": "join crashed"}
    seat.lane.reply(seat.lane.join_ref, seat.lane.ref, "error", response)


def _answer_leave(seat: Seat) -> None:
    if seat.leaving is not None:
        seat.lane.reply(*seat.leaving, "ok", {})


def _forget(state: SocketState, seat: Seat) -> None:
    """Frees the topic; what its channel had still to handle waits no more."""
    del state.seats[seat.lane.topic], state.topics[seat.pid]
    if seat.lane.handled(seat.lane.pending):
        state.transport.resume()


# --- reading and writing --------------------------------------------------------------------------------


def _reply(state: SocketState, join_ref: Ref, ref: Ref, topic: str, status: str, response: Any) -> None:
    write(state.transport, state.serializer.reply(join_ref, ref, topic, status, response))
