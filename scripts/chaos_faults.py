"""The server that chaos breaks, and the ways to break it. Each fault mends what it broke before it returns.

Faults act on the server started here and on its own PostgreSQL, by process id; nothing else is touched.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import LiteralString

import psutil
import psycopg
import trio
from attrs import define, field

from persistence.embedded.folder import lay_out
from persistence.embedded.server import SUPERUSER
from scripts.client import PhoenixSocket
from scripts.server import ServerFailed, ServerProcess, launch

ENVIRONMENT = {
    "ELWIFT_LOCAL_MODEL": "false",
    "ELWIFT_LOG_FORMAT": "json",
    "ELWIFT_MAX_QUEUED": "1000000",
    "ELWIFT_MAX_QUEUED_PER_USER": "1000000",
}


@define(eq=False)
class Victim:
    """The server under test, over all its lives. `url` changes with each; `up` is set while one is ready."""

    data_dir: Path
    nursery: trio.Nursery
    url: str = ""
    lives: int = 0
    starts: list[float] = field(factory=list)
    """Seconds from each start of the process until it was ready."""
    killed_at: list[float] = field(factory=list)
    sockets: set[PhoenixSocket] = field(factory=set)
    _server: ServerProcess | None = None
    _up: trio.Event = field(factory=trio.Event)

    async def start(self) -> None:
        began = trio.current_time()
        self._server = await launch(self.nursery, self.data_dir, environment=ENVIRONMENT)
        self.starts.append(trio.current_time() - began)
        self.url = self._server.url
        self.lives += 1
        self._up.set()

    async def up(self) -> None:
        await self._up.wait()

    async def kill(self) -> None:
        """SIGKILL to the server; its PostgreSQL is left behind."""
        assert self._server is not None
        self._up = trio.Event()
        self.killed_at.append(trio.current_time())
        await self._server.kill()

    async def terminate(self) -> int:
        assert self._server is not None
        self._up = trio.Event()
        return await self._server.terminate(40.0)

    async def leave_nothing(self) -> None:
        """Ends what still runs, however this script ends: the server, and the PostgreSQL that may outlive it."""
        if self._server is not None and self.alive:
            try:
                await self.terminate()
            except trio.TooSlowError:
                await self._server.kill()
        if (postgres := self.postgres()) is not None:
            _signal(postgres, signal.SIGKILL)

    @property
    def pid(self) -> int:
        assert self._server is not None
        return self._server.process.pid

    @property
    def alive(self) -> bool:
        return self._server is not None and self._server.process.poll() is None

    def postgres(self) -> psutil.Process | None:
        """The postmaster of this data folder, if it lives."""
        try:
            pid = int((self.data_dir / "postgres" / "postmaster.pid").read_text().split()[0])
            process = psutil.Process(pid)
            return process if process.name() == "postgres" else None
        except (OSError, ValueError, IndexError, psutil.Error):
            return None

    def conninfo(self) -> str:
        sockets = lay_out(self.data_dir).sockets
        return f"host='{sockets}' user={SUPERUSER} dbname=postgres connect_timeout=5"


Fault = Callable[[Victim, random.Random], Awaitable[None]]


async def kill_server(victim: Victim, chance: random.Random) -> None:
    await victim.kill()
    await victim.start()


async def kill_postgres(victim: Victim, chance: random.Random) -> None:
    if (postgres := victim.postgres()) is not None:
        postgres.send_signal(signal.SIGKILL)


async def kill_both(victim: Victim, chance: random.Random) -> None:
    await kill_postgres(victim, chance)
    await kill_server(victim, chance)


async def restart_in_order(victim: Victim, chance: random.Random) -> None:
    """SIGTERM, as a deployment does."""
    status = await victim.terminate()
    if status != 0:
        raise ServerFailed(f"exit status {status} after SIGTERM")
    await victim.start()


async def stop_server(victim: Victim, chance: random.Random) -> None:
    os.kill(victim.pid, signal.SIGSTOP)
    try:
        await trio.sleep(chance.uniform(0.2, 4.0))
    finally:
        os.kill(victim.pid, signal.SIGCONT)


async def stop_postgres(victim: Victim, chance: random.Random) -> None:
    if (postgres := victim.postgres()) is None:
        return
    stopped = []
    try:
        for process in [postgres, *postgres.children()]:
            _signal(process, signal.SIGSTOP)
            stopped.append(process)
        await trio.sleep(chance.uniform(0.2, 6.0))
    finally:
        for process in stopped:
            _signal(process, signal.SIGCONT)


def _signal(process: psutil.Process, sign: signal.Signals) -> None:
    """A backend may have ended by itself meanwhile; psutil checks that the id still is its own."""
    try:
        process.send_signal(sign)
    except psutil.NoSuchProcess:
        return


async def fail_writes(victim: Victim, chance: random.Random) -> None:
    """Every write is refused for a while, while reads go on: what a full disk or a lost primary looks like."""
    if not await trio.to_thread.run_sync(_say, victim.conninfo(), _READ_ONLY):
        return
    try:
        await trio.sleep(chance.uniform(0.5, 3.0))
    finally:
        with trio.CancelScope(shield=True), trio.fail_after(30):
            while not await trio.to_thread.run_sync(_say, victim.conninfo(), _WRITABLE):  # noqa: ASYNC110
                await trio.sleep(0.2)


_READ_ONLY: LiteralString = "ALTER SYSTEM SET default_transaction_read_only = on"
_EVERYBODY_OUT: LiteralString = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datid IS NOT NULL
"""
_WRITABLE: LiteralString = "ALTER SYSTEM RESET default_transaction_read_only"


def _say(conninfo: str, statement: LiteralString) -> bool:
    try:
        with psycopg.connect(
            f"{conninfo} options='-c default_transaction_read_only=off'", autocommit=True
        ) as connection:
            connection.execute(statement)
            connection.execute("SELECT pg_reload_conf()")
    except psycopg.OperationalError:
        return False
    return True


async def cut_connections(victim: Victim, chance: random.Random) -> None:
    """PostgreSQL throws everybody out, once or several times."""
    for _ in range(chance.randint(1, 3)):
        await trio.to_thread.run_sync(_say, victim.conninfo(), _EVERYBODY_OUT)
        await trio.sleep(chance.uniform(0.0, 0.3))


async def drop_sockets(victim: Victim, chance: random.Random) -> None:
    for socket in list(victim.sockets):
        if chance.random() < 0.7:
            await socket.drop()


FAULTS: dict[str, tuple[Fault, float]] = {
    "kill_server": (kill_server, 5.0),
    "kill_postgres": (kill_postgres, 4.0),
    "kill_both": (kill_both, 2.0),
    "restart_in_order": (restart_in_order, 1.0),
    "stop_server": (stop_server, 1.0),
    "stop_postgres": (stop_postgres, 2.0),
    "fail_writes": (fail_writes, 2.0),
    "cut_connections": (cut_connections, 2.0),
    "drop_sockets": (drop_sockets, 2.0),
}
"""Every fault, and how often it comes in proportion to the others."""

KILLS = frozenset({"kill_server", "kill_postgres", "kill_both"})
OUTAGES = frozenset({"kill_postgres", "kill_both", "stop_postgres", "fail_writes", "cut_connections"})


def plan(kills: int, chance: random.Random) -> list[str]:
    """Faults in random order, with exactly so many kills among them."""
    names, weights = list(FAULTS), [weight for _, weight in FAULTS.values()]
    planned: list[str] = []
    while sum(name in KILLS for name in planned) < kills:
        planned += chance.choices(names, weights)
    return planned
