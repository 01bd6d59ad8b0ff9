"""One row of a source table, and how rows get into Postgres."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql

from pipeline.adapters.postgres import connection_string, unavailable
from pipeline.settings import PostgresSettings

COLUMNS: Final = (
    "type",
    "chain_id",
    "to",
    "value",
    "gas_limit",
    "max_fee_per_gas",
    "max_priority_fee_per_gas",
    "data",
    "access_list",
)

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


def insert(settings: PostgresSettings, table: str, rows: Iterable[Row], *, at_once: bool = False) -> int:
    """COPY rows into a source; how many. `at_once` makes it one transaction: all of them or none.

    Raises DatabaseUnavailable.
    """
    copied = 0
    remaining = iter(rows)
    try:
        with psycopg.connect(connection_string(settings)) as connection:
            while chunk := list(remaining if at_once else islice(remaining, COPY_ROWS)):
                copy_rows(connection, table, chunk)
                connection.commit()
                copied += len(chunk)
    except psycopg.OperationalError as error:
        raise unavailable(settings, error) from error
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        raise unavailable(settings, error) from error
    return copied


def copy_rows(connection: psycopg.Connection[tuple[Any, ...]], table: str, rows: list[Row]) -> None:
    """COPY inside the connection's transaction."""
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.SQL(".").join(map(sql.Identifier, table.split("."))), sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
    )
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(row)
