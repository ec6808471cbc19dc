"""Child specs: cases 1 to 8. Decisions and windows are tested as data, without a running process."""

from __future__ import annotations

from typing import Any

import pytest

from engine.otp import (
    ANY_SIGNIFICANT,
    BRUTAL_KILL,
    INFINITY,
    NEVER,
    NORMAL,
    PERMANENT,
    SHUTDOWN,
    SUPERVISOR,
    TEMPORARY,
    TRANSIENT,
    WORKER,
    BadReturn,
    BadSpecs,
    ChildSpec,
    Crash,
    DynamicSupervisor,
    Flags,
    Ignored,
    InvalidSpec,
    Node,
    Pid,
    Shutdown,
    Start,
    StartFailed,
    Supervisor,
    init_ack,
    receive,
    start_child,
    start_child_info,
    whereis,
    which_children,
)
from engine.otp.child_spec import Backoff, Decision, RestartWindow, decide
from engine.otp.start import IGNORE
from tests.engine.otp.servers import Diary, Plain, child


@pytest.fixture
def diary() -> Diary:
    return Diary()


def start() -> Start:
    return Start.server(Plain, Diary(), "a")


def test_case_01_id_and_start_are_mandatory_and_unknown_keys_are_tolerated() -> None:
    with pytest.raises(InvalidSpec, match="missing_id"):
        ChildSpec.of({"start": start()})
    with pytest.raises(InvalidSpec, match="missing_start"):
        ChildSpec.of({"id": "a"})
    assert ChildSpec.of({"id": "a", "start": start(), "colour": "red"}).id == "a"


def test_case_02_defaults_are_permanent_worker_not_significant_and_five_seconds_or_infinity() -> None:
    spec = ChildSpec("a", start())
    assert (spec.restart, spec.type, spec.significant, spec.deadline) == (PERMANENT, WORKER, False, 5.0)
    assert ChildSpec("a", start(), type=SUPERVISOR).deadline == INFINITY


@pytest.mark.parametrize(
    ("field", "value"),
    [("restart", "always"), ("shutdown", -1), ("shutdown", "soon"), ("type", "robot"), ("start", print)],
)
def test_case_03_an_invalid_field_of_a_spec_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidSpec) as caught:
        ChildSpec(**{"id": "a", "start": start(), field: value})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [("strategy", "all"), ("intensity", -1), ("period", 0), ("period", -1), ("auto_shutdown", "sometimes")],
)
async def test_case_03_an_invalid_flag_is_refused_by_name_and_nothing_starts(
    node: Node, diary: Diary, field: str, value: Any
) -> None:
    with pytest.raises(InvalidSpec) as caught:
        await Supervisor.start_link([child(diary, "a")], **{field: value})
    assert caught.value.field == field
    assert diary.events == []


async def test_case_04_duplicate_ids_are_refused_before_any_init(node: Node, diary: Diary) -> None:
    with pytest.raises(StartFailed) as caught:
        await Supervisor.start_link([child(diary, "a"), child(diary, "b"), child(diary, "a")])
    assert caught.value.reason == BadSpecs("duplicate_child_name", "a")
    assert diary.events == []


@pytest.mark.parametrize(("auto_shutdown", "restart"), [(NEVER, TRANSIENT), (ANY_SIGNIFICANT, PERMANENT)])
async def test_case_05_significant_without_auto_shutdown_or_permanent_is_a_bad_combination(
    node: Node, diary: Diary, auto_shutdown: Any, restart: Any
) -> None:
    with pytest.raises(StartFailed) as caught:
        await Supervisor.start_link([child(diary, "a", restart, significant=True)], auto_shutdown=auto_shutdown)
    assert caught.value.reason.problem == "bad_combination"  # type: ignore[attr-defined]
    assert diary.events == []


async def listening(info: object = None) -> None:
    init_ack(info)
    await receive()


