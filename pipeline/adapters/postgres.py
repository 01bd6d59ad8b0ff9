"""What all Postgres clients of the pipeline share: the DSN with its password, and what an error means."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import quote, urlencode

import psycopg
from psycopg import conninfo

from pipeline.adapters.secret_file import secret_of
from pipeline.errors import DatabaseUnavailable, OncesignError, SettingError
from pipeline.settings import PostgresSettings

KEEPALIVES: Final = {
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "12000",
}
"""A server that vanished without a word is noticed within about 12 s, whether we wait for it or are sending."""

REFUSED: Final = "OS001"
"""The SQLSTATE with which our own functions refuse."""

CLIENT_PREFIX: Final = re.compile(
    r"^(IO: \[libpq\] Failed to connect: |connection failed: )?(connection to server at .+? failed: )?"
    r"|^[A-Z_]+: (?=.*ERROR: )"
)
NO_DATABASE: Final = re.compile(r'database ".*" does not exist')
MIGRATE: Final = "Run: oncesign migrate"
LOGIN: Final = "Check the user in ONCESIGN_POSTGRES__DSN and the password in ONCESIGN_POSTGRES__PASSWORD_FILE."
HINTS: Final = {
    "42P01": MIGRATE,
    "42883": MIGRATE,
    "53100": "Its disk is full: free room, and the pipeline goes on by itself.",
    "42501": "Grant the user of ONCESIGN_POSTGRES__DSN what is missing.",
    "OS002": "It goes on when `oncesign recover` has ended.",
    "25006": "It is a standby: name the primary in ONCESIGN_POSTGRES__DSN.",
}
"""What to do about an SQLSTATE."""


PORT_MAX: Final = 65535


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
    ports = str(parts.get("port") or "5432").split(",")
    if not all(port.isdecimal() and 0 < int(port) <= PORT_MAX for port in ports):
        raise SettingError("ONCESIGN_POSTGRES__DSN", f"has no port {','.join(ports)}", hint="Mend it.")
    if parts.get("password"):
        raise SettingError(
            "ONCESIGN_POSTGRES__DSN",
            "holds a password",
            hint="Put the password into a file and name it in ONCESIGN_POSTGRES__PASSWORD_FILE.",
        )
    if settings.password_file is not None:
        parts["password"] = secret_of(settings.password_file, "the Postgres password")
    return conninfo.make_conninfo("", **{"connect_timeout": settings.connect_timeout_s} | KEEPALIVES | parts)


def uri(settings: PostgresSettings) -> str:
    """The same as a URI, for ADBC; never print it."""
    parts = conninfo.conninfo_to_dict(connection_string(settings))
    return "postgresql:///?" + urlencode({name: str(value) for name, value in parts.items()}, quote_via=quote, safe="")


def address(settings: PostgresSettings) -> str:
    """Host, port and database, for messages."""
    try:
        parts = conninfo.conninfo_to_dict(settings.dsn.get_secret_value())
    except psycopg.ProgrammingError:
        return "?"
    return f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"


def unavailable(settings: PostgresSettings, error: Exception) -> OncesignError:
    """The error of a query that could not be answered, from psycopg's or ADBC's.

    Theirs stays its cause, without its frames: those hold the connection string as local variables.
    """
    error.__traceback__ = error.__context__ = None
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = CLIENT_PREFIX.sub("", lines[0])
    state = getattr(error, "sqlstate", None) or ""
    hint: str | None
    if "password" in reason or "authentication" in reason:
        hint = LOGIN  # a refused connection has no SQLSTATE in libpq
    elif NO_DATABASE.search(reason):
        hint = "Create it in Postgres, or name another in ONCESIGN_POSTGRES__DSN."
    else:
        hint = HINTS.get(state)
    return DatabaseUnavailable(reason, address=address(settings), hint=hint)


class Database:
    """One connection, made when first needed and made again after it broke. Not for two tasks at once."""

    def __init__(self, settings: PostgresSettings) -> None:
        self._settings = settings
        self._connection: psycopg.AsyncConnection[tuple[object, ...]] | None = None

    @property
    def connection(self) -> object:
        """The one it has now; another one when it was made again, None when there is none."""
        return self._connection

    @asynccontextmanager
    async def cursor(self) -> AsyncIterator[psycopg.AsyncCursor[tuple[object, ...]]]:
        """A cursor in autocommit. Raises DatabaseUnavailable; what Postgres refuses for its content passes through."""
        try:
            if self._connection is None or self._connection.closed:
                self._connection = await psycopg.AsyncConnection.connect(
                    connection_string(self._settings), autocommit=True
                )
            async with self._connection.cursor() as cursor:
                yield cursor
        except psycopg.Error as error:
            if isinstance(error, psycopg.IntegrityError | psycopg.DataError) or error.sqlstate == REFUSED:
                raise
            await self.close()
            raise unavailable(self._settings, error) from error

    async def close(self) -> None:
        """Drop the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
