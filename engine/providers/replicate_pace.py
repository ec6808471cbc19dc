"""When a prediction of Replicate's is asked for, how long it is waited for, and when it is given up."""

from __future__ import annotations

import trio
from attrs import define, field, frozen

from engine.providers import replicate_failures as failures
from engine.providers.protocol import Failed
from engine.providers.replicate_api import Lost, Refusal


@frozen
class Pace:
    """Seconds. How often a prediction is asked for; with webhooks the first question waits for a silence."""

    first: float = 0.5
    longest: float = 5.0
    silence: float = 15.0
    run_limit: float = 1800.0
    """What a prediction may take at Replicate, which stops it then."""
    grace: float = 60.0
    """How much later we stop it ourselves."""
    lost_after: float = 600.0
    """How long the service may be out of reach before the attempt fails: a prediction that is paid is waited for."""
    gone_after: float = 10.0
    """How long a prediction may be unknown to the service: its own databases follow each other with a delay."""
    stop_within: float = 20.0
    search: tuple[float, ...] = (0.3, 1.0, 3.0)
    """The pauses before each look for a prediction whose answer was lost: the listing, too, may lag behind."""
    settled_after: float = 5.0
    """When an intent is so old, whatever came of it is in the listing."""
    pending: float = 600.0
    """How long a request that got no answer in time may still be taken."""


@define
class Watch:
    """How long nothing was heard, and when to ask next. Times of trio's clock."""

    pace: Pace
    webhooks: bool
    adopted: bool
    began: float = field(factory=trio.current_time)
    _heard: float = field(factory=trio.current_time)
    _next: float = field(init=False)
    _gone: float | None = None
    """Since when the service has not known it."""
    _problem: Lost | Refusal | None = None
    _asked: bool = False

    def __attrs_post_init__(self) -> None:
        self._next = self.pace.first

    @property
    def pause(self) -> float:
        """Until the prediction is asked for; one that is adopted is asked for at once."""
        if self.adopted and not self._asked:
            return 0.0
        return max(self._next, self.pace.silence) if self.webhooks and self._problem is None else self._next

    @property
    def late(self) -> bool:
        return trio.current_time() - self.began > self.pace.run_limit + self.pace.grace

    def heard(self) -> None:
        self._heard, self._gone, self._problem = trio.current_time(), None, None
        self._slower()

    def missed(self, problem: Lost | Refusal) -> None:
        gone = isinstance(problem, Refusal) and problem.gone
        self._gone = (self._gone or trio.current_time()) if gone else None
        self._problem = problem
        self._slower()
        if isinstance(problem, Refusal) and problem.failed.retry_after:
            self._next = max(self._next, min(problem.failed.retry_after, 30.0))

    def _slower(self) -> None:
        self._asked = True
        self._next = min(max(self._next, self.pace.first) * 1.5, self.pace.longest)

    @property
    def verdict(self) -> Failed | None:
        """What the attempt fails with, once it is too long that nothing was heard."""
        now = trio.current_time()
        silent = now - self._heard
        if self._gone is not None and now - self._gone > self.pace.gone_after:
            return failures.result_lost()
        match self._problem:
            case Refusal(failed) if silent > self.pace.lost_after:
                return failures.out_of_sight(failed.code)
            case Lost(why) if silent > self.pace.lost_after:
                return failures.out_of_sight(why)
        return None
