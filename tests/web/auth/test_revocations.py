"""Shutting users out for good: over restarts, on every server, and while the database is away."""

from __future__ import annotations

import trio
from attrs import define, field

from engine.otp import Node, Supervisor, stop
from engine.ports import StorageDown
from web.auth import AuthSettings, Guard
from web.auth.credentials import Credentials
from web.auth.guard import REVOKED
from web.auth.revocations import Revocations
from web.auth.settings import parse_tokens


@define
class Shelf:
    """What several servers share. `away`: as a database that is; `slow`: what a write waits for."""

    users: dict[str, str] = field(factory=dict)
    away: bool = False
    slow: dict[str, trio.Event] = field(factory=dict)

    def _check(self) -> None:
        if self.away:
            raise StorageDown

    async def all(self) -> frozenset[str]:
        self._check()
        found = frozenset(self.users)
        if "all" in self.slow:
            await self.slow["all"].wait()
        return found

    async def put(self, user: str, by: str) -> None:
        self._check()
        if "put" in self.slow:
            await self.slow["put"].wait()
        self.users[user] = by

    async def remove(self, user: str) -> None:
        self._check()
        self.users.pop(user, None)


def server(shelf: Shelf) -> tuple[Revocations, list[str]]:
    closed: list[str] = []

    def disconnect(name: str) -> int:
        closed.append(name)
        return 1

    guard = Guard(AuthSettings(tokens=parse_tokens("a=ann,b=bob")))
    return Revocations(guard, shelf, disconnect, period=1.0), closed


def is_out(revocations: Revocations, token: str = "b") -> bool:
    return revocations.guard.authenticate(Credentials(token)) == REVOKED


async def test_a_revocation_survives_a_restart(node: Node, autojump_clock: trio.testing.MockClock) -> None:
    shelf = Shelf()
    before, _ = server(shelf)
    assert await before.revoke("bob", "olga") is True
    assert (is_out(before), shelf.users) == (True, {"bob": "olga"})
    after, _ = server(shelf)
    top = await Supervisor.start_link([after.spec()])
    assert is_out(after)
    assert not is_out(after, "a")
    assert await after.restore("bob") is True
    assert (is_out(after), shelf.users) == (False, {})
    await stop(top)


async def test_another_server_hears_of_it_and_closes_sockets(
    node: Node, autojump_clock: trio.testing.MockClock
) -> None:
    shelf = Shelf()
    here, (there, closed) = server(shelf)[0], server(shelf)
    top = await Supervisor.start_link([there.spec()])
    await here.revoke("bob", "olga")
    assert not is_out(there)
    await trio.sleep(1.5)
    assert (is_out(there), closed) == (True, ["users:bob"])
    await here.restore("bob")
    await trio.sleep(1.5)
    assert (is_out(there), closed) == (False, ["users:bob"])
    await stop(top)


async def test_while_the_database_is_away_it_holds_here_and_is_made_up_for(
    node: Node, autojump_clock: trio.testing.MockClock
) -> None:
    shelf = Shelf(away=True)
    revocations, _ = server(shelf)
    top = await Supervisor.start_link([revocations.spec()])
    assert await revocations.revoke("bob", "olga") is False
    assert (is_out(revocations), shelf.users) == (True, {})
    shelf.away = False
    await trio.sleep(1.5)
    assert (is_out(revocations), shelf.users) == (True, {"bob": "olga"})
    await stop(top)


async def test_what_is_read_while_something_changes_is_not_believed(
    node: Node, autojump_clock: trio.testing.MockClock
) -> None:
    shelf = Shelf(slow={"all": trio.Event()})
    revocations, _ = server(shelf)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(revocations._round)  # reads that nobody is out
        await trio.testing.wait_all_tasks_blocked()
        await revocations.revoke("bob", "olga")
        shelf.slow.pop("all").set()
    assert is_out(revocations)


async def test_the_last_word_is_the_one_that_is_stored(node: Node, autojump_clock: trio.testing.MockClock) -> None:
    held = trio.Event()
    shelf = Shelf(slow={"put": held})
    revocations, _ = server(shelf)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(revocations.revoke, "bob", "olga")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(revocations.restore, "bob")
        await trio.testing.wait_all_tasks_blocked()
        held.set()
    assert (is_out(revocations), shelf.users) == (False, {})
