"""What a socket does with a frame, given what it has joined: the rules of the protocol as one pure function.

The order of the rules is that of phoenix's `lib/phoenix/socket.ex`. `socket` carries the actions out.
"""

from __future__ import annotations

from enum import Enum, auto

from web.sockets.frames import HEARTBEAT, JOIN, LEAVE, PHOENIX, Inbound, Ref

MOST_CHANNELS = 100
"""Topics that one socket may have joined at a time."""


class Action(Enum):
    """What to do with a frame."""

    HEARTBEAT = auto()
    UNMATCHED = auto()
    TOO_MANY = auto()
    JOIN = auto()
    REJOIN = auto()
    """The topic is joined already: the old channel ends, whatever becomes of the new join."""
    LEAVE = auto()
    LEAVE_NOTHING = auto()
    DELIVER = auto()
    IGNORE = auto()
    """It is for a join that is over; its client expects no answer."""


def decide(frame: Inbound, joined: bool, join_ref: Ref, known: bool, room: bool) -> Action:
    """`joined`: whether the topic is, with `join_ref`. `known`: a pattern fits it. `room`: another may be joined."""
    if frame.topic == PHOENIX:
        return Action.HEARTBEAT if frame.event == HEARTBEAT else Action.UNMATCHED
    if frame.event == JOIN:
        return _join(joined, known, room)
    if not joined:
        return Action.LEAVE_NOTHING if frame.event == LEAVE else Action.UNMATCHED
    if frame.join_ref is not None and frame.join_ref != join_ref:
        return Action.IGNORE
    return Action.LEAVE if frame.event == LEAVE else Action.DELIVER


def _join(joined: bool, known: bool, room: bool) -> Action:
    if joined:
        return Action.REJOIN
    if not known:
        return Action.UNMATCHED
    return Action.JOIN if room else Action.TOO_MANY
