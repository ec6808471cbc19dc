"""Plays a scenario with our engine: the same words as interpreter.exs, the same events.

Time is a mock clock that jumps when everybody waits, so that no step sleeps for real.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import trio
from attrs import define, evolve, field, frozen
from trio.testing import MockClock, wait_all_tasks_blocked

from engine.otp import (
    BRUTAL_KILL,
    HIBERNATE,
    IGNORE,
    INFINITY,
    NOPROC,
    NORMAL,
    TIMEOUT,
    AlreadyPresent,
    AlreadyStarted,
    AutoShutdown,
    BadReturn,
    CallFailed,
    CallFailure,
    ChildError,
    ChildSpec,
    Continue,
    Crash,
    Down,
    DynamicSupervisor,
    Exit,
    ExitSignal,
    FailedToStartChild,
    From,
    GenServer,
    Ignore,
    Ignored,
    Node,
    NoReply,
    Ok,
    Pid,
    Reason,
    Ref,
    Reply,
    Request,
    Restart,
    Shutdown,
    Start,
    StartFailed,
    Stop,
    Strategy,
    Supervisor,
    Throw,
    Timeout,
    call,
    cast,
    count_children,
    current_node,
    delete_child,
    demonitor,
    exit,
    link,
    monitor,
    reply,
    restart_child,
    resume,
    self_,
    send,
    spawn,
    start_child,
    stop,
    suspend,
    terminate_child,
    trap_exits,
    unlink,
    whereis,
    which_children,
)
from engine.otp.reasons import Atom

from .scenarios import Data, Scenario, Step

MS = 0.001
Events: TypeAlias = list[list[str]]


@define
class Stage:
    """What interpreter.exs keeps in its table: the events, who is called what, and who is at work."""

    driver: Pid
    events: list[str] = field(factory=list)
    pids: dict[str, Pid] = field(factory=dict)
    names: dict[Pid, str] = field(factory=dict)
    starts: Counter[str] = field(factory=Counter)
    working: int = 0

    def log(self, text: str) -> None:
        self.events.append(text)

    def called(self, name: str, pid: Pid) -> None:
        self.pids[name] = pid
        self.names[pid] = name

    def who(self, pid: Pid | None) -> str:
        return "driver" if pid is None or pid == self.driver else self.names.get(pid, "?")

    @contextmanager
    def at_work(self) -> Iterator[None]:
        self.working += 1
        try:
            yield
        finally:
            self.working -= 1

    async def quiet(self) -> None:
        await wait_all_tasks_blocked()
        while self.working:
            await trio.sleep(5 * MS)
            await wait_all_tasks_blocked()


# --- reasons --------------------------------------------------------------------------------------------


def reason_in(name: str) -> Reason:
    kind, _, detail = name.partition(":")
    return Shutdown(detail) if detail else Atom(kind)


def reason_out(reason: Reason) -> str:
    match reason:
        case Shutdown(FailedToStartChild() as failed):
            return f"shutdown:{reason_out(failed)}"
        case Shutdown(detail):
            return f"shutdown:{detail}"
        case FailedToStartChild(id, why):
            return f"failed_to_start_child {id} {reason_out(why)}"
        case CallFailure():
            return f"call:{reason_out(reason.reason)}"
        case Crash():
            return "crash"
        case BadReturn():
            return "bad_return_value"
        case AlreadyStarted():
            return "already_started"
        case AlreadyPresent():
            return "already_present"
        case Atom():
            return reason.name
        case _:
            return repr(reason)


# --- workers and supervisors ----------------------------------------------------------------------------


@frozen
class Ask(Request[str]):
    what: str


@frozen
class Memory:
    options: Data
    stage: Stage
    monitors: dict[str, Ref]

    @property
    def id(self) -> str:
        return str(self.options["id"])


class Worker(GenServer[Memory]):
    async def init(self, options: Data, stage: Stage) -> Ok[Memory] | Ignore | Stop[Memory]:
        memory = Memory(options, stage, {})
        trap_exits(options.get("trap", False))
        stage.called(memory.id, self_())
        stage.log(f"init {memory.id}")
        inits, n = options.get("inits", []), stage.starts[memory.id]
        stage.starts[memory.id] += 1
        match inits[n] if n < len(inits) else "ok":
            case "ignore":
                return IGNORE
            case "crash":
                raise RuntimeError("boom")
            case "stop":
                return Stop(Atom("boom"))
            case "continue":
                send(self_(), "queued in init")
                return Ok(memory, Continue("go on"))
            case "timeout":
                return Ok(memory, Timeout(150 * MS))
            case _:
                return Ok(memory)

    async def handle_continue(self, message: str, state: Memory) -> NoReply[Memory]:
        state.stage.log(f"continue {state.id} {message}")
        return NoReply(state)

    async def handle_cast(self, message: Step, state: Memory) -> NoReply[Memory] | Stop[Memory]:
        with state.stage.at_work():
            return await perform(message, state)

    async def handle_call(
        self, request: Ask, caller: From, state: Memory
    ) -> Reply[Memory] | NoReply[Memory] | Stop[Memory]:
        with state.stage.at_work():
            return await answer(request.what, caller, state)

    async def handle_info(self, message: object, state: Memory) -> NoReply[Memory]:
        match message:
            case ExitSignal(pid, reason):
                text = f"exit {state.id} from {state.stage.who(pid)} {reason_out(reason)}"
            case Down(_, pid, reason):
                text = f"down {state.id} of {state.stage.who(pid)} {reason_out(reason)}"
            case _ if message is TIMEOUT:
                text = f"timeout {state.id}"
            case _:
                text = f"info {state.id} {message}"
        state.stage.log(text)
        return NoReply(state)

    async def terminate(self, reason: Reason, state: Memory) -> None:
        with state.stage.at_work():
            state.stage.log(f"terminate {state.id} {reason_out(reason)}")
            await trio.sleep(state.options.get("stop_ms", 0) * MS)
            if state.options.get("stop_crash"):
                raise RuntimeError("boom")
            state.stage.log(f"terminated {state.id}")


async def perform(step: Step, state: Memory) -> NoReply[Memory] | Stop[Memory]:
    """What a worker does on a cast."""
    stage = state.stage
    match step:
        case ["crash"]:
            raise RuntimeError("boom")
        case ["stop", reason]:
            return Stop(reason_in(reason), state)
        case ["exit", reason]:
            raise Exit(reason_in(reason))
        case ["bad"]:
            return "nonsense"  # type: ignore[return-value]
        case ["throw"]:
            raise Throw(NoReply(state))
        case ["link", id]:
            link(stage.pids[id])
        case ["unlink", id]:
            unlink(stage.pids[id])
        case ["monitor", id]:
            return NoReply(evolve(state, monitors={**state.monitors, id: monitor(stage.pids[id])}))
        case ["demonitor", id]:
            demonitor(state.monitors[id], flush=True)
        case ["await_down_then_demonitor", id]:
            exit(stage.pids[id], Atom("kill"))
            while stage.pids[id].alive:
                await trio.lowlevel.checkpoint()
            demonitor(state.monitors[id], flush=True)
        case ["send", id, text]:
            send(stage.pids[id], text)
        case ["sleep", ms]:
            await trio.sleep(ms * MS)
        case ["say", text]:
            stage.log(f"said {state.id} {text}")
        case ["timeout", ms]:
            return NoReply(state, Timeout(ms * MS))
        case ["call", id, what, ms]:
            stage.log(f"answer {state.id} {await call(stage.pids[id], Ask(what), timeout=ms * MS)}")
        case ["continue", what]:
            return NoReply(state, Continue(what))
        case ["hibernate"]:
            return NoReply(state, HIBERNATE)
        case _:
            raise ValueError(step)
    return NoReply(state)


async def answer(what: str, caller: From, state: Memory) -> Reply[Memory] | NoReply[Memory] | Stop[Memory]:
    """What a worker does on a call."""
    match what:
        case "echo":
            return Reply("echo", state)
        case "crash":
            raise RuntimeError("boom")
        case "stop_reply":
            return Stop(NORMAL, state, "bye")
        case "stop_noreply":
            return Stop(NORMAL, state)
        case "stop_shutdown":
            return Stop(Atom("shutdown"), state)
        case "noreply":
            return NoReply(state)
        case "slow":
            await trio.sleep(60 * MS)
            return Reply("late", state)
        case "throw_reply":
            raise Throw(Reply("thrown", state))
        case "bad":
            return "nonsense"  # type: ignore[return-value]
        case "exit_normal":
            raise Exit(NORMAL)
        case "self":
            return Reply(await call(self_(), Ask("echo")), state)
        case "deferred":
            await spawn(_reply_later, caller)
            return NoReply(state)
        case _:
            raise ValueError(what)


async def _reply_later(caller: From) -> None:
    reply(caller, "deferred")


def child(options: Data, stage: Stage) -> ChildSpec:
    """The spec of a worker, of a supervisor (it has children) or of a dynamic one."""
    id, intensity = options["id"], options.get("intensity", 3)
    restart = Restart(options.get("restart", "permanent"))
    if options.get("dynamic"):
        return DynamicSupervisor.spec(
            id=id, name=id, max_children=options.get("max_children"), intensity=intensity, restart=restart
        )
    if "children" in options:
        flags = _flags(options)
        return Supervisor.spec(_children(options, stage), **flags, id=id, name=id, restart=restart)
    start = Start.server(Worker, options, stage)
    return ChildSpec(id, start, restart, _deadline(options), significant=options.get("significant", False))


def _children(options: Data, stage: Stage) -> list[ChildSpec]:
    return [child(each, stage) for each in options["children"]]


def _flags(options: Data) -> dict[str, Any]:
    return {
        "strategy": Strategy(options.get("strategy", "one_for_one")),
        "intensity": options.get("intensity", 3),
        "period": 5.0,
        "auto_shutdown": AutoShutdown(options.get("auto_shutdown", "never")),
    }


def _deadline(options: Data) -> Any:
    match options.get("shutdown"):
        case "brutal_kill":
            return BRUTAL_KILL
        case "infinity":
            return INFINITY
        case None:
            return None
        case ms:
            return ms * MS


# --- the driver -----------------------------------------------------------------------------------------


def play(scenario: Scenario) -> Events:
    """The events of each step."""
    return trio.run(_play, scenario, clock=MockClock(autojump_threshold=0))


async def _play(scenario: Scenario) -> Events:
    played: Events = []
    over = trio.Event()

    async def driver() -> None:
        trap_exits()
        stage = Stage(self_())
        try:
            for step in scenario.steps:
                await _attempt(step, stage)
                await stage.quiet()
                _notices(stage)
                played.append(stage.events.copy())
                stage.events.clear()
        finally:
            over.set()

    async with Node.open(report=lambda _: None):
        await spawn(driver)
        await over.wait()
    assert len(played) == len(scenario.steps), f"the driver ended in step {len(played)}"
    return played


async def _attempt(step: Step, stage: Stage) -> None:
    try:
        await drive(step, stage)
    except KeyError:
        stage.log("nobody there")  # of this name there was never one
    except CallFailed as failure:
        gone = failure.reason is NOPROC
        stage.log("nobody there" if gone else f"ended instead of answering: {reason_out(failure.reason)}")


def _notices(stage: Stage) -> None:
    """Exits and downs that came to the driver during the step."""
    driver = current_node().awaken(stage.driver)
    assert driver is not None
    for message in list(driver.queue or ()):
        match message:
            case ExitSignal(pid, reason):
                stage.log(f"exit driver from {stage.who(pid)} {reason_out(reason)}")
            case Down(_, pid, reason):
                stage.log(f"down driver of {stage.who(pid)} {reason_out(reason)}")
    driver.discard(lambda _: True)


def _pid(stage: Stage, name: str) -> Pid:
    pid = whereis(name) or stage.pids[name]
    stage.called(name, pid)
    return pid


async def drive(step: Step, stage: Stage) -> None:
    """What the driver does in a step."""
    match step:
        case ["start" | "start_linked" as how, tree]:
            await _start_tree(stage, tree, linked=how == "start_linked")
        case ["worker" | "linked_worker" as how, options]:
            await _start_worker(stage, options, linked=how == "linked_worker")
        case ["together", *steps]:
            for each in steps:
                await drive(each, stage)
        case ["cast", id, *op]:
            cast(_pid(stage, id), op)
        case ["casts", id, ops]:
            for op in ops:
                if op == ["EXIT"]:
                    exit(stage.pids[id], Atom("shutdown"))
                else:
                    cast(stage.pids[id], op)
        case ["exit", id, reason]:
            exit(_pid(stage, id), reason_in(reason))
        case ["exit_all", ids, reason]:
            await suspend("sup")
            for id in ids:
                exit(stage.pids[id], reason_in(reason))
            await wait_all_tasks_blocked()
            await resume("sup")
        case ["monitor", id]:
            monitor(_pid(stage, id))
        case ["link", id]:
            link(_pid(stage, id))
        case ["sleep", ms]:
            await trio.sleep(ms * MS)
        case ["call", id, what, ms]:
            stage.log(f"call {id} {what}: {await _called(_pid(stage, id), what, ms)}")
        case ["stop", id, reason, ms]:
            stage.log(f"stop {id}: {await _stopped(_pid(stage, id), reason, ms)}")
        case _:
            await _manage(step, stage)


async def _start_tree(stage: Stage, tree: Data, linked: bool) -> None:
    try:
        pid = await Supervisor.start_link(_children(tree, stage), **_flags(tree), name=tree["id"])
    except StartFailed as failure:
        stage.log(f"start failed {reason_out(failure.reason)}")
        driver = current_node().awaken(stage.driver)
        assert driver is not None
        driver.discard(lambda message: isinstance(message, ExitSignal))
        return
    stage.called(tree["id"], pid)
    stage.log("started")
    if not linked:
        unlink(pid)
        monitor(pid)


async def _start_worker(stage: Stage, options: Data, linked: bool) -> None:
    try:
        pid = await (Worker.start_link if linked else Worker.start)(options, stage)
    except Ignored:
        stage.log("ignored")
    except StartFailed as failure:
        stage.log(f"start failed {reason_out(failure.reason)}")
    else:
        stage.log(f"started {options['id']}")
        if not linked:
            monitor(pid)


async def _called(server: Pid, what: str, ms: float) -> str:
    try:
        return f"reply {await call(server, Ask(what), timeout=ms * MS)}"
    except CallFailed as failure:
        return f"exit call:{reason_out(failure.reason)}"


async def _stopped(server: Pid, reason: str, ms: float) -> str:
    try:
        await stop(server, reason_in(reason), timeout=ms * MS)
    except CallFailed as failure:
        return f"exit call:{reason_out(failure.reason)}"
    return "ok"


async def _manage(step: Step, stage: Stage) -> None:
    """What the driver asks of supervisors."""
    match step:
        case ["which", supervisor]:
            children = [f"{each.id}:{_shown(each.pid)}" for each in await which_children(supervisor)]
            stage.log(f"which {' '.join(children)}")
        case ["count", supervisor]:
            c = await count_children(supervisor)
            stage.log(f"count specs={c.specs} active={c.active} supervisors={c.supervisors} workers={c.workers}")
        case ["count_dynamic", supervisor]:
            c = await count_children(supervisor)
            stage.log(f"count specs={c.specs} active={c.active}")
        case ["start_child", supervisor, options]:
            stage.log(f"start_child {options['id']}: {await _asked(start_child(supervisor, child(options, stage)))}")
        case ["start_dynamic", supervisor, options]:
            done = await _asked(start_child(supervisor, child(options, stage)))
            stage.log(f"start_child {options['id']}: {'ignore' if done == 'ok undefined' else done}")
        case ["terminate_child", supervisor, id]:
            stage.log(f"terminate_child {id}: {await _asked(terminate_child(supervisor, id))}")
        case ["terminate_dynamic", supervisor, id]:
            stage.log(f"terminate_child {id}: {await _asked(terminate_child(supervisor, stage.pids[id]))}")
        case ["restart_child", supervisor, id]:
            stage.log(f"restart_child {id}: {await _asked(restart_child(supervisor, id))}")
        case ["delete_child", supervisor, id]:
            stage.log(f"delete_child {id}: {await _asked(delete_child(supervisor, id))}")
        case _:
            raise ValueError(step)


def _shown(pid: object) -> str:
    if pid is None:
        return "undefined"
    return "up" if isinstance(pid, Pid) else reason_out(pid)


async def _asked(answer: Awaitable[object]) -> str:
    try:
        await answer
    except Ignored:
        return "ok undefined"
    except (StartFailed, ChildError) as failure:
        return reason_out(failure.reason)
    return "ok"
