"""Tasks that live on another server, that move, or that are ended to save memory."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing

from engine.otp import Shutdown, exit
from engine.tasks import events as ev
from engine.tasks import follow, lookup, relay
from engine.tasks.messages import Accepted, TaskProgress, TaskText
from engine.tasks.state import Status
from tests.engine.fakes import House, Shared, house
from tests.engine.tasks.watching import begin, over, watch


def news(homes: Shared) -> list[relay.News]:
    """Makes `homes` keep what is told to other servers."""
    told: list[relay.News] = []

    def keep(words: str) -> None:
        found = relay.decode(words)
        assert found is not None
        told.append(found)

    homes.on_news.append(keep)
    return told


def hear(h: House, message: relay.News) -> None:
    for words in relay.encode(message):
        h.runtime.relay.heard(words)


async def moved_away(h: House, homes: Shared) -> Accepted:
    """A task that was made here and that another server has claimed."""
    h.queue.paused = True
    accepted = await begin(h.runtime)
    assert accepted.task.job_id is not None
    homes.where[accepted.task.job_id] = "two"
    follow.moved(h.runtime, accepted.task.id)
    await over(h.runtime, accepted.task.id)
    return accepted


def elsewhere(h: House, accepted: Accepted, *bodies: ev.EventBody) -> relay.Log:
    """What the other server writes to the task's log."""
    log = h.storage.logs[accepted.task.id]
    for body in bodies:
        log.append(ev.TaskEvent(accepted.task.id, len(log) + 1, h.clock(), 1, ev.Actor.WORKER, body))
    return relay.Log(accepted.task.id, len(log))


async def test_a_task_that_another_server_has_claimed_leaves_memory_unless_it_is_watched() -> None:
    homes = Shared()
    async with house(homes=homes) as h:
        accepted = await moved_away(h, homes)
        assert await lookup.find(h.runtime, accepted.task.id) == accepted.task
        watcher = await watch(h.runtime, accepted.task.id)
        live = h.runtime.stash.get(accepted.task.id)
        assert live is not None
        assert live.mirror
        hear(h, elsewhere(h, accepted, ev.Started("simulate", "simulate"), ev.Completed(1.0)))
        await watcher.final()
        assert watcher.events == [ev.Started, ev.Completed]
        await over(h.runtime, accepted.task.id)


async def test_a_mirror_tells_progress_and_text_and_asks_again_for_what_was_lost(autojump_clock: Any) -> None:
    homes = Shared()
    async with house(homes=homes, recover=True) as h:
        accepted, told = await moved_away(h, homes), news(homes)
        id = accepted.task.id
        watcher = await watch(h.runtime, id)
        await trio.sleep(0.2)
        assert told == [relay.Watch(id, 0, 0)]
        log = elsewhere(h, accepted, ev.Started("simulate", "simulate"))
        hear(h, relay.Text(id, 1, 0, "Every ", 1.0))  # before the word that there is a log: it looks by itself
        hear(h, log)
        hear(h, relay.Progress(id, 1, 0.25, "processing", "1/4", None, 3.0, 1.0))
        hear(h, relay.Text(id, 1, 3, "ry task", 2.0))
        hear(h, relay.Text(id, 1, 20, "lost its beginning", 3.0))
        await watcher.until(lambda w: w.text == "Every task")
        await trio.sleep(0.3)
        assert told[-1] == relay.Watch(id, 1, 10)
        assert watcher.progress() == [0.25]
        assert h.snapshots.pending.get(id) is None or h.snapshots.pending[id].text == ""
        hear(h, elsewhere(h, accepted, ev.Responded("Every task is"), ev.Completed(1.0)))
        await watcher.final()
        assert watcher.events == [ev.Started, ev.Responded, ev.Completed]
        assert watcher.text == "Every task is"


