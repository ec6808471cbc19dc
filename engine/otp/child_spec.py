"""What a supervisor knows of a child: how to start it, when to restart it, how to end it.

Pure data and pure decisions, tested without trio. The supervisors act on them.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, TypeAlias

from attrs import Attribute, evolve, field, frozen

from engine.otp.gen_server import GenServer, server_blueprint
from engine.otp.pid import Pid
from engine.otp.process import Process, call_user, run_function
from engine.otp.reasons import BadReturn, Exit, Ignored, Reason, StartFailed, is_clean, reason_of
from engine.otp.start import AsyncFunction, Birth, Ignore, Name, Up, begin, finish_start, function_blueprint, names_of


class Restart(Enum):
    """When a child that ended is started again."""

    PERMANENT = "permanent"
    TRANSIENT = "transient"
    TEMPORARY = "temporary"


class ChildType(Enum):
    WORKER = "worker"
    SUPERVISOR = "supervisor"


class Strategy(Enum):
    """Who restarts with a child."""

    ONE_FOR_ONE = "one_for_one"
    ONE_FOR_ALL = "one_for_all"
    REST_FOR_ONE = "rest_for_one"


class AutoShutdown(Enum):
    """Whether significant children that end take their supervisor with them."""

    NEVER = "never"
    ANY_SIGNIFICANT = "any_significant"
    ALL_SIGNIFICANT = "all_significant"


class BrutalKill(Enum):
    BRUTAL_KILL = "brutal_kill"


PERMANENT, TRANSIENT, TEMPORARY = Restart
WORKER, SUPERVISOR = ChildType
ONE_FOR_ONE, ONE_FOR_ALL, REST_FOR_ONE = Strategy
NEVER, ANY_SIGNIFICANT, ALL_SIGNIFICANT = AutoShutdown
BRUTAL_KILL = BrutalKill.BRUTAL_KILL
INFINITY = math.inf

Deadline: TypeAlias = float | BrutalKill


class InvalidSpec(ValueError):
    """A field of a child spec or of a supervisor's flags cannot be; nothing was started."""

    def __init__(self, field: str, value: object) -> None:
        super().__init__(f"invalid {field}: {value!r}")
        self.field = field
        self.value = value


@frozen
class BadSpecs:
    """Why a supervisor refused its children: `problem` is duplicate_child_name or bad_combination."""

    problem: str
    value: object


