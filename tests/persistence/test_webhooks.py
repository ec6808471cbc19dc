"""Deliveries are stored once each, many in one commit, and nobody is told that one is stored before it is."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import trio
import trio.testing
from attrs import evolve

from engine.ports import Entry, PredictionChange, StorageDown
from persistence.connection import TrioConnection
from persistence.journal.journal import PostgresJournal
from persistence.pool import Pool
from persistence.webhooks import Delivery, WebhookStore
from tests.persistence.entries import Story
from tests.postgres import Outage


@pytest.fixture
def webhooks(database: Pool, nursery: trio.Nursery) -> WebhookStore:
    store = WebhookStore(database)
    nursery.start_soon(store.run)
    return store


def delivery(identifier: str, **more: Any) -> Delivery:
    return evolve(Delivery(identifier, uuid4(), "pred", "completed", {"status": "succeeded"}), **more)


async def rows(pool: Pool, query: str) -> list[tuple[Any, ...]]:
    async with pool.connection() as connection:
        return await (await connection.execute(query)).fetchall()  # type: ignore[arg-type]


async def add_all(store: WebhookStore, deliveries: list[Delivery]) -> list[bool | str]:
    """What each sender is told, in order: whether it was new, or that the database is away."""
    told: dict[int, bool | str] = {}

    async def one(number: int, each: Delivery) -> None:
        try:
            told[number] = await store.add(each)
        except (StorageDown, psycopg.Error) as problem:
            told[number] = type(problem).__name__

    async with trio.open_nursery() as senders:
        for number, each in enumerate(deliveries):
            senders.start_soon(one, number, each)
    return [told[number] for number in range(len(deliveries))]


async def test_a_delivery_is_stored_once_and_marked_when_it_has_had_its_effect(
    database: Pool, webhooks: WebhookStore
) -> None:
    one = delivery("msg_1")
    assert await webhooks.add(one)
    assert not await webhooks.add(one)
    assert await rows(database, "SELECT task_id, event_type, payload, processed FROM webhook_events") == [
        (one.task_id, "completed", {"status": "succeeded"}, False)
    ]
    webhooks.done(one, "replicate")
    await webhooks.add(delivery("msg_2"))  # commits the mark with it
    assert await rows(database, "SELECT webhook_id FROM webhook_events WHERE processed") == [("msg_1",)]


async def test_deliveries_that_come_together_share_commits_and_repeats_among_them_are_new_once(
    database: Pool, webhooks: WebhookStore
) -> None:
    told = await add_all(webhooks, [delivery(f"msg_{number % 150}") for number in range(300)])
    assert told.count(True) == 150
    assert told.count(False) == 150
    assert webhooks.commits <= 4
    assert await rows(database, "SELECT count(*) FROM webhook_events") == [(150,)]


async def an_attempt(journal: PostgresJournal, external_id: str | None = None) -> UUID:
    """A row of an attempt, as it is before or after the provider has answered."""
    story, attempt = Story(), uuid4()
    await journal.write(story.begin())
    change = PredictionChange(attempt, story.task_id, 1, "replicate", "starting", external_id=external_id)
    await journal.write(Entry(story.state, predictions=(change,)))  # type: ignore[arg-type]
    return attempt


HEARD = "SELECT id, external_id, webhook_received_at IS NOT NULL FROM predictions ORDER BY created_at"


@pytest.mark.parametrize("named", [True, False])
async def test_an_attempts_row_says_when_it_was_heard_of(
    named: bool, database: Pool, journal: PostgresJournal, webhooks: WebhookStore
) -> None:
    attempt, one = await an_attempt(journal, "pred"), delivery("msg_1")
    await webhooks.add(one)
    webhooks.done(one, "replicate", attempt if named else None)
    await webhooks.add(delivery("msg_2"))
    assert await rows(database, HEARD) == [(attempt, "pred", True)]


async def test_a_delivery_brings_an_attempt_the_id_that_it_never_heard(
    database: Pool, journal: PostgresJournal, webhooks: WebhookStore
) -> None:
    attempt, one = await an_attempt(journal), delivery("msg_1")
    await webhooks.add(one)
    webhooks.done(one, "replicate", attempt)
    await webhooks.add(delivery("msg_2"))
    assert await rows(database, HEARD) == [(attempt, "pred", True)]


async def test_a_delivery_changes_no_attempt_that_is_another_predictions(
    database: Pool, journal: PostgresJournal, webhooks: WebhookStore
) -> None:
    mine, unheard = await an_attempt(journal, "pred"), await an_attempt(journal)
    one, other = delivery("msg_1"), delivery("msg_2", prediction_external_id="elsewhere")
    for each, attempt in ((one, unheard), (other, mine)):
        await webhooks.add(each)
        webhooks.done(each, "replicate", attempt)
    await webhooks.add(delivery("msg_3"))
    assert await rows(database, HEARD) == [(mine, "pred", False), (unheard, None, False)]
    assert await rows(database, "SELECT count(*) FROM webhook_events WHERE processed") == [(2,)]
    assert await webhooks.stored("msg_2") == {"status": "succeeded"}
    assert await webhooks.stored("msg_9") is None


async def test_one_that_cannot_be_stored_fails_alone(database: Pool, webhooks: WebhookStore) -> None:
    poison = delivery("msg_x", event_type="unheard of")
    told = await add_all(webhooks, [*(delivery(f"msg_{number}") for number in range(20)), poison])
    assert told == [True] * 20 + ["CheckViolation"]
    assert await rows(database, "SELECT count(*) FROM webhook_events") == [(20,)]


async def test_strange_characters_are_stored_as_far_as_they_can_be(database: Pool, webhooks: WebhookStore) -> None:
    strange = delivery("msg_\0", payload={"error": "a\0b\ud800"})
    assert await webhooks.add(strange)
    assert not await webhooks.add(strange)
    assert await rows(database, "SELECT payload FROM webhook_events") == [({"error": "a\ufffdb\ufffd"},)]


async def test_while_the_database_is_away_senders_are_told_to_come_again(
    database: Pool, webhooks: WebhookStore, outage: Outage
) -> None:
    assert await webhooks.add(delivery("msg_1"))
    await trio.to_thread.run_sync(outage.begin)
    told = await add_all(webhooks, [delivery(f"msg_{number}") for number in range(5)])
    assert told == ["StorageDown"] * 5
    await trio.to_thread.run_sync(outage.end)
    await database.wait_up()
    assert await add_all(webhooks, [delivery(f"msg_{number}") for number in range(5)]) == [
        True,
        False,
        True,
        True,
        True,
    ]


async def test_a_server_that_stands_still_is_not_waited_for_without_end(
    database: Pool, webhooks: WebhookStore, conninfo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persistence.webhooks.WRITE_TIMEOUT", 0.2)
    async with await TrioConnection.connect(conninfo) as other, other.transaction():
        await other.execute("LOCK TABLE webhook_events")
        assert await add_all(webhooks, [delivery("msg_1")]) == ["StorageDown"]
    assert await webhooks.add(delivery("msg_1"))


async def test_more_than_may_wait_are_told_to_come_again(database: Pool) -> None:
    store = WebhookStore(database, bound=3)  # nobody writes yet
    async with trio.open_nursery() as senders:
        for number in range(3):
            senders.start_soon(store.add, delivery(f"msg_{number}"))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(StorageDown, match="too many"):
            await store.add(delivery("msg_3"))
        senders.start_soon(store.run)
        with trio.fail_after(10):
            while not store.commits:
                await trio.testing.wait_all_tasks_blocked(0.01)
        senders.cancel_scope.cancel()
    assert await rows(database, "SELECT count(*) FROM webhook_events") == [(3,)]