async def test_what_runs_here_is_told_to_servers_that_watch_it_and_to_no_other(autojump_clock: Any) -> None:
    homes = Shared()
    async with house(homes=homes, recover=True) as h:
        told = news(homes)
        quiet = await begin(h.runtime, text=True)
        await over(h.runtime, quiet.task.id)
        h.queue.paused = True
        watched = await begin(h.runtime, text=True, steps=4, interval=0.05)
        hear(h, relay.Watch(watched.task.id, 0, 0))
        h.queue.paused = False
        h.queue.go()
        await over(h.runtime, watched.task.id)
        await trio.sleep(0.3)
    assert {piece.task for piece in told} == {watched.task.id}
    texts = [piece for piece in told if isinstance(piece, relay.Text)]
    assert "".join(piece.text for piece in texts) == "Every task is a"
    assert [piece.offset for piece in texts] == [
        0,
        *(texts[n].offset + len(texts[n].text) for n in range(len(texts) - 1)),
    ]
    assert max(piece.seq for piece in told if isinstance(piece, relay.Log)) == 4


async def test_a_cancel_at_a_mirror_is_told_where_the_task_lives(autojump_clock: Any) -> None:
    homes = Shared()
    async with house(homes=homes, recover=True) as h:
        accepted, told = await moved_away(h, homes), news(homes)
        assert (await lookup.cancel(h.runtime, accepted.task.id)).status is Status.CANCELLED
        await trio.sleep(0.2)
    assert relay.Log(accepted.task.id, 2) in told


async def test_when_a_server_is_gone_what_lived_there_comes_back_here(autojump_clock: Any) -> None:
    homes = Shared()
    async with house(homes=homes, recover=True) as h:
        accepted = await moved_away(h, homes)
        watched = await moved_away(h, homes)
        await watch(h.runtime, watched.task.id)
        homes.where.clear()
        homes.gone.set()
        await trio.sleep(0.5)
        for one in (accepted, watched):
            live = h.runtime.stash.get(one.task.id)
            assert live is not None
            assert not live.mirror


# --- ended to save memory ------------------------------------------------------------------------------------


async def test_a_task_that_is_ended_to_save_memory_is_read_again_when_its_turn_comes(autojump_clock: Any) -> None:
    async with house(recover=True) as h:
        h.queue.paused = True
        accepted = await begin(h.runtime)
        server = lookup.whereis(h.runtime, accepted.task.id)
        assert server is not None
        exit(server, Shutdown("memory"))
        await trio.sleep(2)
        assert accepted.task.id not in h.runtime.stash
        h.queue.paused = False
        h.queue.go()
        await trio.sleep(2)
        assert [type(event.body) for event in h.storage.logs[accepted.task.id]][-1] is ev.Completed


async def test_a_task_at_work_whose_server_is_ended_to_save_memory_goes_on(autojump_clock: Any) -> None:
    async with house(recover=True) as h:
        h.queue.paused = True
        accepted = await begin(h.runtime, steps=8, interval=0.5, text=True)
        watcher = await watch(h.runtime, accepted.task.id)
        h.queue.paused = False
        h.queue.go()
        await watcher.until(lambda w: len(w.told(TaskProgress)) >= 2)
        server = lookup.whereis(h.runtime, accepted.task.id)
        assert server is not None
        exit(server, Shutdown("memory"))
        await watcher.final()
        assert watcher.events == [ev.Started, ev.Responded, ev.Completed]


# --- news as it travels --------------------------------------------------------------------------------------


def test_long_text_goes_in_pieces_that_a_notification_holds() -> None:
    text = "\x00ä𝄞\n" * 5000
    pieces = list(relay.encode(relay.Text(relay.UUID(int=1), 1, 7, text, 1.0)))
    assert len(pieces) > 1
    assert max(len(piece.encode()) for piece in pieces) <= relay.MOST
    found = [relay.decode(piece) for piece in pieces]
    assert "".join(piece.text for piece in found if isinstance(piece, relay.Text)) == text
    offsets = [piece.offset for piece in found if isinstance(piece, relay.Text)]
    assert offsets == sorted(offsets)
    assert offsets[0] == 7
    assert not any("\x00" in piece for piece in pieces)


def test_what_a_newer_server_says_is_passed_over() -> None:
    assert relay.decode('["z","new"]') is None
    assert relay.decode("not json") is None


def test_a_task_that_is_far_ahead_of_its_watchers_loses_text_not_order() -> None:
    parcel, id = relay.Parcel(), relay.UUID(int=1)
    for n in range(40):
        parcel.put(TaskText(id, 1, n * 10_000, "x" * 10_000, 1.0))
    (text,) = parcel.open(id)
    assert isinstance(text, relay.Text)
    assert (text.offset, len(text.text)) == (0, 270_000)