async def test_case_06_an_info_goes_to_the_starter_and_any_other_answer_is_an_error(node: Node) -> None:
    sup = await Supervisor.start_link([])
    up = await start_child_info(sup, ChildSpec("info", Start.process(listening, {"port": 80})))
    assert (up.pid.alive, up.info) == (True, {"port": 80})
    assert (await start_child(sup, ChildSpec("pid", Start.process(listening)))).alive

    async def answering(value: object) -> object:
        return value

    with pytest.raises(StartFailed) as caught:
        await start_child(sup, ChildSpec("bad", Start.calling(answering, "yes")))
    assert caught.value.reason == BadReturn("yes")

    async def raising() -> Pid:
        raise ValueError("no")

    with pytest.raises(StartFailed) as caught:
        await start_child(sup, ChildSpec("raising", Start.calling(raising)))
    assert isinstance(caught.value.reason, Crash)
    assert [info.id for info in await which_children(sup)] == ["info", "pid"]


async def ignoring() -> object:
    return IGNORE


async def test_case_07_ignore_keeps_a_spec_without_pid_and_drops_a_temporary_one(node: Node) -> None:
    kept = ChildSpec("kept", Start.calling(ignoring))
    dropped = ChildSpec("dropped", Start.calling(ignoring), TEMPORARY)
    sup = await Supervisor.start_link([kept, dropped])
    assert [(info.id, info.pid) for info in await which_children(sup)] == [("kept", None)]
    with pytest.raises(Ignored):
        await start_child(sup, ChildSpec("later", Start.calling(ignoring), TEMPORARY))
    assert len(await which_children(sup)) == 1


async def test_case_08_start_arguments_of_temporary_children_are_not_kept(node: Node, diary: Diary) -> None:
    sup = await Supervisor.start_link([child(diary, "t", TEMPORARY), child(diary, "p")], name="sup")
    dynamic = await DynamicSupervisor.start_link()
    temporary = await start_child(dynamic, child(diary, "d", TEMPORARY))
    permanent = await start_child(dynamic, child(diary, "e"))
    process, brood = node.peek(sup), node.peek(dynamic)
    assert process is not None
    assert brood is not None
    kept = {id: c.spec.start.args for id, c in process.state.children.items()}
    assert kept == {"t": (), "p": (diary, "p")}
    arguments = {pid: brood.state.folder.unfold(folded).start.args for pid, folded in brood.state.children.items()}
    assert arguments == {temporary: (), permanent: (diary, "e")}
    assert whereis("d") == temporary


# --- decisions as data ------------------------------------------------------------------------------------


def test_decide_knows_every_pair_of_restart_and_reason() -> None:
    crash = Crash(ValueError())
    again, keep, forget = Decision.START_AGAIN, Decision.KEEP_DOWN, Decision.FORGET
    assert [decide(PERMANENT, r) for r in (NORMAL, SHUTDOWN, Shutdown(1), crash)] == [again] * 4
    assert [decide(TRANSIENT, r) for r in (NORMAL, SHUTDOWN, Shutdown(1), crash)] == [keep, keep, keep, again]
    assert [decide(TEMPORARY, r) for r in (NORMAL, SHUTDOWN, Shutdown(1), crash)] == [forget] * 4


def test_the_window_counts_what_lies_within_the_period_and_forgets_the_rest() -> None:
    window = RestartWindow(intensity=2, period=1.0)
    assert [window.allow(now) for now in (0.0, 0.5, 1.2, 1.4)] == [True, True, True, False]


def test_the_backoff_grows_to_its_maximum_and_is_spread_by_the_jitter() -> None:
    backoff = Backoff(initial=1.0, factor=2.0, maximum=10.0, jitter=0.5)
    assert [backoff.delay(n, lambda low, high: 1.0) for n in range(6)] == [1, 2, 4, 8, 10, 10]
    assert [backoff.delay(0, lambda low, high: low), backoff.delay(0, lambda low, high: high)] == [0.5, 1.5]
    assert backoff.delay(10_000, lambda low, high: 1.0) == 10.0


def test_flags_have_the_defaults_of_elixir() -> None:
    flags = Flags()
    assert (flags.strategy.value, flags.intensity, flags.period, flags.auto_shutdown) == ("one_for_one", 3, 5.0, NEVER)
    assert ChildSpec("a", start(), shutdown=BRUTAL_KILL).deadline is BRUTAL_KILL
