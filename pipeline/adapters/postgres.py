"""What all Postgres clients of the pipeline share: the DSN with its password, and what an error means."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlencode

import psycopg
from psycopg import conninfo

from pipeline.errors import DatabaseUnavailable, OncesignError, SecretFileError, SettingError
from pipeline.settings import PostgresSettings

KEEPALIVES: Final = {"keepalives_idle": "5", "keepalives_interval": "2", "keepalives_count": "3"}


def connection_string(settings: PostgresSettings) -> str:
    """The DSN with password and timeouts; never print it. Raises SettingError, SecretFileError."""
    dsn = settings.dsn.get_secret_value()
    try:
        parts = conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        raise SettingError(
            "ONCESIGN_POSTGRES__DSN",
            f"is not a libpq connection string ({str(error).splitlines()[0]})",
            hint="For example: postgresql://user@host:5432/database",
        ) from None
    if parts.get("password"):
        raise SettingError(
            "ONCESIGN_POSTGRES__DSN",
            "holds a password",
            hint="Put the password into a file and name it in ONCESIGN_POSTGRES__PASSWORD_FILE.",
        )
    if settings.password_file is not None:
        try:
            parts["password"] = settings.password_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise SecretFileError(
                f"{settings.password_file}: {error.strerror}.", hint="It should hold the Postgres password."
            ) from None
    return conninfo.make_conninfo("", **{"connect_timeout": settings.connect_timeout_s} | KEEPALIVES | parts)


def uri(settings: PostgresSettings) -> str:
    """The same as a URI, for ADBC; never print it."""
    parts = conninfo.conninfo_to_dict(connection_string(settings))
    return "postgresql:///?" + urlencode({name: str(value) for name, value in parts.items()})


def address(settings: PostgresSettings) -> str:
    """Host, port and database, for messages."""
    try:
        parts = conninfo.conninfo_to_dict(settings.dsn.get_secret_value())
    except psycopg.ProgrammingError:
        return "?"
    return f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"


def unavailable(settings: PostgresSettings, error: Exception) -> OncesignError:
    """The error of a query that could not be answered."""
    reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    hint = None
    if isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedFunction):
        hint = "Run: oncesign migrate"
    if isinstance(error, psycopg.errors.DiskFull):
        hint = "Its disk is full: free room, and the pipeline goes on by itself."
    return DatabaseUnavailable(reason, address=address(settings), hint=hint)


class Database:
    """One connection, made when first needed and made again after it broke. Not for two tasks at once."""

    def __init__(self, settings: PostgresSettings) -> None:
        self._settings = settings
        self._connection: psycopg.AsyncConnection[tuple[object, ...]] | None = None

    @asynccontextmanager
    async def cursor(self) -> AsyncIterator[psycopg.AsyncCursor[tuple[object, ...]]]:
        """A cursor in autocommit. Raises DatabaseUnavailable; other psycopg errors pass through."""
        try:
            if self._connection is None or self._connection.closed:
                self._connection = await psycopg.AsyncConnection.connect(
                    connection_string(self._settings), autocommit=True
                )
            async with self._connection.cursor() as cursor:
                yield cursor
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            await self.close()
            raise unavailable(self._settings, error) from error
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedFunction) as error:
            raise unavailable(self._settings, error) from error

    async def close(self) -> None:
        """Drop the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
