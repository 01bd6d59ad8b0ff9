"""Rows on their way into Postgres: all or nothing from a file, in pieces when mocked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from pipeline.adapters.postgres import connection_string
from pipeline.errors import DatabaseUnavailable, InputFileError
from pipeline.settings import PostgresSettings
from pipeline.stock.mix import Mix
from pipeline.stock.row import COPY_ROWS, Row, insert

pytestmark = pytest.mark.integration


def rows_in(postgres: PostgresSettings) -> list[tuple[Any, ...]]:
    columns = '"to", value, gas_limit, max_fee_per_gas, max_priority_fee_per_gas, data, access_list::text'
    with psycopg.connect(connection_string(postgres)) as connection:
        return connection.execute(f"SELECT type, chain_id, {columns} FROM transactions ORDER BY id").fetchall()


def failing(good: int) -> Iterator[Row]:
    yield from Mix(1, 1).rows(good)
    raise InputFileError("row 7 is bad")


def test_what_is_inserted_is_what_was_made(postgres: PostgresSettings) -> None:
    rows = list(Mix(4, 1).rows(500, 0.1))
    assert insert(postgres, "transactions", rows) == 500
    for stored, row in zip(rows_in(postgres), rows, strict=True):
        assert stored[:8] == row[:8]
        assert (stored[8] is None) == (row.access_list is None)


def test_readers_can_begin_before_the_last_row_is_in(postgres: PostgresSettings) -> None:
    with pytest.raises(InputFileError):
        insert(postgres, "transactions", failing(COPY_ROWS + 50))
    assert len(rows_in(postgres)) == COPY_ROWS


def test_a_file_is_inserted_whole_or_not_at_all(postgres: PostgresSettings) -> None:
    with pytest.raises(InputFileError):
        insert(postgres, "transactions", failing(COPY_ROWS + 50), at_once=True)
    assert rows_in(postgres) == []
    assert insert(postgres, "transactions", Mix(1, 1).rows(COPY_ROWS + 50), at_once=True) == COPY_ROWS + 50
    with psycopg.connect(connection_string(postgres)) as connection:
        assert connection.execute("SELECT count(DISTINCT created_xid) FROM transactions").fetchone() == (1,)


def test_no_rows_are_no_harm(postgres: PostgresSettings) -> None:
    assert insert(postgres, "transactions", []) == 0
    assert insert(postgres, "transactions", [], at_once=True) == 0


def test_a_row_that_the_table_does_not_take_is_named(postgres: PostgresSettings) -> None:
    [good] = Mix(1, 1).rows(1)
    with pytest.raises(InputFileError, match=r"transactions_to_check.*line 2") as caught:
        insert(postgres, "transactions", [good, good._replace(to=b"short")], at_once=True)
    assert "Nothing was inserted." in str(caught.value)
    with pytest.raises(InputFileError, match=r"line 1, column access_list"):
        insert(postgres, "transactions", [good._replace(access_list='["\\u0000"]')], at_once=True)
    assert rows_in(postgres) == []


def test_a_table_that_is_not_there(postgres: PostgresSettings) -> None:
    with pytest.raises(DatabaseUnavailable, match="oncesign migrate"):
        insert(postgres, "elsewhere", Mix(1, 1).rows(3))


def test_a_server_that_is_not_there() -> None:
    nobody = PostgresSettings(dsn=SecretStr("postgresql://me@127.0.0.1:1/x"))
    with pytest.raises(DatabaseUnavailable, match=r"127\.0\.0\.1:1/x"):
        insert(nobody, "transactions", Mix(1, 1).rows(3))
