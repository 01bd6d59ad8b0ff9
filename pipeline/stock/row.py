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
    """As Postgres takes it: wei as int, addresses and data as bytes, the access list as JSON text."""

    type: int
    chain_id: int
    to: bytes | None
    value: int
    gas_limit: int
    max_fee_per_gas: int
    max_priority_fee_per_gas: int | None
    data: bytes
    access_list: str | None


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


def copy_rows(connection: psycopg.Connection[tuple[Any, ...]], table: str, rows: Iterable[Row]) -> int:
    """COPY inside the connection's transaction; how many. Postgres takes rows in while the next ones are made."""
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.SQL(".").join(map(sql.Identifier, table.split("."))), sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
    )
    copied = 0
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(row)
            copied += 1
    return copied
