"""Random trees, random ends: what holds whatever happens.

Each example runs a tree of supervisors and workers under a mock clock, sends exits, crashes and orders into it and
lets it come to rest. Then the books are read: every process that came up is alive or ended once, its monitor and its
links heard of it exactly once, and nobody is left whose supervisor is gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import pytest
import trio
from attrs import define, field, frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from engine.otp import (
    DUPLICATE,
    HIBERNATE,
    KILL,
    NORMAL,
    ONE_FOR_ALL,
    ONE_FOR_ONE,
    REST_FOR_ONE,
    SHUTDOWN,
    CallFailed,
    ChildError,
    ChildSpec,
    Down,
    ExitSignal,
    GenServer,
    Node,
    NoReply,
    Ok,
    Pid,
    Reason,
    Registry,
    Restart,
    Start,
    StartFailed,
    Stop,
    Strategy,
    Supervisor,
    Via,
    cast,
    exit,
    link,
    monitor,
    processes,
    receive,
    self_,
    send,
    spawn,
    stop,
    terminate_child,
    trap_exits,
    whereis,
    which_children,
)
from engine.otp.child_spec import Decision, RestartWindow, decide
from engine.otp.reasons import Atom

quick = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)

BOOM = Atom("boom")


# --- what is drawn --------------------------------------------------------------------------------------


@frozen
class Leaf:
    restart: Restart
    traps: bool
    sleeps: bool
    fails_again: int
    """So many starts after the first one fail."""


@frozen
class Branch:
    strategy: Strategy
    intensity: int
    restart: Restart
    children: tuple[Leaf | Branch, ...]


@frozen
class Blow:
    """Something that happens to the n-th living worker (counted round): see Worker.handle_cast and `strike`."""

    how: str
    nth: int


restarts = st.sampled_from(Restart)
leaves = st.builds(Leaf, restarts, st.booleans(), st.booleans(), st.sampled_from([0, 0, 0, 1, 2]))


def branches(children: st.SearchStrategy[Leaf | Branch]) -> st.SearchStrategy[Branch]:
    some = st.lists(children, min_size=1, max_size=4).map(tuple)
    return st.builds(Branch, st.sampled_from(Strategy), st.integers(0, 4), restarts, some)


trees = branches(st.one_of(leaves, leaves, branches(leaves)))
blows = st.lists(
    st.builds(Blow, st.sampled_from(["crash", "stop", "shutdown", "exit", "kill", "terminate"]), st.integers(0, 30)),
    min_size=1,
    max_size=12,
)


# --- the books ------------------------------------------------------------------------------------------


@define
class Books:
    registry: Registry
    born: list[tuple[str, Pid]] = field(factory=list)
    starts: Counter[str] = field(factory=Counter)
    alive: dict[Pid, str] = field(factory=dict)
    downs: Counter[Pid] = field(factory=Counter)
    exits: Counter[Pid] = field(factory=Counter)
    reasons: dict[Pid, Reason] = field(factory=dict)
    watcher: Pid | None = None
    problems: list[str] = field(factory=list)

    def complain(self, text: str) -> None:
        self.problems.append(text)


class Worker(GenServer[Books]):
    async def init(self, name: str, leaf: Leaf, books: Books) -> Ok[Books] | Stop[Books]:
        trap_exits(leaf.traps)
        n = books.starts[name]
        books.starts[name] += 1
        if 1 <= n <= leaf.fails_again:
            return Stop(BOOM)
        other = next((pid for pid, each in books.alive.items() if each == name and pid.alive), None)
        if other is not None:
            books.complain(f"{name} runs twice: {other} and {self_()}")
        books.alive[self_()] = name
        books.born.append((name, self_()))
        assert books.watcher is not None
        send(books.watcher, Watch(self_()))
        return Ok(books, HIBERNATE if leaf.sleeps else None)

    async def handle_cast(self, message: str, state: Books) -> NoReply[Books] | Stop[Books]:
        match message:
            case "crash":
                raise RuntimeError("boom")
            case "stop":
                return Stop(NORMAL, state)
            case _:
                return Stop(SHUTDOWN, state)

    async def handle_info(self, message: object, state: Books) -> NoReply[Books] | Stop[Books]:
        return NoReply(state)

    def format_status(self, state: Books) -> None:
        """The books are everybody's."""


@frozen
class Watch:
    pid: Pid


async def watch(books: Books) -> None:
    """Monitors every worker and links itself to it: hears of each end twice, once by each way."""
    trap_exits()
    while True:
        match await receive():
            case Watch(pid):
                monitor(pid)
                link(pid)
            case Down(_, pid, reason):
                assert pid is not None
                books.downs[pid] += 1
                _same_reason(books, pid, reason)
                _registry_is_ahead(books, pid)
            case ExitSignal(pid, reason):
                assert pid is not None
                books.exits[pid] += 1
                _same_reason(books, pid, reason)
                _registry_is_ahead(books, pid)


