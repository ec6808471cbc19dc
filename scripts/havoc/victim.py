"""The server that is broken, over all its lives: started, killed, looked at. Acts on what was started here alone.

`Life` is what a client needs to know of one life: its number and where it listens. Clients ask for it before each
request, so that what they are told is put down to the process that said it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import LiteralString

import psutil  # type: ignore[import-untyped]
import psycopg
import trio
from attrs import define, field, frozen

from persistence.embedded.folder import lay_out
from persistence.embedded.server import SUPERUSER
from scripts.client import PhoenixSocket
from scripts.havoc.record import Timeline
from scripts.server import ServerFailed, ServerProcess, launch

START_WITHIN = 120.0
STOP_WITHIN = 60.0

ENVIRONMENT = {
    "ELWIFT_LOCAL_MODEL": "false",
    "ELWIFT_LOG_FORMAT": "json",
    "ELWIFT_MAX_QUEUED": "1000000",
    "ELWIFT_MAX_QUEUED_PER_USER": "1000000",
}


@frozen
class Life:
    """One life of the server."""

    number: int
    url: str


@define(eq=False)
class Victim:
    """The server under test. `environment` goes to every life of it."""

    data_dir: Path
    nursery: trio.Nursery
    environment: dict[str, str] = field(factory=lambda: dict(ENVIRONMENT))
    timeline: Timeline = field(factory=Timeline)
    lives: int = 0
    kills: int = 0
    killed_at: float | None = None
    """When the server was killed last; None once it has acknowledged a task since (`accepted`)."""
    accepting_after: list[float] = field(factory=list)
    """Seconds from each kill of the server, or the last of a row of them, to the next 202."""
    sockets: set[PhoenixSocket] = field(factory=set)
    at_next_accept: Callable[[], None] | None = None
    """Called once, at the very moment at which a client has its next 202."""
    _server: ServerProcess | None = None
    _life: Life | None = None
    _up: trio.Event = field(factory=trio.Event)

    # --- its lives ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Starts the server and waits until it serves. Raises ServerFailed."""
        self._server = await launch(
            self.nursery, self.data_dir, environment=self.environment, within=START_WITHIN, started=self._born
        )
        self.lives += 1
        self._life = Life(self.lives, self._server.url)
        self._up.set()

    def _born(self, server: ServerProcess) -> None:
        self._server = server

    async def life(self) -> Life:
        """The present life, once there is one."""
        while self._life is None:
            await self._up.wait()
        return self._life

    def lives_still(self, life: Life) -> bool:
        return self._life is life

    def strike(self) -> None:
        """SIGKILL to the server, at once; its PostgreSQL is left behind. `bury` it then."""
        if self._server is not None and self.alive:
            self.kills += 1
            self.killed_at = trio.current_time()
            os.kill(self.pid, signal.SIGKILL)

    async def bury(self) -> None:
        """Waits for the end of a process that was struck; what it had said from memory may be gone from here on."""
        self._ended()
        assert self._server is not None
        with trio.fail_after(10):
            await self._server.process.wait()

    async def kill(self) -> None:
        self.strike()
        await self.bury()

    async def terminate(self) -> int:
        """SIGTERM, and the exit status. Raises trio.TooSlowError."""
        assert self._server is not None
        self._server.process.send_signal(signal.SIGTERM)
        with trio.fail_after(STOP_WITHIN):
            status = await self._server.process.wait()
        self._ended()
        return status

    def _ended(self) -> None:
        if self._life is not None:
            self.timeline.ended[self._life.number] = trio.current_time()
            self._life, self._up = None, trio.Event()

    async def leave_nothing(self) -> None:
        """Ends what still runs, however this script ends: the server, and the PostgreSQL that may outlive it."""
        if self._server is not None and self.alive:
            try:
                await self.terminate()
            except trio.TooSlowError:
                await self.kill()
        for process in self.postgres_family():
            send(process, signal.SIGKILL)

    @property
    def pid(self) -> int:
        assert self._server is not None
        return self._server.process.pid

    @property
    def alive(self) -> bool:
        return self._server is not None and self._server.process.poll() is None

    def accepted(self) -> None:
        """A client has a 202."""
        if self.killed_at is not None:
            self.accepting_after.append(trio.current_time() - self.killed_at)
            self.killed_at = None
        if self.at_next_accept is not None:
            strike, self.at_next_accept = self.at_next_accept, None
            strike()

    # --- its PostgreSQL -------------------------------------------------------------------------------------

    @property
    def cluster(self) -> Path:
        return self.data_dir / "postgres"

    def postgres(self) -> psutil.Process | None:
        """The postmaster of this data folder, if it lives."""
        try:
            pid = int((self.cluster / "postmaster.pid").read_text().split()[0])
            process = psutil.Process(pid)
            return process if process.name() == "postgres" else None
        except (OSError, ValueError, IndexError, psutil.Error):
            return None

    def postgres_family(self) -> list[psutil.Process]:
        """The postmaster and its children; none when it is not there."""
        postmaster = self.postgres()
        try:
            return [] if postmaster is None else [postmaster, *postmaster.children()]
        except psutil.Error:
            return []

    def kill_postgres(self) -> bool:
        """SIGKILL to the postmaster, at once; whether there was one."""
        postmaster = self.postgres()
        if postmaster is not None:
            self.kills += 1
            send(postmaster, signal.SIGKILL)
        return postmaster is not None

    def conninfo(self, database: str = "postgres") -> str:
        return f"host='{lay_out(self.data_dir).sockets}' user={SUPERUSER} dbname={database} connect_timeout=5"

    async def say(self, statement: LiteralString) -> bool:
        """Tells PostgreSQL something as its superuser; whether it listened."""
        return await trio.to_thread.run_sync(partial(_say, self.conninfo(), statement))


def send(process: psutil.Process, sign: signal.Signals) -> None:
    """A process may have ended by itself meanwhile; psutil checks that the id still is its own."""
    try:
        process.send_signal(sign)
    except psutil.NoSuchProcess:
        return


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


__all__ = ["ENVIRONMENT", "Life", "ServerFailed", "Victim", "send"]
