"""The embedded PostgreSQL: a child process that is made once, started, watched, started again, and stopped.

It listens on a socket in the file system only, in a folder that nobody else can enter. `EmbeddedServer.run` is the
whole life; the process of the supervision tree around it is in `persistence.tree`. Its death is not ours: it is
started again with a growing pause, for as long as it takes.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import trio
from attrs import define, field, frozen

from persistence.embedded import binaries, leftovers
from persistence.embedded.folder import Account, DataFolder, Layout, lay_out, make_home, make_private

log = logging.getLogger(__name__)
server_log = logging.getLogger("postgres")

SUPERUSER = "elwift"
DATABASE = "postgres"
START_TIMEOUT = 60.0
"""Seconds for a start: after a crash PostgreSQL replays its log first."""
STOP_TIMEOUT = 10.0
PAUSES = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
"""Seconds before start number n after a death; the last one stays."""
FIRST_TRIES = 3
SETTLED = 10.0
"""Seconds of life after which a start counts as good and the pauses begin anew."""

SETTINGS = {
    "listen_addresses": "",
    "max_connections": "64",
    "shared_buffers": "128MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "2GB",
    "wal_compression": "on",
    "checkpoint_timeout": "10min",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "autovacuum_vacuum_cost_delay": "1ms",
    "autovacuum_naptime": "5s",  # tables grow from nothing to much within seconds: plans need fresh estimates
    "autovacuum_analyze_scale_factor": "0.05",
    "lc_messages": "C",
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",  # a failing row is a user's prompt: nobody's to read in a log
    "log_line_prefix": "",
    "log_checkpoints": "off",
    "timezone": "UTC",
}


OURS = ("FATAL:", "PANIC:", "WARNING:", "postgres:", "setpriv:")
"""What of the server's words concerns the operator; an ERROR is told to the client who made it."""


class ServerFailed(Exception):
    """PostgreSQL did not start; the message has its own words."""


@frozen
class Installation:
    """What is needed to run the server: its programs, its places, and `setpriv` where that can bind it to our life."""

    bin_dir: Path
    layout: Layout
    setpriv: str | None = None


def install(bin_dir: str, data_dir: Path, layout: Layout) -> Installation:
    """Finds the programs, and makes the folders and the cluster when there are none. Blocking.

    Raises:
        FolderError, ServerFailed: it cannot be done.
    """
    found = binaries.find(bin_dir, layout)
    make_home(data_dir, layout)
    make_private(layout.sockets, layout.account)
    if not (layout.cluster / "PG_VERSION").exists():
        make_cluster(found, layout)
    return Installation(found, layout, _setpriv())


@define(eq=False)
class EmbeddedServer:
    """PostgreSQL in a data folder. `conninfo` is valid as soon as the folder is known, before the server runs."""

    folder: DataFolder
    bin_dir: str = ""
    layout: Layout = field(init=False)
    starts: int = field(init=False, default=0)
    pid: int | None = field(init=False, default=None)
    last_error: str | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self.layout = lay_out(self.folder.path)

    @property
    def conninfo(self) -> str:
        return f"host='{self.layout.sockets}' user={SUPERUSER} dbname={DATABASE} connect_timeout=5"

    async def run(self, ready: Callable[[], None]) -> None:
        """Runs the server until cancelled, then stops it; `ready` is called after each good start.

        Raises:
            FolderError, ServerFailed: it did not start at all, `FIRST_TRIES` times. Later it is tried for ever.
        """
        self.folder.claim()
        installation = await trio.to_thread.run_sync(install, self.bin_dir, self.folder.path, self.layout)
        failures = 0
        while True:
            born = monotonic()
            try:
                await self._one_life(installation, ready)
            except (ServerFailed, OSError) as problem:
                self.last_error = str(problem)
                if not self.starts and failures + 1 >= FIRST_TRIES:
                    raise
            failures = 0 if monotonic() - born > SETTLED else failures + 1
            pause = PAUSES[min(failures, len(PAUSES) - 1)]
            log.error("PostgreSQL ended (%s); starting it again in %.2f s", self.last_error, pause)
            await trio.sleep(pause)

    async def _one_life(self, installation: Installation, ready: Callable[[], None]) -> None:
        """From start to end of one server process."""
        await leftovers.clear(installation.layout.cluster, installation.layout.sockets)
        child = start(installation)
        self.pid = child.pid
        words = Words()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(words.listen, child)
                if await words.say_ready():
                    self.starts += 1
                    self.last_error = None
                    ready()
                    await leftovers.gone(child.pid)
                nursery.cancel_scope.cancel()
        finally:
            self.pid = None
            await stop(child)
        self.last_error = f"exit status {child.returncode}: {words.last or 'no word from it'}"
        if not words.ready.is_set():
            raise ServerFailed(f"PostgreSQL did not start ({self.last_error})")


