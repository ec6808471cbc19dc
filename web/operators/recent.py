"""What went wrong lately: restarts, crashes, stalls, refused messages. The last ones are kept, all are counted.

Listens to the engine's trace events; a plain object, made before the tree. May import `engine.otp`.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

from attrs import define, field
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric

from engine.otp import is_clean, trace
from engine.otp.preempt_reports import Stalled

KEPT = 200
RESTARTED = "restarted"


@define(eq=False)
class Recent:
    """The last `KEPT` troubles, newest last, and counts by kind."""

    clock: Callable[[], float] = time.time
    events: deque[dict[str, Any]] = field(factory=lambda: deque(maxlen=KEPT))
    counts: Counter[str] = field(factory=Counter)

    def listen(self) -> Callable[[], None]:
        """Attaches to the current node; the answer detaches it."""
        kinds = (trace.Restarted, trace.Exited, Stalled, trace.Refused, trace.CallTimedOut, trace.ZombieDeclared)
        return trace.attach(self.heard, kinds)

    def heard(self, event: trace.Event) -> None:
        """Counts and keeps one event; a process that ended as it should is no trouble."""
        if isinstance(event, trace.Exited) and is_clean(event.reason):
            return
        what = type(event).__name__.lower()
        self.counts[what] += 1
        self.events.append({"at": self.clock(), "what": what, **_facts(event)})

    def note(self, what: str, **facts: Any) -> None:
        """Keeps something else that operators should see, such as what one of them did."""
        self.events.append({"at": self.clock(), "what": what, **facts})

    def metrics(self) -> Iterable[Metric]:
        """Counters for Prometheus."""
        named = {
            RESTARTED: ("elwift_process_restarts", "Processes started again by their supervisors"),
            "exited": ("elwift_process_crashes", "Processes that ended for a bad reason"),
            "stalled": ("elwift_process_stalls", "Times the event loop was held too long"),
            "refused": ("elwift_mailbox_refusals", "Messages refused because a mailbox was full"),
            "calltimedout": ("elwift_call_timeouts", "Calls between processes without an answer in time"),
            "zombiedeclared": ("elwift_zombies", "Processes that could not be ended"),
        }
        for what, (name, words) in named.items():
            yield CounterMetricFamily(name, words, value=self.counts[what])


def _facts(event: trace.Event) -> dict[str, Any]:
    match event:
        case trace.Restarted(_, name, old, pid):
            return {"pid": str(pid), "words": f"{name} was started again, it was {old}"}
        case trace.Exited(pid, kind, reason):
            return {"pid": str(pid), "words": f"{kind} ended: {_brief(reason)}"}
        case Stalled():
            return {"pid": str(event.pid), "words": f"held the loop for {event.seconds:.2f} s"}
        case trace.CallTimedOut(server, request, seconds):
            return {"pid": str(server), "words": f"{request.partition('(')[0]} was not answered in {seconds:.1f} s"}
        case trace.Refused(pid, kind):
            return {"pid": str(pid), "words": f"the mailbox of {kind} was full"}
        case trace.ZombieDeclared(pid, kind):
            return {"pid": str(pid), "words": f"{kind} could not be ended"}
        case _:
            return {}


def _brief(reason: object) -> str:
    """What a reason is, without the values in it: they may be a user's."""
    error = getattr(reason, "exception", None) or getattr(reason, "error", None)
    return type(reason if error is None else error).__name__
