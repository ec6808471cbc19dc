"""Many tasks under random kills of TaskServers and workers, held and lost receipts: what every client may rely on."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio

from engine.otp import KILL, exit
from engine.tasks import events as ev
from engine.tasks import lookup
from engine.tasks.messages import TaskHappened, TaskProgress, TaskText
from engine.tasks.state import fold
from tests.engine.fakes import House, house
from tests.engine.tasks.watching import Watcher, begin_watched

TASKS = 12


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_falls_every_client_sees_a_true_history(seed: int, autojump_clock: Any) -> None:
    chance = random.Random(seed)
    async with house() as h:
        made = [await begin_watched(h, steps=60, interval=0.5, text=True) for _ in range(TASKS)]
        broken: list[str] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(break_things, h, chance, [accepted.task.id for accepted, _ in made], broken)
            for _, watcher in made:
                await watcher.final(patience=3600)
            nursery.cancel_scope.cancel()
        for accepted, watcher in made:
            check(h, watcher, accepted.task.id)
        assert {"server", "worker", "journal"} <= set(broken)


async def break_things(h: House, chance: random.Random, ids: list[Any], broken: list[str]) -> None:
    """Kills somebody every now and then; the same task's server never so often that it counts as poisoned."""
    while True:
        await trio.sleep(chance.uniform(0.05, 0.5))
        id = chance.choice(ids)
        match chance.randrange(4):
            case 0:
                server = lookup.whereis(h.runtime, id)
                live = h.runtime.stash.get(id)
                if server is not None and live is not None and len(live.crashes) < 2:
                    exit(server, KILL)
                    broken.append("server")
            case 1:
                live = h.runtime.stash.get(id)
                if live is not None and live.worker is not None and live.worker.run.fence.attempt < 3:
                    exit(live.worker.pid, KILL)
                    broken.append("worker")
            case 2 if h.storage.held is None:
                h.storage.hold()
                broken.append("journal")
            case _:
                h.storage.let_go()


def check(h: House, watcher: Watcher, id: Any) -> None:
    log = h.storage.logs[id]
    assert [event.seq for event in log] == list(range(1, len(log) + 1))
    assert sum(isinstance(event.body, ev.TERMINAL) for event in log) == 1
    told = watcher.told(TaskHappened)
    assert [news.event for news in told] == log[1:]  # all of it, in order, once
    attempts = {news.attempt for news in watcher.told(TaskProgress)}
    for attempt in attempts:
        assert watcher.progress(attempt) == sorted(watcher.progress(attempt))
        text = ""
        for piece in (news for news in watcher.told(TaskText) if news.attempt == attempt):
            assert piece.offset == len(text)
            text += piece.text
        if isinstance(log[-1].body, ev.Completed) and attempt == max(attempts):
            assert watcher.bodies(ev.Responded)[0].text == text
    state = None
    for event in log:
        state = fold(state, event)
    assert state is not None
    assert state == told[-1].task or state.status == told[-1].task.status