@define(eq=False)
class Words:
    """What the server says on its standard error: logged, and listened to for the word that it is ready."""

    last: str = ""
    ready: trio.Event = field(factory=trio.Event)
    ended: trio.Event = field(factory=trio.Event)

    async def listen(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stderr is not None
        rest = b""
        async with trio.lowlevel.FdStream(os.dup(child.stderr.fileno())) as stream:
            async for chunk in stream:
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._hear(line.decode(errors="replace"))
        self.ended.set()

    def _hear(self, line: str) -> None:
        if "ready to accept connections" in line:
            self.ready.set()
        if line.startswith(OURS):
            self.last = line
            server_log.warning("%s", line)
        else:
            server_log.debug("%s", line)

    async def say_ready(self) -> bool:
        """Waits for the good word; False when the server ends first, or says nothing in time."""
        with trio.move_on_after(START_TIMEOUT):
            async with trio.open_nursery() as nursery:

                async def first(event: trio.Event) -> None:
                    await event.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(first, self.ready)
                nursery.start_soon(first, self.ended)
        return self.ready.is_set()


def make_cluster(bin_dir: Path, layout: Layout) -> None:
    """initdb, beside the final place and then moved there: a cluster is whole or absent. Blocking.

    Raises:
        ServerFailed: initdb failed.
    """
    unfinished = layout.cluster.with_name("postgres.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    make_private(unfinished, layout.account)
    command = [str(bin_dir / "initdb"), "-D", str(unfinished), "-U", SUPERUSER, "--auth=trust", "--encoding=UTF8"]
    done = subprocess.run(
        [*command, "--no-locale", "--no-instructions"],
        capture_output=True,
        text=True,
        cwd="/",
        env=_environment(),
        check=False,
        **_as_user(layout.account),
    )
    if done.returncode:
        raise ServerFailed(f"initdb failed: {(done.stderr or done.stdout).strip()}")
    unfinished.rename(layout.cluster)


def start(installation: Installation, settings: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Starts the server process, `settings` going before SETTINGS; returns at once.

    From this very thread, since Linux can tie a child's life to the thread that made it (so that the server does not
    outlive us), and a worker thread ends when it likes. With vfork this takes a millisecond or two.
    """
    layout = installation.layout
    command = [str(installation.bin_dir / "postgres"), "-D", str(layout.cluster), "-k", str(layout.sockets)]
    for name, value in (SETTINGS | dict(settings or {})).items():
        command += ["-c", f"{name}={value}"]
    if (layout.cluster / "PG_VERSION").read_text().strip() >= "18":
        command += ["-c", "io_method=sync"]
    prefix, options = _bound_to_us(installation.setpriv, layout.account)
    return subprocess.Popen(
        [*prefix, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd="/",
        env=_environment(),
        **options,
    )


def _bound_to_us(setpriv: str | None, account: Account | None) -> tuple[list[str], dict[str, Any]]:
    """How to start a child as `account` that gets SIGINT when we die. Recovery does not rely on that signal."""
    if setpriv is None:
        return [], {"start_new_session": True, **_as_user(account)}
    prefix = [setpriv, "--pdeathsig", "INT"]
    if account:
        prefix += ["--reuid", str(account.uid), "--regid", str(account.gid), "--clear-groups"]
    # a session of its own: Ctrl-C in the terminal is for us, who then stop it in order
    return [*prefix, "--"], {"start_new_session": True}


def _setpriv() -> str | None:
    program = shutil.which("setpriv")
    if program is None:
        return None
    usage = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    return program if "--pdeathsig" in usage.stdout else None


def _as_user(account: Account | None) -> dict[str, Any]:
    return {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}


def _environment() -> dict[str, str]:
    """Ours without PostgreSQL's own variables, which would change what the server does."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


async def stop(child: subprocess.Popen[bytes]) -> None:
    """Fast shutdown, then sterner; returns when the process has ended. Not cancellable, within its deadlines."""
    with trio.CancelScope(shield=True):
        for sign, patience in ((signal.SIGINT, STOP_TIMEOUT), (signal.SIGQUIT, 3.0), (signal.SIGKILL, 10.0)):
            if child.poll() is not None:
                break
            for told in (sign, signal.SIGCONT):
                with suppress(ProcessLookupError):
                    child.send_signal(told)
            with trio.move_on_after(patience):
                await leftovers.gone(child.pid)
                child.wait()
        if child.stderr is not None:
            child.stderr.close()
