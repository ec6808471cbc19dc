"""PostgreSQL as a child of ours: made once, started again after any death, and never left behind."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from persistence.connection import TrioConnection
from persistence.embedded import binaries, leftovers, server
from persistence.embedded.folder import (
    Account,
    DataFolder,
    FolderError,
    FolderInUse,
    lay_out,
    make_home,
    make_private,
    passable,
)
from persistence.embedded.server import EmbeddedServer, Installation, ServerFailed

ROOT = Path(__file__).resolve().parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="about what root must do")


@asynccontextmanager
async def running(data_dir: Path) -> AsyncIterator[EmbeddedServer]:
    embedded = EmbeddedServer(DataFolder(data_dir))
    async with trio.open_nursery() as nursery:
        await up_again(embedded, nursery)
        yield embedded
        nursery.cancel_scope.cancel()
    embedded.folder.release()


async def up_again(embedded: EmbeddedServer, nursery: trio.Nursery) -> None:
    ready = trio.Event()
    nursery.start_soon(embedded.run, ready.set)
    with trio.fail_after(30):
        await ready.wait()


async def ask(embedded: EmbeddedServer, query: str, rows: bool = True) -> object:
    async with await TrioConnection.connect(embedded.conninfo) as connection:
        cursor = await connection.execute(query)  # type: ignore[arg-type]
        row = await cursor.fetchone() if rows else None
        return row[0] if row else None


async def eventually(condition: Callable[[], bool]) -> None:
    """Waits for a fact of the outside, which nobody announces."""
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.02)


async def test_it_listens_on_a_socket_in_a_private_folder_and_nowhere_else(data_dir: Path) -> None:
    async with running(data_dir) as embedded:
        assert await ask(embedded, "SHOW listen_addresses") == ""
        assert await ask(embedded, "SHOW synchronous_commit") == "on"
        assert embedded.layout.sockets.stat().st_mode & 0o077 == 0
    assert leftovers.running_in(embedded.layout.cluster) == []


@as_root
async def test_it_does_not_run_as_root(data_dir: Path) -> None:
    async with running(data_dir) as embedded:
        assert embedded.pid
        assert os.stat(f"/proc/{embedded.pid}").st_uid == embedded.layout.cluster.stat().st_uid != 0


async def test_what_was_committed_is_there_after_each_kill(data_dir: Path) -> None:
    async with running(data_dir) as embedded:
        await ask(embedded, "CREATE TABLE kept (n int)", rows=False)
        for number in range(1, 4):
            async with await TrioConnection.connect(embedded.conninfo) as connection:
                await connection.execute("INSERT INTO kept VALUES (%s)", (number,))
            assert embedded.pid
            os.kill(embedded.pid, signal.SIGKILL)
            await eventually(partial(_started, embedded, number + 1))
            assert await ask(embedded, "SELECT max(n) FROM kept") == number


def _started(embedded: EmbeddedServer, times: int) -> bool:
    return embedded.starts >= times


async def test_a_server_that_outlived_us_is_stopped_and_its_data_kept(data_dir: Path) -> None:
    async with running(data_dir) as first:
        await ask(first, "CREATE TABLE kept AS SELECT 7 AS n", rows=False)
    orphan = server.start(Installation(binaries.find("", first.layout), first.layout))
    await eventually((first.layout.sockets / ".s.PGSQL.5432").exists)
    async with running(data_dir) as second:
        assert orphan.poll() is not None
        assert await ask(second, "SELECT n FROM kept") == 7
    assert orphan.stderr
    orphan.stderr.close()


async def test_children_of_a_killed_server_are_seen_off_too(data_dir: Path) -> None:
    async with running(data_dir) as embedded:
        connection = await TrioConnection.connect(embedded.conninfo)
        assert embedded.pid
        backends = leftovers.running_in(embedded.layout.cluster)
        assert len(backends) > 2
        os.kill(embedded.pid, signal.SIGSTOP)
        assert await leftovers.clear(embedded.layout.cluster, embedded.layout.sockets)
        assert not set(backends) & set(leftovers.running_in(embedded.layout.cluster))
        await connection.close()


async def test_a_lock_file_with_the_number_of_a_stranger_does_not_stop_the_start(data_dir: Path) -> None:
    async with running(data_dir) as embedded:
        pass
    lock = embedded.layout.cluster / "postmaster.pid"
    lock.write_text(f"{os.getppid()}\n{embedded.layout.cluster}\n0\n5432\n\n\n     0         0\n")
    async with running(data_dir) as embedded:
        assert await ask(embedded, "SELECT 1") == 1


async def test_the_locks_of_a_dead_server_that_nobody_has_reaped_do_not_stop_the_start(data_dir: Path) -> None:
    async with running(data_dir) as embedded:
        layout = embedded.layout
    zombie = subprocess.Popen(["true"])
    await eventually(lambda: Path(f"/proc/{zombie.pid}/stat").read_text().split()[2] == "Z")
    for lock in (layout.cluster / "postmaster.pid", layout.sockets / ".s.PGSQL.5432.lock"):
        lock.write_text(f"{zombie.pid}\n{layout.cluster}\n0\n5432\n{layout.sockets}\n\n     0         0\n")
    async with running(data_dir) as embedded:
        assert await ask(embedded, "SELECT 1") == 1
        assert embedded.starts == 1
    zombie.wait()


async def test_our_own_death_takes_the_server_along(data_dir: Path) -> None:
    """Where the machine can do that; the next start does not need it."""
    if server._setpriv() is None:
        pytest.skip("setpriv --pdeathsig is not on this machine")
    program = """
