"""Migrations: once each, in order, one at a time, and never changed afterwards."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from pipeline.adapters import migrations
from pipeline.adapters.migrations import Migration, migrate
from pipeline.adapters.postgres import connection_string
from pipeline.errors import DatabaseUnavailable, RuntimeFault, SecretFileError, SettingError
from pipeline.settings import PostgresSettings

pytestmark = pytest.mark.integration


@pytest.fixture
def empty(postgres: PostgresSettings) -> PostgresSettings:
    """A database without tables."""
    with psycopg.connect(connection_string(postgres), autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return postgres


def tables(settings: PostgresSettings) -> set[str]:
    with psycopg.connect(connection_string(settings)) as connection:
        rows: list[Any] = connection.execute(
            "SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'public'"
        ).fetchall()
    return {name for [name] in rows}


NAMES = [migration.name for migration in migrations.migrations()]


def test_files_are_numbered_without_a_gap() -> None:
    assert [int(name[:4]) for name in NAMES] == list(range(1, len(NAMES) + 1))


def test_each_is_applied_once(empty: PostgresSettings) -> None:
    assert migrate(empty) == NAMES
    assert {"transactions", "signing_ledger", "key_watermarks", "outcomes", "schema_migrations"} <= tables(empty)
    assert migrate(empty) == []


def test_a_dry_run_changes_nothing(empty: PostgresSettings) -> None:
    assert migrate(empty, dry_run=True) == NAMES
    assert tables(empty) == set()
    migrate(empty)
    assert migrate(empty, dry_run=True) == []


def test_an_applied_file_may_not_change(postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = [Migration(m.name, m.sql + "-- more") if m.name == NAMES[1] else m for m in migrations.migrations()]
    monkeypatch.setattr(migrations, "migrations", lambda: changed)
    with pytest.raises(RuntimeFault, match=NAMES[1]):
        migrate(postgres)


def test_one_that_fails_leaves_nothing_of_itself(empty: PostgresSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = [Migration("0001_a.sql", "CREATE TABLE a ()"), Migration("0002_b.sql", "CREATE TABLE b (); SELECT 1/0")]
    monkeypatch.setattr(migrations, "migrations", lambda: plan)
    with pytest.raises(DatabaseUnavailable, match="division by zero"):
        migrate(empty)
    assert tables(empty) == {"a", "schema_migrations"}


def test_of_many_at_once_each_file_is_applied_by_one(empty: PostgresSettings) -> None:
    applied: list[list[str]] = []
    threads = [threading.Thread(target=lambda: applied.append(migrate(empty))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(applied) == [[]] * 4 + [NAMES]


def test_it_does_not_wait_for_ever(empty: PostgresSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT_MS", 200)
    with psycopg.connect(connection_string(empty)) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [migrations.LOCK_KEY])
        with pytest.raises(DatabaseUnavailable, match="lock timeout"):
            migrate(empty)


def test_newer_tables_do_not_trouble_an_older_version(
    postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = migrations.migrations()[:2]
    monkeypatch.setattr(migrations, "migrations", lambda: older)
    assert migrate(postgres) == []


@pytest.mark.parametrize(
    ("dsn", "error", "says"),
    [
        ("postgresql://me:hunter2@localhost/x", SettingError, "holds a password"),
        ("http://localhost", SettingError, "not a libpq connection string"),
        ("host=a password=hunter2 nonsense=1", SettingError, "not a libpq connection string"),
    ],
)
def test_a_bad_dsn_is_explained(dsn: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        migrate(PostgresSettings(dsn=SecretStr(dsn)))
    assert "hunter2" not in str(caught.value)


def test_a_missing_password_file_is_named(postgres: PostgresSettings, tmp_path: Any) -> None:
    with pytest.raises(SecretFileError, match="nowhere"):
        migrate(postgres.model_copy(update={"password_file": tmp_path / "nowhere"}))