def _same_reason(books: Books, pid: Pid, reason: Reason) -> None:
    known = books.reasons.setdefault(pid, reason)
    if known != reason:
        books.complain(f"{pid} ended of {known} and of {reason}")


def _registry_is_ahead(books: Books, pid: Pid) -> None:
    """Who hears of an end finds neither the process nor its name."""
    if pid.alive:
        books.complain(f"{pid} was announced dead and is alive")
    if books.registry.whereis(books.alive.get(pid, "")) == pid:
        books.complain(f"the registry names {pid}, which is dead")


def spec(node: Leaf | Branch, name: str, books: Books) -> ChildSpec:
    if isinstance(node, Branch):
        children = [spec(child, f"{name}.{n}", books) for n, child in enumerate(node.children)]
        return Supervisor.spec(children, node.strategy, node.intensity, 5.0, id=name, name=name, restart=node.restart)
    start = Start.server(Worker, name, node, books, name=Via(books.registry, name))
    return ChildSpec(name, start, node.restart, 1.0)


def strike(blow: Blow, books: Books) -> None:
    living = [pid for pid in books.alive if pid.alive]
    if not living:
        return
    pid = living[blow.nth % len(living)]
    match blow.how:
        case "exit":
            exit(pid, BOOM)
        case "kill":
            exit(pid, KILL)
        case "terminate":
            pass  # by the supervisor, see below
        case how:
            cast(pid, how)


async def by_hand(blow: Blow, books: Books) -> None:
    """Has its supervisor end the worker."""
    living = [(pid, name) for pid, name in books.alive.items() if pid.alive]
    if living and blow.how == "terminate":
        _, name = living[blow.nth % len(living)]
        with suppress(CallFailed, ChildError):  # the supervisor may be on its own way out
            await terminate_child(name.rpartition(".")[0], name)


async def live(tree: Branch, what: Iterable[Blow], at_rest: bool, check: Callable[[Books], Any]) -> Books:
    """Runs the tree through the blows, one after another at rest or all in a row; then `check`, then its end."""
    async with Node.open(report=lambda _: None):
        registry: Registry = Registry(name="workers")
        books = Books(registry)
        books.watcher = await spawn(watch, books)
        await Supervisor.start_link([registry.spec()], name="registries")
        await Supervisor.start_link([spec(lasting(tree), "top", books)], intensity=0, name="root")
        for blow in what:
            strike(blow, books)
            await by_hand(blow, books)
            if at_rest:
                await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        await check(books)
        if whereis("root") is not None:
            await stop("root", SHUTDOWN)
        await wait_all_tasks_blocked()
        left = [name for pid, name in books.alive.items() if pid.alive]
        assert left == [], f"orphans: {left}"
        _everyone_was_told(books)
        assert registry.count() == 0
    return books


def lasting(tree: Branch) -> Branch:
    """The top never gives up too soon to see anything, and is not started again when it does."""
    return Branch(tree.strategy, tree.intensity + 3, Restart.TEMPORARY, tree.children)


def _everyone_was_told(books: Books) -> None:
    for name, pid in books.born:
        assert books.downs[pid] == 1, f"{name} {pid}: {books.downs[pid]} downs"
        assert books.exits[pid] == 1, f"{name} {pid}: {books.exits[pid]} exits"
    assert books.problems == []


async def _nothing(_: Books) -> None:
    pass


async def _supervisors_agree(books: Books) -> None:
    """Who runs, is known to its supervisor under its pid and to the registry under its name; nobody else is."""
    known: dict[str, Pid] = {}
    for name in _supervisor_names(books):
        for child in await which_children(name):
            if isinstance(child.pid, Pid) and child.pid in books.alive:
                known[child.id] = child.pid
    running = {name: pid for pid, name in books.alive.items() if pid.alive}
    assert known == running
    assert {name: books.registry.whereis(name) for name in running} == running
    assert books.registry.count() == len(running)


def _supervisor_names(books: Books) -> set[str]:
    """Names of all supervisors above workers that run."""
    names: set[str] = set()
    for pid, name in books.alive.items():
        while pid.alive and "." in name:
            name = name.rpartition(".")[0]
            names.add(name)
    return names


# --- the properties -------------------------------------------------------------------------------------


@quick
@given(trees, blows, st.booleans())
def test_every_end_is_told_once_to_all_and_nobody_is_orphaned(tree: Branch, what: list[Blow], at_rest: bool) -> None:
    trio.run(live, tree, what, at_rest, _nothing, clock=MockClock(autojump_threshold=0))


@quick
@given(trees, blows)
def test_at_rest_supervisors_registry_and_processes_agree(tree: Branch, what: list[Blow]) -> None:
    trio.run(live, tree, what, True, _supervisors_agree, clock=MockClock(autojump_threshold=0))


kinds = st.sampled_from(["crash", "stop", "shutdown", "exit", "kill"])