import sys, trio
from pathlib import Path
from persistence.embedded.folder import DataFolder
from persistence.embedded.server import EmbeddedServer
trio.run(EmbeddedServer(DataFolder(Path(sys.argv[1]))).run, lambda: print("ready", flush=True))
"""
    child = subprocess.Popen([sys.executable, "-c", program, str(data_dir)], stdout=subprocess.PIPE, cwd=ROOT)
    assert child.stdout
    assert await trio.to_thread.run_sync(child.stdout.readline) == b"ready\n"
    pids = leftovers.running_in(lay_out(data_dir).cluster)
    assert pids
    child.kill()
    child.wait()
    child.stdout.close()
    with trio.fail_after(15):
        for pid in pids:
            await leftovers.gone(pid)


async def test_a_cluster_that_was_half_made_is_made_anew(data_dir: Path) -> None:
    unfinished = data_dir / "postgres.unfinished"
    unfinished.mkdir()
    (unfinished / "PG_VERSION").write_text("18")
    async with running(data_dir) as embedded:
        assert await ask(embedded, "SELECT 1") == 1
    assert not unfinished.exists()


async def test_a_first_start_that_fails_says_why(data_dir: Path) -> None:
    async with running(data_dir) as embedded:
        pass
    (embedded.layout.cluster / "PG_VERSION").write_text("9\n")
    with pytest.raises(ServerFailed, match=r"(?i)incompatible|version"):
        await EmbeddedServer(DataFolder(data_dir)).run(lambda: None)


async def test_a_later_start_that_fails_is_tried_again(data_dir: Path) -> None:
    async with running(data_dir) as embedded:
        version = embedded.layout.cluster / "PG_VERSION"
        whole = version.read_text()
        version.write_text("9\n")
        assert embedded.pid
        os.kill(embedded.pid, signal.SIGKILL)
        await eventually(lambda: "incompatible" in (embedded.last_error or ""))
        version.write_text(whole)
        await eventually(partial(_started, embedded, 2))
        assert await ask(embedded, "SELECT 1") == 1


async def test_a_folder_without_the_programs_is_named(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=str(tmp_path)):
        await EmbeddedServer(DataFolder(data_dir), bin_dir=str(tmp_path)).run(lambda: None)


# --- folders ----------------------------------------------------------------------------------------------


def test_the_claim_of_a_folder_ends_with_its_process(data_dir: Path) -> None:
    program = "import sys; from pathlib import Path; from persistence.embedded.folder import DataFolder\n"
    program += "DataFolder(Path(sys.argv[1])).claim(); print('claimed', flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(data_dir)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, cwd=ROOT
    )
    assert child.stdout
    assert child.stdin
    assert child.stdout.readline() == b"claimed\n"
    folder = DataFolder(data_dir)
    with pytest.raises(FolderInUse, match=str(child.pid)):
        folder.claim()
    child.kill()
    child.communicate()
    folder.claim()
    folder.claim()
    folder.release()


@as_root
def test_data_below_a_private_folder_goes_where_postgres_can_reach_it(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    layout = lay_out(private / "data")
    assert layout.account
    assert not layout.cluster.is_relative_to(private)
    assert passable(Path("/var"), layout.account)
    assert lay_out(private / "data") == layout
    assert lay_out(private / "other").cluster != layout.cluster


def test_a_folder_is_passable_by_its_owner_its_group_or_everybody(tmp_path: Path) -> None:
    me = pwd.getpwuid(os.geteuid())
    folder = tmp_path / "f"
    folder.mkdir(mode=0o700)
    assert passable(folder, Account(me.pw_uid, me.pw_gid, me.pw_name)) or os.geteuid() != 0
    assert not passable(folder, Account(me.pw_uid + 4000, me.pw_gid + 4000, "stranger"))


def test_a_path_too_long_for_a_socket_gets_a_short_one(tmp_path: Path) -> None:
    sockets = lay_out(tmp_path / ("x" * 120)).sockets
    assert len(str(sockets)) < 100


@as_root
def test_programs_below_a_private_folder_are_copied_once(tmp_path: Path, data_dir: Path) -> None:
    layout = lay_out(data_dir)
    original = binaries.find("", layout)
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    installation = private / "site" / binaries.PACKAGE / "pginstall"
    for part in ("bin", "lib", "share"):
        (installation / part).mkdir(parents=True)
    for name in binaries.NEEDED:
        shutil.copy(original / name, installation / "bin" / name)
    make_home(data_dir, layout)
    copied = binaries.find(str(installation / "bin"), layout)
    assert layout.account
    assert passable(copied, layout.account)
    mark = (copied / "postgres").stat().st_mtime_ns, (copied / "postgres").stat().st_ino
    assert binaries.find(str(installation / "bin"), layout) == copied
    assert ((copied / "postgres").stat().st_mtime_ns, (copied / "postgres").stat().st_ino) == mark


def test_a_private_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        account = Account(4321, 4321, "x")
        make_private(tmp_path / "mine", account)
        assert (tmp_path / "mine").stat().st_uid == 4321
    else:
        with pytest.raises(FolderError):
            make_private(Path("/usr"), None)
