"""What a channel writes through: one joined topic on one socket.

A Lane is to its channel what a port is to a process in Erlang: it may be used from the channel's own process, goes
straight to the transport without a hop through the Socket, and never waits. The Socket shuts it when the topic is
left, so that a handler that still runs can no longer be heard.

May import the wire and `transport`; knows no process.
"""

from __future__ import annotations

from typing import Any

from web.sockets.backlog import Backlog
from web.sockets.event import Event, Merge
from web.sockets.frames import Binary, Ref, Wire
from web.sockets.serializers import Serializer
from web.sockets.transport import Transport

MOST_HELD = 262_144
"""Bytes of joined text that are held for a slow client; then they go to the transport, whose limit closes it."""


class Lane:
    """Writes frames of one join. `join_ref` and `ref` are those of its phx_join, echoed verbatim.

    Until the join is answered pushes are kept back, for clients discard what comes before the reply. While the
    transport is congested, lossy and joinable events are kept back too, and melt into one another.
    """

    __slots__ = (
        "_before_reply",
        "_held",
        "_held_weight",
        "_lead",
        "_name",
        "backlog",
        "join_ref",
        "pending",
        "ref",
        "serializer",
        "shut",
        "topic",
        "transport",
    )

    def __init__(
        self,
        transport: Transport,
        serializer: Serializer,
        topic: str,
        join_ref: Ref,
        ref: Ref,
        backlog: Backlog | None = None,
    ) -> None:
        self.transport = transport
        self.backlog = backlog or Backlog()
        self.serializer = serializer
        self.topic = topic
        self.join_ref = join_ref
        self.ref = ref
        self.shut = False
        self.pending = 0
        """Weight of the client's messages that its channel has not handled yet."""
        # A join without a join_ref is named by its ref: clients find their pushes by it.
        self._name = ref if join_ref is None else join_ref
        self._lead = serializer.lead(self._name)
        self._before_reply: list[Event] | None = []
        self._held: dict[str, list[Event]] | None = None
        self._held_weight = 0

    # --- what the client says -------------------------------------------------------------------------

    def expect(self, size: int) -> int:
        """A message of `size` bytes is on its way to the channel; answers its weight."""
        weight = self.backlog.add(size)
        self.pending += weight
        return weight

    def handled(self, weight: int) -> bool:
        """The channel has dealt with a message; whether the socket should be told to read on."""
        self.pending -= weight
        return self.backlog.take(weight)

    # --- what it is told ------------------------------------------------------------------------------

    def push(self, event: Event) -> None:
        """Sends an event, now or as soon as it may go. Raises Unencodable."""
        event.tail(self.serializer)
        if self.shut:
            return
        if self._before_reply is not None:
            self._before_reply.append(event)
        elif event.merge is not Merge.NEVER and self.transport.congested:
            self._hold(event)
        else:
            self.release()
            self._send(event)

    def answer_join(self, response: Any) -> None:
        """The join was accepted: the reply, then what was pushed meanwhile."""
        waiting, self._before_reply = self._before_reply or [], None
        self.reply(self.join_ref, self.ref, "ok", response)
        for event in waiting:
            self.push(event)

    def reply(self, join_ref: Ref, ref: Ref, status: str, response: Any) -> None:
        """Answers a message. Raises Unencodable."""
        wire = self.serializer.reply(join_ref, ref, self.topic, status, response)
        if not self.shut:
            write(self.transport, wire)

    def end(self, event: str, payload: Any) -> None:
        """The last frame of this join (`phx_close`, `phx_error`): both its refs are the join's join_ref."""
        if not self.shut:
            self.release()
            self.shut = True
            write(self.transport, self.serializer.frame(self.join_ref, self.join_ref, self.topic, event, payload))

    def release(self) -> None:
        """Sends what was held, merged: room has come, or something must follow it."""
        if self._held is None:
            return
        held, self._held, self._held_weight = self._held, None, 0
        for first, *later in held.values():
            self._send(first.joined(later) if later else first)

    def _hold(self, event: Event) -> None:
        held = self._held = self._held or {}
        if event.merge is Merge.NEWEST or event.event not in held:
            held[event.event] = [event]
        else:
            held[event.event].append(event)
        self._held_weight += event.weight
        if self._held_weight > MOST_HELD:
            self.release()

    def _send(self, event: Event) -> None:
        tail = event.tail(self.serializer)
        if not isinstance(tail, Binary):
            self.transport.send_text(self._lead + tail)
        elif event.alone:
            self.transport.send_binary(self.serializer.push_binary(self._name, self.topic, event.event, event.payload))
        else:
            self.transport.send_binary(tail)


def write(transport: Transport, wire: Wire) -> None:
    if isinstance(wire, Binary):
        transport.send_binary(wire)
    else:
        transport.send_text(wire)
