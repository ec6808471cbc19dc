"""What travels in mailboxes, and the requests that callers make.

Frozen data. `Cast` and `Call` are the envelopes of the engine itself; everything else is seen by user code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from attrs import define, frozen

from engine.otp.pid import Pid, Ref
from engine.otp.reasons import Reason

if TYPE_CHECKING:
    from engine.otp.calls import From

A = TypeVar("A")


class Request(Generic[A]):
    """What a call asks. Subclass it as a frozen attrs class; A is the type of the answer:

    >>> from attrs import frozen
    >>> @frozen
    ... class Add(Request[int]):
    ...     amount: int
    """

    __slots__ = ()


@frozen
class Down:
    """The monitored process ended (or did not exist: NOPROC). Comes once for each monitor."""

    ref: Ref
    pid: Pid | None
    reason: Reason


@frozen
class ExitSignal:
    """A linked process ended, or somebody called `exit`, and this process traps exits."""

    pid: Pid | None
    reason: Reason


@frozen
class Hibernate:
    """`then=HIBERNATE`: nothing to do for long; give up the task and keep only the state. In a mailbox: do it now."""


HIBERNATE = Hibernate()


@define(eq=False)
class Cast:
    """Envelope of a cast. Not frozen only because a frozen one takes three times as long to make."""

    message: object


@define(eq=False)
class Call:
    """Envelope of a call, with the slot that takes the answer."""

    request: Any
    caller: From


@define(eq=False)
class System:
    """Envelope of a system request (get_state, suspend, …), which the engine answers, not the callbacks."""

    request: Any
    caller: From
