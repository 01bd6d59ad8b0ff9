"""Numbered SQL files, each applied once, in order, in its own transaction."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import psycopg

from pipeline.adapters.postgres import connection_string, unavailable
from pipeline.effects import effect
from pipeline.errors import RuntimeFault
from pipeline.settings import PostgresSettings

LOCK_KEY: Final = 0x6F6E6365  # "once": two `migrate` at a time wait for each other
LOCK_TIMEOUT_MS: Final = 30_000


@dataclass(frozen=True, slots=True)
class Migration:
    """One file."""

    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """Of the text, so that an applied file that was changed is noticed."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """All of them, by number."""
    folder = resources.files("pipeline") / "sql" / "migrations"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [Migration(file.name, file.read_text(encoding="utf-8")) for file in files]


def migrate(settings: PostgresSettings, *, dry_run: bool = False) -> list[str]:
    """Apply what is missing; the names of what was applied, or with `dry_run` of what would be.

    Raises RuntimeFault when an applied file has changed since, DatabaseUnavailable.
    """
    try:
        with psycopg.connect(connection_string(settings), autocommit=True) as connection:
            connection.execute(f"SET lock_timeout = {LOCK_TIMEOUT_MS}")
            connection.execute("SELECT pg_advisory_lock(%s)", [LOCK_KEY])
            missing = _missing(connection)
            if not dry_run:
                for migration in missing:
                    _apply(connection, migration)
            return [migration.name for migration in missing]
    except psycopg.Error as error:
        raise unavailable(settings, error) from error


def _missing(connection: psycopg.Connection[tuple[object, ...]]) -> list[Migration]:
    [[table]] = connection.execute("SELECT to_regclass('schema_migrations')").fetchall()
    rows: list[Any] = connection.execute("SELECT name, checksum FROM schema_migrations").fetchall() if table else []
    applied: dict[str, str] = dict(rows)
    for migration in migrations():
        if applied.get(migration.name, migration.checksum) != migration.checksum:
            raise RuntimeFault(
                f"migration {migration.name} was applied with other content.",
                hint="Applied migrations never change; add a new one instead.",
            )
    return [migration for migration in migrations() if migration.name not in applied]


def _apply(connection: psycopg.Connection[tuple[object, ...]], migration: Migration) -> None:
    with effect("postgres", "migrate"), connection.transaction():
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations"
            " (name text PRIMARY KEY, checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        connection.execute(migration.sql)
        connection.execute(
            "INSERT INTO schema_migrations (name, checksum) VALUES (%s, %s)", [migration.name, migration.checksum]
        )
