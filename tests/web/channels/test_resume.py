"""Whatever the network and the TaskServer do, a client that resumes has the same history as one that never left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import trio
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from engine.otp import KILL, exit
from tests.web.channels.conftest import Device, Place, open_place

TOLD_BY = {
    "created": "task_created",
    "started": "started",
    "attempt_failed": "error",
    "reset": "reset",
    "responded": "llm_response",
    "completed": "task_completed",
}


@define
class Memory:
    """What a careful client keeps: durable events by seq, the text of the running attempt, the last progress."""

    seq: int = 0
    events: list[tuple[int, str]] = field(factory=list)
    attempt: int = 0
    text: str = ""
    progress: float = 0.0
    over: bool = False

    def joined(self, answer: dict[str, Any]) -> None:
        assert answer["reset"] is False
        for entry in answer["events"]:
            self.told(entry["event"], entry["payload"])
        assert self.seq == answer["seq"]
        task = answer["task"]
        self.attempt, self.text, self.progress = task["attempt"], task["response"], task["progress"]
        self.over = task["status"] in ("completed", "failed", "cancelled")

    def told(self, name: str, payload: dict[str, Any]) -> None:
        match name:
            case "text_delta":
                assert payload["attempt"] == self.attempt
                assert payload["offset"] == len(self.text), "a gap, or a double"
                self.text += payload["text"]
            case "progress":
                assert payload["attempt"] == self.attempt
                assert payload["progress"] >= self.progress
                self.progress = payload["progress"]
            case "durable" | "phx_close":
                pass
            case _:
                self._durable(name, payload)

    def _durable(self, name: str, payload: dict[str, Any]) -> None:
        assert payload["seq"] == self.seq + 1, "a gap, or a double"
        self.seq = payload["seq"]
        self.events.append((self.seq, name))
        if name in ("reset", "started"):
            self.text, self.progress = "", 0.0
            self.attempt = payload["attempt"]
        if name == "llm_response":
            assert payload["text"] == self.text or not self.text or payload["text"].startswith(self.text)
            self.text = payload["text"]
        self.over = name == "task_completed"


async def watch(place: Place, task_id: UUID, memory: Memory, leave_after: float) -> None:
    """One connection's life: resume, listen for some seconds, and vanish."""
    async with place.device() as device:
        with trio.move_on_after(leave_after):
            memory.joined(await device.join(f"task:{task_id}", last_seq=memory.seq))
            await listen(device, memory)


async def listen(device: Device, memory: Memory) -> None:
    while not memory.over:
        with trio.CancelScope(shield=True):
            # A frame that has arrived is either seen whole or not at all.
            while device.client.transport.sent:
                memory.told(*await device.next())
        await device.client.transport.more.wait()


async def scenario(visits: Sequence[tuple[float, float]], wish: dict[str, Any], kills: Sequence[float]) -> None:
    async with open_place() as place, trio.open_nursery() as nursery:
        task_id = await place.task(**wish)
        nursery.start_soon(kill_at, place, task_id, kills)
        constant = Memory()
        nursery.start_soon(watch, place, task_id, constant, 10_000)
        memory = Memory()
        for stay, away in visits:
            await watch(place, task_id, memory, stay)
            await trio.sleep(away)
        while not memory.over:
            await watch(place, task_id, memory, 10_000)
        log = place.house.storage.logs[task_id]
        expected = [event.seq for event in log]
        assert [seq for seq, _ in memory.events] == expected
        assert expected == list(range(1, len(log) + 1))
        assert memory.events == constant.events
        assert memory.text == constant.text == place.house.storage.tasks[task_id].text
        nursery.cancel_scope.cancel()


async def kill_at(place: Place, task_id: UUID, moments: Sequence[float]) -> None:
    for moment in sorted(moments):
        await trio.sleep_until(moment)
        server = place.server(task_id)
        if server is not None:
            exit(server, KILL)


seconds = st.floats(0, 4, allow_nan=False)
wishes = st.fixed_dictionaries(
    {"steps": st.integers(1, 8), "interval": st.sampled_from([0.3, 1.0]), "text": st.booleans()},
    optional={
        "crash_at": st.integers(1, 6),
        "fail_at": st.integers(1, 6),
        "worker_crash_at": st.integers(1, 6),
    },
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(seconds, seconds), max_size=5), wishes, st.lists(seconds, max_size=2))
def test_a_client_that_comes_and_goes_misses_nothing_and_hears_nothing_twice(
    visits: list[tuple[float, float]], wish: dict[str, Any], kills: list[float]
) -> None:
    if "fail_at" in wish:
        wish = wish | {"fail_kind": "retryable", "fail_attempts": 1}
    trio.run(scenario, visits, wish, kills, clock=MockClock(autojump_threshold=0))
