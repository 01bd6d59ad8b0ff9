"""One row of a source table, and how rows get into Postgres."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql

from pipeline.adapters.postgres import connection_string, unavailable
from pipeline.errors import InputFileError
from pipeline.settings import PostgresSettings

COPY_ROWS: Final = 10_000
"""Rows per transaction, so that readers can begin while a large stock is still being loaded."""


class Row(NamedTuple):
    """As Postgres takes it: wei as int, addresses and data as bytes, lists as JSON text."""

    type: int
    chain_id: int
    to: bytes | None
    value: int
    gas_limit: int
    max_fee_per_gas: int
    max_priority_fee_per_gas: int | None
    data: bytes
    access_list: str | None
    sender: bytes | None = None
    max_fee_per_blob_gas: int | None = None
    blob_hashes: str | None = None
    authorization_list: str | None = None


OPTIONAL: Final = frozenset(Row._field_defaults)
COLUMNS: Final = Row._fields
"""Of a source table, as far as whoever inserts rows fills them."""


def insert(settings: PostgresSettings, table: str, rows: Iterable[Row], *, at_once: bool = False) -> int:
    """COPY rows into a source; how many. `at_once` makes it one transaction: all of them or none.

    Raises DatabaseUnavailable, InputFileError for a row that the table does not take, and what `rows` raises.
    """
    copied = 0
    remaining = iter(rows)
    try:
        with psycopg.connect(connection_string(settings)) as connection:
            while chunk := copy_rows(connection, table, remaining if at_once else islice(remaining, COPY_ROWS)):
                connection.commit()
                copied += chunk
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        context = (error.diag.context or "").splitlines()
        where = next((line for line in context if line.startswith("COPY")), "")
        raise InputFileError(
            f"Postgres refused a row: {str(error).splitlines()[0]} ({where}).",
            hint="Nothing was inserted." if at_once else f"{copied} rows before it were inserted.",
        ) from error
    except psycopg.Error as error:
        raise unavailable(settings, error) from error
    return copied


def columns_of(connection: psycopg.Connection[tuple[Any, ...]], table: str) -> tuple[str, ...]:
    """COLUMNS without those that this source lacks."""
    name = sql.SQL(".").join(map(sql.Identifier, table.split("."))).as_string(connection)
    query = "SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass(%s) AND NOT attisdropped"
    present = {column for [column] in connection.execute(query, [name])}
    return tuple(column for column in COLUMNS if column in present or column not in OPTIONAL)


def copy_rows(connection: psycopg.Connection[tuple[Any, ...]], table: str, rows: Iterable[Row]) -> int:
    """COPY inside the connection's transaction; how many. Postgres takes rows in while the next ones are made.

    Raises InputFileError for a row that says what the table has no column for.
    """
    columns = columns_of(connection, table)
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.SQL(".").join(map(sql.Identifier, table.split("."))), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    lacking = [name for name in COLUMNS if name not in columns]
    copied = 0
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            if lost := [name for name in lacking if getattr(row, name) is not None]:
                raise InputFileError(f"{table} has no column {lost[0]}.", hint="Add it (docs/formats.md).")
            copy.write_row([getattr(row, name) for name in columns] if lacking else row)
            copied += 1
    return copied
