"""Migrations are applied once, whole or not at all, by one of many that start together."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep

import psycopg
import pytest

from persistence.migrator import FOLDERS, LOCK_KEY, applied, migrate
from tests.postgres import TestServer


@pytest.fixture
def empty(postgres_server: TestServer) -> str:
    return postgres_server.conninfo(postgres_server.create(template="template1"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "0001.first.sql").write_text("CREATE TABLE one (n int)")
    return tmp_path


def tables(conninfo: str) -> set[str]:
    with psycopg.connect(conninfo) as connection:
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    return {name for (name,) in rows if "yoyo" not in name}


def test_an_empty_database_gets_everything(empty: str) -> None:
    assert len(migrate(empty)) == sum(len(list(folder.glob("*.sql"))) for folder in FOLDERS)
    assert {"users", "models", "tasks", "task_events", "task_snapshots", "predictions", "outputs"} <= tables(empty)
    assert {"webhook_events", "jobs"} <= tables(empty)


def test_a_second_time_nothing_is_done(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate(empty)
    monkeypatch.setattr("persistence.migrator._apply", None)
    assert migrate(empty) == ()


def test_of_four_that_start_together_one_applies_and_all_succeed(empty: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(migrate, [empty] * 4))
    assert len([names for names in done if names]) == 1


def test_one_that_was_killed_leaves_no_lock(empty: str, folder: Path) -> None:
    killed = psycopg.connect(empty, autocommit=True)
    killed.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
    killed.close()
    assert migrate(empty, [folder]) == ("0001.first",)


def test_one_that_is_killed_before_it_is_noted_is_undone_and_applied_again(empty: str, folder: Path) -> None:
    """The table of what was applied is held, so that the migration is done and cannot be noted; then it is killed."""
    migrate(empty, [folder])
    (folder / "0002.second.sql").write_text("CREATE TABLE two (n int)")
    with psycopg.connect(empty) as holder, ThreadPoolExecutor(1) as thread:
        holder.execute("LOCK TABLE _yoyo_migration, _yoyo_log IN EXCLUSIVE MODE")
        killed = thread.submit(migrate, empty, [folder])
        waiting = "SELECT pid FROM pg_locks WHERE NOT granted AND relation::regclass::text LIKE '_yoyo%'"
        while not (pids := holder.execute(waiting).fetchall()):
            sleep(0.01)
        holder.execute("SELECT pg_terminate_backend(%s)", pids[0])
        with pytest.raises(psycopg.OperationalError):
            killed.result(timeout=20)
    assert tables(empty) == {"one"}
    assert migrate(empty, [folder]) == ("0002.second",)
    assert tables(empty) == {"one", "two"}


def test_the_lock_row_that_a_killed_one_may_have_left_is_passed_over(empty: str, folder: Path) -> None:
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE yoyo_lock (locked int PRIMARY KEY DEFAULT 1, ctime timestamp, pid int NOT NULL)"
        )
        connection.execute("INSERT INTO yoyo_lock VALUES (1, now(), 4711)")
    assert migrate(empty, [folder]) == ("0001.first",)


def test_a_new_file_is_applied_alone(empty: str, folder: Path) -> None:
    migrate(empty, [folder])
    (folder / "0002.second.sql").write_text("CREATE TABLE two (n int)")
    assert migrate(empty, [folder]) == ("0002.second",)
    assert tables(empty) == {"one", "two"}


def test_one_that_fails_leaves_nothing_of_itself_and_can_be_mended(empty: str, folder: Path) -> None:
    bad = folder / "0002.bad.sql"
    bad.write_text("CREATE TABLE half (n int); SELECT 1 / 0")
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(empty, [folder])
    assert tables(empty) == {"one"}
    bad.write_text("CREATE TABLE whole (n int)")
    assert migrate(empty, [folder]) == ("0002.bad",)
    with psycopg.connect(empty) as connection:
        assert applied(connection) == {"0001.first", "0002.bad"}
