"""The process of a channel: runs the callbacks of one `Channel` and sends what they answer.

It is started by its Socket, linked to it, and joins after its init, so that a join that takes its time keeps nobody
waiting but its own topic: messages for the topic wait in its mailbox. May import `engine.otp` and `channel`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import field, frozen

from engine.otp import (
    Continue,
    GenServer,
    NoReply,
    Ok,
    Pid,
    Reason,
    Shutdown,
    Stop,
    self_,
    send,
)
from web.sockets.channel import Asked, Channel, Connection, End, MakeChannel, Refused, Reply
from web.sockets.frames import Ref
from web.sockets.lane import Lane
from web.sockets.pubsub import Intercepted


@frozen
class Said:
    """A message of the client's for a channel. What it says shows in no report. `weight`: see `Backlog`."""

    weight: int
    join_ref: Ref
    ref: Ref
    event: str
    payload: Any = field(repr=False)


@frozen
class Left:
    """The client leaves the topic; also the detail of the Shutdown that follows."""


@frozen
class Joined:
    """Tells the Socket that the join of channel `pid` was accepted and answered."""

    pid: Pid


@frozen
class CaughtUp:
    """Tells the Socket that a channel has handled most of what it was sent."""


@frozen
class _Join:
    params: Any = field(repr=False)


class ChannelServer(GenServer[Channel]):
    """Its state is the Channel itself. Ends with Shutdown(Refused(…)) when the join is refused."""

    hibernate_after: ClassVar[float | None] = 15.0

    async def init(
        self, make: MakeChannel, lane: Lane, connection: Connection, socket: Pid, params: Any
    ) -> Ok[Channel]:
        self.socket = socket
        return Ok(make(lane, connection), Continue(_Join(params)))

    async def handle_continue(self, message: object, state: Channel) -> NoReply[Channel] | Stop[Channel]:
        assert isinstance(message, _Join)
        response = await state.join(message.params)
        if isinstance(response, Refused):
            return Stop(Shutdown(response), state)
        state.connection.pubsub.subscribe(state.lane, state.intercepts)
        state.lane.answer_join(response)
        send(self.socket, Joined(self_()))
        return NoReply(state)

    async def handle_info(self, message: object, state: Channel) -> NoReply[Channel] | Stop[Channel]:
        match message:
            case Said():
                return await self._said(message, state)
            case Left():
                return Stop(Shutdown(message), state)
            case Intercepted(event, payload):
                return _after(await state.handle_out(event, payload), state)
        return _after(await state.handle_info(message), state)

    async def _said(self, message: Said, state: Channel) -> NoReply[Channel] | Stop[Channel]:
        state._asked = asked = Asked(message.join_ref, message.ref)
        answer = await state.handle_in(message.event, message.payload)
        state._asked = None
        if state.lane.handled(message.weight):
            send(self.socket, CaughtUp())
        if isinstance(answer, Reply):
            state.reply(asked, answer)
            if not state.lane.pending:
                state.lane.transport.flush()  # somebody waits for it, and nothing more is to go with it
            return NoReply(state)
        if isinstance(answer, End) and answer.reply is not None:
            state.reply(asked, answer.reply)
        return _after(answer, state)

    async def terminate(self, reason: Reason, state: Channel) -> None:
        await state.terminate(reason)

    def format_status(self, state: Channel) -> object:
        return f"{type(state).__name__} on {state.topic}"


def _after(answer: End | None, state: Channel) -> NoReply[Channel] | Stop[Channel]:
    return NoReply(state) if answer is None else Stop(answer.reason, state)