def _one_of(kind: type[Enum]) -> Callable[[Any, Attribute[Any], Any], None]:
    def check(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if not isinstance(value, kind):
            raise InvalidSpec(attribute.name, value)

    return check


def _number(least: float, exclusive: bool = False) -> Callable[[Any, Attribute[Any], Any], None]:
    def check(_: Any, attribute: Attribute[Any], value: Any) -> None:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
        if not fits or value < least or (exclusive and value == least):
            raise InvalidSpec(attribute.name, value)

    return check


def _shutdown(_: Any, attribute: Attribute[Any], value: Any) -> None:
    if value is not None and value is not BRUTAL_KILL:
        _number(0)(_, attribute, value)


@frozen
class Backoff:
    """Waits before restarts: `initial * factor ** n` seconds, at most `maximum`, spread by ± `jitter` of itself.

    n is the number of restarts in a row; a child that stayed up for `reset_after` seconds begins anew. Restarts that
    wait count towards the intensity like others, unless `counted` is False.
    """

    initial: float = 0.1
    factor: float = 2.0
    maximum: float = 30.0
    jitter: float = 0.1
    reset_after: float = 60.0
    counted: bool = True

    def delay(self, failures: int, spread: Callable[[float, float], float] = random.uniform) -> float:
        """Seconds before the restart that follows `failures` earlier ones in a row."""
        base = min(self.maximum, self.initial * self.factor ** min(failures, 64))
        return base * spread(1 - self.jitter, 1 + self.jitter)


# --- how a child is started -----------------------------------------------------------------------------


class How(Enum):
    SERVER = "server"
    PROCESS = "process"
    CALLING = "calling"


@frozen
class Start:
    """How to start a child: made by `server`, `process` or `calling`, run by a supervisor."""

    how: How
    subject: Any
    args: tuple[Any, ...] = ()
    name: Name | tuple[Name, ...] | None = None
    max_mailbox: int | None = None
    timeout: float | None = None

    @classmethod
    def server(
        cls,
        server: type[GenServer[Any]],
        *args: Any,
        name: Name | tuple[Name, ...] | None = None,
        max_mailbox: int | None = None,
        timeout: float | None = None,
    ) -> Start:
        """A GenServer; `timeout` in seconds bounds its `init`."""
        return cls(How.SERVER, server, args, name, max_mailbox, timeout)

    @classmethod
    def process(
        cls,
        function: AsyncFunction,
        *args: Any,
        name: Name | tuple[Name, ...] | None = None,
        max_mailbox: int | None = None,
        timeout: float | None = None,
    ) -> Start:
        """A plain process: `await function(*args)`, which must call `init_ack()` when it is up."""
        return cls(How.PROCESS, function, args, name, max_mailbox, timeout)

    @classmethod
    def calling(cls, function: AsyncFunction, *args: Any) -> Start:
        """`await function(*args)` in the supervisor itself, to start and link something and answer its pid,
        (pid, info) or IGNORE."""
        return cls(How.CALLING, function, args)

    def begin(
        self, parent: Process, extra: tuple[Any, ...] = (), then: Callable[[Birth], object] | None = None
    ) -> Birth:
        """Starts a server or process under `parent` without waiting. Raises StartFailed."""
        if self.how is How.SERVER:
            blueprint = server_blueprint(self.subject, parent, self.max_mailbox)
        else:
            blueprint = function_blueprint(self.subject, run_function, parent, max_mailbox=self.max_mailbox)
        return begin(parent.node, blueprint, extra + self.args, self.names, self.timeout, then)

    async def run(self, parent: Process, extra: tuple[Any, ...] = ()) -> Up:
        """Starts the child under `parent`; `extra` arguments go before its own. Raises StartFailed or Ignored."""
        if self.how is How.CALLING:
            return await self._call(extra)
        return await finish_start(self.begin(parent, extra))

    async def _call(self, extra: tuple[Any, ...]) -> Up:
        try:
            answer = await call_user(self.subject, *extra, *self.args)
        except StartFailed:
            raise
        except (Exit, Exception) as error:  # noqa: BLE001 - whatever a start function does counts as its error
            raise StartFailed(reason_of(error)) from None
        match answer:
            case Pid() as pid:
                return Up(pid)
            case (Pid() as pid, info):
                return Up(pid, info)
            case Ignore():
                raise Ignored(answer)
            case other:
                raise StartFailed(BadReturn(other))

    @property
    def names(self) -> tuple[Name, ...]:
        return self.name if isinstance(self.name, tuple) else names_of(self.name, ())


# --- the spec -------------------------------------------------------------------------------------------


@frozen
class ChildSpec:
    """One child of a supervisor.

    `shutdown`: seconds that the child gets to end in order before it is killed, INFINITY, or BRUTAL_KILL; None: 5
    for workers, INFINITY for supervisors. `significant` children count for the supervisor's `auto_shutdown`.

    Raises:
        InvalidSpec: naming the field.
    """

    id: Any
    start: Start = field()
    restart: Restart = field(default=PERMANENT, validator=_one_of(Restart))
    shutdown: Deadline | None = field(default=None, validator=_shutdown)
    type: ChildType = field(default=WORKER, validator=_one_of(ChildType))
    significant: bool = False
    backoff: Backoff | None = None

    @start.validator
    def _check_start(self, _: Attribute[Start], value: Any) -> None:
        if not isinstance(value, Start):
            raise InvalidSpec("start", value)

    @property
    def deadline(self) -> Deadline:
        """`shutdown` with its default filled in."""
        if self.shutdown is None:
            return 5.0 if self.type is WORKER else INFINITY
        return self.shutdown

    def without_arguments(self) -> ChildSpec:
        """The spec of a child that will not be started again."""
        return evolve(self, start=evolve(self.start, args=())) if self.start.args else self

    @classmethod
    def of(cls, mapping: Mapping[str, Any]) -> ChildSpec:
        """A spec from a mapping; keys it does not know are passed over.

        Raises:
            InvalidSpec: also with missing_id and missing_start.
        """
        for key in ("id", "start"):
            if key not in mapping:
                raise InvalidSpec(f"missing_{key}", dict(mapping))
        known = ("id", "start", "restart", "shutdown", "type", "significant", "backoff")
        return cls(**{key: mapping[key] for key in known if key in mapping})


def worker(
    server: type[GenServer[Any]],
    *args: Any,
    id: Any = None,
    name: Name | tuple[Name, ...] | None = None,
    restart: Restart = PERMANENT,
    shutdown: Deadline | None = None,
    max_mailbox: int | None = None,
    timeout: float | None = None,
    significant: bool = False,
    backoff: Backoff | None = None,
) -> ChildSpec:
    """The spec of a GenServer; its id is by default the server's class."""
    how = Start.server(server, *args, name=name, max_mailbox=max_mailbox, timeout=timeout)
    return ChildSpec(server if id is None else id, how, restart, shutdown, WORKER, significant, backoff)


@frozen
class Flags:
    """How a supervisor treats its children: at most `intensity` restarts within `period` seconds, else it gives up."""

    strategy: Strategy = field(default=ONE_FOR_ONE, validator=_one_of(Strategy))
    intensity: int = field(default=3, validator=_number(0))
    period: float = field(default=5.0, validator=_number(0, exclusive=True))
    auto_shutdown: AutoShutdown = field(default=NEVER, validator=_one_of(AutoShutdown))


# --- decisions ------------------------------------------------------------------------------------------


class Decision(Enum):
    """What becomes of a child that ended by itself."""

    START_AGAIN = "start again"
    KEEP_DOWN = "keep its spec"
    FORGET = "forget it"


def decide(restart: Restart, reason: Reason) -> Decision:
    """OTP: supervisor.erl, do_restart/3."""
    if restart is TEMPORARY:
        return Decision.FORGET
    if restart is PERMANENT or not is_clean(reason):
        return Decision.START_AGAIN
    return Decision.KEEP_DOWN


def check_children(specs: list[ChildSpec], flags: Flags) -> BadSpecs | None:
    """What is wrong with these children together; None when nothing is."""
    seen: set[Any] = set()
    for spec in specs:
        if spec.id in seen:
            return BadSpecs("duplicate_child_name", spec.id)
        seen.add(spec.id)
        if spec.significant and (flags.auto_shutdown is NEVER or spec.restart is PERMANENT):
            return BadSpecs("bad_combination", spec)
    return None


class RestartWindow:
    """Counts restarts of one supervisor against its intensity, in exact time."""

    def __init__(self, intensity: int, period: float) -> None:
        self.intensity = intensity
        self.period = period
        self._times: deque[float] = deque()

    def allow(self, now: float) -> bool:
        """Notes a restart at `now` (seconds, monotonic); False when it is one too many within the period."""
        times = self._times
        while times and now - times[0] > self.period:
            times.popleft()
        times.append(now)
        return len(times) <= self.intensity