@quick
@given(st.sampled_from(Strategy), st.lists(restarts, min_size=1, max_size=5), kinds, st.integers(0, 4))
def test_exactly_those_restart_that_the_strategy_ties_to_the_victim(
    strategy: Strategy, kinds_of_restart: list[Restart], how: str, nth: int
) -> None:
    victim = nth % len(kinds_of_restart)
    leaves = tuple(Leaf(restart, True, False, 0) for restart in kinds_of_restart)
    books = trio.run(
        live, Branch(strategy, 5, Restart.TEMPORARY, leaves), [Blow(how, victim)], True, _nothing,
        clock=MockClock(autojump_threshold=0),
    )  # fmt: skip
    ran = {n: books.starts[f"top.{n}"] for n in range(len(leaves))}
    assert ran == {n: 1 + (n in expected_restarts(strategy, kinds_of_restart, how, victim)) for n in ran}
    assert order_of_restart(books) == sorted(order_of_restart(books))


def expected_restarts(strategy: Strategy, kinds: list[Restart], how: str, victim: int) -> set[int]:
    reason = {"crash": BOOM, "exit": BOOM, "kill": KILL, "stop": NORMAL, "shutdown": SHUTDOWN}[how]
    if how == "exit" or decide(kinds[victim], reason) is not Decision.START_AGAIN:
        return set()  # these trap exits: one from a stranger is a message
    tied = {ONE_FOR_ONE: [victim], ONE_FOR_ALL: range(len(kinds)), REST_FOR_ONE: range(victim, len(kinds))}[strategy]
    return {n for n in tied if n == victim or kinds[n] is not Restart.TEMPORARY}


def order_of_restart(books: Books) -> list[int]:
    """Who came up again, in the order it did."""
    names = [name for name, _ in books.born]
    return [int(name.rpartition(".")[2]) for n, name in enumerate(names) if name in names[:n]]


@quick
@given(st.integers(0, 5), st.integers(1, 8))
def test_a_supervisor_gives_up_at_one_restart_more_than_its_intensity(intensity: int, crashes: int) -> None:
    leaf = Leaf(Restart.PERMANENT, False, False, 0)
    tree = Branch(ONE_FOR_ONE, intensity - 3, Restart.TEMPORARY, (leaf,))  # the top gets three more
    books = trio.run(live, tree, [Blow("crash", 0)] * crashes, True, _nothing, clock=MockClock(autojump_threshold=0))
    assert books.starts["top.0"] == 1 + min(crashes, intensity)


@given(st.integers(0, 5), st.integers(1, 10), st.lists(st.integers(0, 5), max_size=20))
def test_a_window_allows_no_more_than_its_intensity_in_any_period(intensity: int, period: int, gaps: list[int]) -> None:
    window, now, allowed = RestartWindow(intensity, period), 0, list[int]()
    for gap in gaps:
        now += gap
        if not window.allow(now):
            break
        allowed.append(now)
    for n, begin in enumerate(allowed):
        assert sum(begin <= time <= begin + period for time in allowed[n:]) <= max(intensity, 0)


@quick
@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=12), st.booleans())
def test_a_registry_names_the_living_only(entries: list[tuple[str, bool]], duplicate: bool) -> None:
    async def main() -> None:
        async with Node.open(report=lambda _: None):
            registry: Registry = Registry(keys=DUPLICATE, name="r") if duplicate else Registry(name="r")
            await Supervisor.start_link([registry.spec()])
            living: list[tuple[str, Pid]] = []

            async def own(key: str) -> None:
                registry.register(key)
                await trio.sleep_forever()

            for key, dies in entries:
                pid = await spawn(own, key)
                await wait_all_tasks_blocked()
                if pid.alive and dies:
                    exit(pid, KILL)
                    await wait_all_tasks_blocked()
                elif pid.alive:
                    living.append((key, pid))
            for key in "abc":
                assert [pid for pid, _ in registry.lookup(key)] == [pid for each, pid in living if each == key]
            assert registry.count() == len(living)

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_start_that_fails_leaves_no_process() -> None:
    async def main() -> None:
        async with Node.open(report=lambda _: None):
            registry: Registry = Registry(name="r")
            books = Books(registry, starts=Counter({"top.1": 1}))
            books.watcher = await spawn(watch, books)
            await Supervisor.start_link([registry.spec()])
            before = set(processes())
            good, bad = Leaf(Restart.PERMANENT, True, False, 0), Leaf(Restart.PERMANENT, True, False, 9)
            tree = Branch(ONE_FOR_ONE, 3, Restart.TEMPORARY, (good, bad))
            with pytest.raises(StartFailed):
                await Supervisor.start_link([spec(tree, "top", books)])
            await wait_all_tasks_blocked()
            assert set(processes()) == before
            assert registry.count() == 0
            _everyone_was_told(books)

    trio.run(main, clock=MockClock(autojump_threshold=0))
