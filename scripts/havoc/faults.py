"""The plain ways to break the server: kills, stops, refused writes, cut connections. Each mends what it broke.

A fault is an async function of the victim and of chance. What must hold while it lasts is judged by others, from what
clients were told; a fault complains (ServerFailed) only of a server that does not come back.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import LiteralString

import psutil  # type: ignore[import-untyped]
import trio
from attrs import frozen

from scripts.havoc.victim import ServerFailed, Victim, send

Chance = random.Random


@frozen
class Fault:
    """`weight`: how often it comes in proportion to the others."""

    name: str
    weight: float
    run: Callable[[Victim, Chance], Awaitable[None]]


# --- kills ------------------------------------------------------------------------------------------------


async def kill_server(victim: Victim, chance: Chance) -> None:
    await victim.kill()
    await victim.start()


async def kill_postgres(victim: Victim, chance: Chance) -> None:
    victim.kill_postgres()


async def kill_both(victim: Victim, chance: Chance) -> None:
    """At the same instant."""
    victim.kill_postgres()
    victim.strike()
    await victim.bury()
    await victim.start()


async def kill_child_of_postgres(victim: Victim, chance: Chance) -> None:
    """One of PostgreSQL's own processes: it then throws everybody out, and replays its log by itself."""
    children = victim.postgres_family()[1:]
    if children:
        victim.kills += 1
        send(chance.choice(children), signal.SIGKILL)


# --- stops ------------------------------------------------------------------------------------------------


async def restart_in_order(victim: Victim, chance: Chance) -> None:
    """SIGTERM, as a deployment does."""
    status = await victim.terminate()
    if status != 0:
        raise ServerFailed(f"exit status {status} after SIGTERM")
    await victim.start()


def stop_server(shortest: float, longest: float) -> Callable[[Victim, Chance], Awaitable[None]]:
    """SIGSTOP to the server for so many seconds."""

    async def stop(victim: Victim, chance: Chance) -> None:
        os.kill(victim.pid, signal.SIGSTOP)
        try:
            await trio.sleep(chance.uniform(shortest, longest))
        finally:
            os.kill(victim.pid, signal.SIGCONT)

    return stop


def stop_postgres(shortest: float, longest: float) -> Callable[[Victim, Chance], Awaitable[None]]:
    """SIGSTOP to PostgreSQL and all its processes."""

    async def stop(victim: Victim, chance: Chance) -> None:
        with stopped(victim.postgres_family()):
            await trio.sleep(chance.uniform(shortest, longest))

    return stop


@contextmanager
def stopped(processes: Iterable[psutil.Process]) -> Iterator[None]:
    """They stand still for the length of the block."""
    held = list(processes)
    try:
        for process in held:
            send(process, signal.SIGSTOP)
        yield
    finally:
        for process in held:
            send(process, signal.SIGCONT)


# --- refusals and cuts ------------------------------------------------------------------------------------

_READ_ONLY: LiteralString = "ALTER SYSTEM SET default_transaction_read_only = on"
_WRITABLE: LiteralString = "ALTER SYSTEM RESET default_transaction_read_only"
_EVERYBODY_OUT: LiteralString = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datid IS NOT NULL
"""


async def refuse_writes(victim: Victim, chance: Chance) -> None:
    """Every write is refused for a while, while reads go on: what a primary that became a standby does."""
    if not await victim.say(_READ_ONLY):
        return
    try:
        await trio.sleep(chance.uniform(0.5, 3.0))
    finally:
        with trio.CancelScope(shield=True), trio.fail_after(60):
            while not await victim.say(_WRITABLE):  # noqa: ASYNC110 - PostgreSQL may be down: nobody tells
                await trio.sleep(0.2)


async def cut_connections(victim: Victim, chance: Chance) -> None:
    """PostgreSQL throws everybody out, once or several times."""
    for _ in range(chance.randint(1, 3)):
        await victim.say(_EVERYBODY_OUT)
        await trio.sleep(chance.uniform(0.0, 0.3))


async def drop_sockets(victim: Victim, chance: Chance) -> None:
    for socket in list(victim.sockets):
        if chance.random() < 0.7:
            await socket.drop()


AWAY = 60.0


async def take_postgres_away(victim: Victim, chance: Chance) -> None:
    """PostgreSQL is killed and its folder is not there for a minute: a volume that was lost, and found again."""
    hidden = victim.cluster.with_name("postgres.away")
    victim.kill_postgres()
    victim.cluster.rename(hidden)
    try:
        await trio.sleep(AWAY)
    finally:
        hidden.rename(victim.cluster)


PLAIN = (
    Fault("kill_server", 4.0, kill_server),
    Fault("kill_postgres", 3.0, kill_postgres),
    Fault("kill_both", 2.0, kill_both),
    Fault("kill_child_of_postgres", 1.0, kill_child_of_postgres),
    Fault("restart_in_order", 1.0, restart_in_order),
    Fault("stop_server", 1.0, stop_server(0.2, 4.0)),
    Fault("stop_postgres", 1.5, stop_postgres(0.2, 6.0)),
    Fault("refuse_writes", 1.0, refuse_writes),
    Fault("cut_connections", 1.5, cut_connections),
    Fault("drop_sockets", 2.0, drop_sockets),
)
LONG = (
    Fault("stop_server_past_its_leases", 1.0, stop_server(35.0, 40.0)),
    Fault("stop_postgres_past_all_patience", 1.0, stop_postgres(22.0, 28.0)),
    Fault("take_postgres_away", 1.0, take_postgres_away),
)
"""Too long to come often: each once in a hundred kills."""
