"""What only a real Postgres shows of a source: its guards, its plans, its failures, and tables that are not ours."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from pipeline.adapters.postgres import connection_string
from pipeline.adapters.postgres_source import AFTER, FROM, IN_INDEX_ORDER, PostgresSource, select
from pipeline.errors import DatabaseUnavailable, SettingError
from pipeline.ethereum.reasons import Reason
from pipeline.settings import PostgresSettings, SourceSettings
from pipeline.stock.mix import Mix
from pipeline.stock.row import OPTIONAL, insert
from pipeline.stream import START, Cursor

pytestmark = pytest.mark.integration

SOURCE = SourceSettings(name="payouts", chain_id=1, shards=8)
INSERT = "INSERT INTO transactions (chain_id, gas_limit, max_fee_per_gas) VALUES (1, 21000, 5)"
Connection = psycopg.Connection[Any]


@pytest.fixture
def connection(postgres: PostgresSettings) -> Iterator[Connection]:
    with psycopg.connect(connection_string(postgres), autocommit=True) as made:
        yield made


@pytest.fixture
async def source(postgres: PostgresSettings) -> AsyncIterator[PostgresSource]:
    made = PostgresSource(postgres, SOURCE)
    yield made
    await made.close()


async def checked(postgres: PostgresSettings, **changes: Any) -> None:
    made = PostgresSource(postgres, SOURCE.model_copy(update=changes))
    try:
        await made.check()
    finally:
        await made.close()


# ── the table's guards ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE transactions SET value = 1",
        "UPDATE transactions SET created_at = now()",
        "UPDATE transactions SET created_xid = '5'",
        "DELETE FROM transactions",
        "TRUNCATE transactions",
    ],
)
def test_a_row_stays_as_it_was_committed(connection: Connection, statement: str) -> None:
    connection.execute(INSERT)
    with pytest.raises(psycopg.errors.RestrictViolation, match="rows of transactions are immutable"):
        connection.execute(statement)


def test_nobody_can_place_a_row_behind_the_cursor(connection: Connection) -> None:
    connection.execute(INSERT.replace("(chain_id", "(created_xid, chain_id").replace("(1,", "('3', 1,"))
    [[xid, now]] = connection.execute(
        "SELECT created_xid::text, pg_current_xact_id()::text FROM transactions"
    ).fetchall()
    assert 0 < int(now) - int(xid) < 10


@pytest.mark.parametrize("value", ["-5", "0"])
def test_ids_are_positive(connection: Connection, value: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(
            INSERT.replace("(chain_id", "(id, chain_id").replace(
                "VALUES (", f"OVERRIDING SYSTEM VALUE VALUES ({value}, "
            )
        )


@pytest.mark.parametrize(
    ("column", "value"),
    [("to", "'\\x1234'"), ("value", "-1"), ("max_fee_per_gas", "-1"), ("max_priority_fee_per_gas", "-1")],
)
def test_what_can_never_be_right_is_not_taken(connection: Connection, column: str, value: str) -> None:
    fields = {"chain_id": "1", "gas_limit": "21000", "max_fee_per_gas": "5"} | {column: value}
    names = ", ".join(f'"{name}"' for name in fields)
    with pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(f"INSERT INTO transactions ({names}) VALUES ({', '.join(fields.values())})")


# ── how it is read ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("before", ["SELECT 1", "ANALYZE transactions"])
def test_a_page_is_read_in_index_order(postgres: PostgresSettings, connection: Connection, before: str) -> None:
    insert(postgres, "transactions", Mix(1, 1).rows(20_000))
    connection.execute(before)
    connection.execute(IN_INDEX_ORDER)
    for after in (START, Cursor(700, 5), Cursor(2**40, 5)):
        where = (FROM + AFTER).format(shard=3, xid=after.xid, id=after.id, limit=1000)
        query = select('"transactions"', where, OPTIONAL)
        plan = "\n".join(line for [line] in connection.execute("EXPLAIN " + query).fetchall())
        assert "Index Scan using transactions_cursor" in plan
        assert "Sort" not in plan
        assert all(part in plan for part in ("shard = 3", "ROW(created_xid, id) > ROW(", "pg_snapshot_xmin"))


async def test_a_reader_that_only_reads_holds_nobody_back(
    postgres: PostgresSettings, connection: Connection, source: PostgresSource
) -> None:
    with psycopg.connect(connection_string(postgres)) as reading:
        reading.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reading.execute("SELECT count(*) FROM transactions")
        connection.execute(INSERT)
        assert (await source.rows_after(1, START, 10)).num_rows == 1


async def test_who_holds_readers_back_is_named(postgres: PostgresSettings, source: PostgresSource) -> None:
    assert await source.held_back_by() == ""
    with psycopg.connect(connection_string(postgres), application_name="forgotten") as writer:
        writer.execute(INSERT)
        assert await source.held_back_by() == ""  # an ordinary transaction is nothing to report
        await asyncio.sleep(5.1)
        assert re.fullmatch(
            r"process \d+ \(forgotten, user oncesign, database test_\w+\), open since 20.* UTC",
            await source.held_back_by(),
        )


async def test_streams_are_read_at_once(postgres: PostgresSettings, source: PostgresSource) -> None:
    insert(postgres, "transactions", Mix(1, 1).rows(800))
    tables = await asyncio.gather(*(source.rows_after(shard, START, 1_000) for shard in [*range(8)] * 4))
    assert [table.num_rows for table in tables] == [100] * 32


async def test_closing_waits_for_a_query_that_was_given_up(postgres: PostgresSettings, connection: Connection) -> None:
    connection.execute(
        "CREATE VIEW slow AS SELECT t.* FROM transactions t, LATERAL (SELECT pg_sleep(0.3) WHERE t.id > 0) s"
    )
    connection.execute(INSERT)
    made = PostgresSource(postgres, SOURCE.model_copy(update={"table": "slow"}))
    reading = asyncio.create_task(made.rows_after(1, START, 10))
    await asyncio.sleep(0.1)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await made.close()


# ── failures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_lost_connections_are_made_again(connection: Connection, source: PostgresSource) -> None:
    connection.execute(INSERT)
    await source.rows_after(1, START, 10)
    await source.count()
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            await (source.rows_after(1, START, 10) if _ else source.count())
    assert (await source.rows_after(1, START, 10)).num_rows == 1
    assert await source.count() == 1


async def test_a_connection_lost_during_a_query_is_made_again(
    postgres: PostgresSettings, connection: Connection
) -> None:
    connection.execute(
        "CREATE VIEW slow AS SELECT t.* FROM transactions t, LATERAL (SELECT pg_sleep(0.02) WHERE t.id > 0) s"
    )
    for _ in range(100):
        connection.execute(INSERT)
    made = PostgresSource(postgres, SOURCE.model_copy(update={"table": "slow"}))
    reading = asyncio.create_task(made.rows_of(range(1, 101)))
    await asyncio.sleep(0.3)
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with pytest.raises(DatabaseUnavailable):
        await reading
    assert (await made.rows_of([5])).num_rows == 1
    await made.close()


@pytest.mark.parametrize(
    ("dsn", "says"),
    [
        ("postgresql://oncesign@127.0.0.1:1/x", "127.0.0.1:1/x: Connection refused"),
        ("", "password authentication failed.*PASSWORD_FILE"),
        ("postgresql://oncesign@nosuch.invalid/x", "nosuch.invalid.*(resolve|translate)"),
    ],
    ids=["nobody listens", "wrong password", "unknown host"],
)
async def test_why_it_cannot_be_reached_is_said_without_the_password(
    postgres: PostgresSettings, tmp_path: Path, dsn: str, says: str
) -> None:
    file = tmp_path / "password"
    file.write_text(uuid.uuid4().hex)
    made = PostgresSource(PostgresSettings(dsn=SecretStr(dsn) if dsn else postgres.dsn, password_file=file), SOURCE)
    for call in (made.system_id, lambda: made.rows_after(0, START, 1)):
        with pytest.raises(DatabaseUnavailable, match=says) as caught:
            await call()
        assert file.read_text() not in str(caught.getrepr(showlocals=True, chain=True))
    await made.close()


async def test_a_password_may_have_any_character(
    postgres: PostgresSettings, connection: Connection, tmp_path: Path
) -> None:
    password = "p %41+&=?/#'\\\"ü 端"
    quoted = password.replace("'", "''")
    connection.execute(f"CREATE ROLE odd LOGIN SUPERUSER PASSWORD E'{quoted.replace(chr(92), chr(92) * 2)}'")
    (tmp_path / "password").write_text(password + "\n")
    dsn = postgres.dsn.get_secret_value().replace("oncesign@", "odd@")
    made = PostgresSource(PostgresSettings(dsn=SecretStr(dsn), password_file=tmp_path / "password"), SOURCE)
    try:
        assert (await made.rows_after(0, START, 1)).num_rows == 0
        assert await made.count() == 0
    finally:
        await made.close()
        connection.execute("DROP ROLE odd")


# ── other tables ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_second_source_is_made_by_a_function(postgres: PostgresSettings, connection: Connection) -> None:
    connection.execute("SELECT oncesign_create_source_v1('Pay roll', 3)")
    table = '"Pay roll"'
    await checked(postgres, name="payroll", table="Pay roll", shards=3)
    connection.execute(f"{INSERT.replace('transactions', table)}, (1, 21000, 5), (1, 21000, 5)")
    with pytest.raises(psycopg.errors.RestrictViolation):
        connection.execute(f"DELETE FROM {table}")
    made = PostgresSource(postgres, SourceSettings(name="payroll", table="Pay roll", chain_id=1, shards=3))
    assert [(await made.rows_after(shard, START, 9)).num_rows for shard in range(3)] == [1, 1, 1]
    assert await made.any_after(1, START)
    await made.close()


async def test_a_view_can_be_a_source(postgres: PostgresSettings, connection: Connection) -> None:
    connection.execute("CREATE SCHEMA desk")
    connection.execute("CREATE VIEW desk.orders AS SELECT *, 1 AS more FROM transactions WHERE gas_limit > 21000")
    connection.execute(INSERT)
    connection.execute(INSERT.replace("21000", "21001"))
    await checked(postgres, table="desk.orders")
    made = PostgresSource(postgres, SOURCE.model_copy(update={"table": "desk.orders"}))
    assert (await made.rows_of([1, 2])).column("id").to_pylist() == [2]
    await made.close()


ALL_COLUMNS = (
    'id, type, chain_id, "to", value, gas_limit, max_fee_per_gas, max_priority_fee_per_gas, data, access_list,'
    " created_xid, shard"
)
VIEW = "CREATE VIEW odd AS SELECT {} FROM transactions"
HEX = ALL_COLUMNS.replace('"to"', 'encode("to", \'hex\') AS "to"')
SHARD_NINE = ALL_COLUMNS.replace("shard", "9 AS shard")


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ("SELECT 1", "does not exist"),
        ("CREATE VIEW odd AS SELECT id, shard FROM transactions", "lacks access_list, chain_id"),
        (VIEW.format(HEX), "has column to of type text instead of bytea"),
        ("CREATE TABLE odd (LIKE transactions INCLUDING ALL)", r"lets rows be changed.*oncesign_guard_v1\('odd'\)"),
        ("SELECT oncesign_create_source_v1('odd', 16)", "has 16 shards, the settings say 8"),
        (VIEW.format(SHARD_NINE), "has rows of shards 9 to 9, the settings say 8"),
    ],
    ids=["missing", "columns", "type", "guards", "shards of a table", "shards of a view"],
)
async def test_what_cannot_be_a_source_is_refused(
    postgres: PostgresSettings, connection: Connection, made: str, says: str
) -> None:
    connection.execute(INSERT)
    connection.execute(made)
    with pytest.raises(SettingError, match=says):
        await checked(postgres, table="odd")


async def test_a_table_made_by_hand_can_be_guarded(postgres: PostgresSettings, connection: Connection) -> None:
    connection.execute("CREATE TABLE hand (LIKE transactions INCLUDING ALL)")
    connection.execute("SELECT oncesign_guard_v1('hand')")
    await checked(postgres, table="hand")


async def test_the_first_source_passes(postgres: PostgresSettings, connection: Connection) -> None:
    await checked(postgres)
    connection.execute(INSERT)
    await checked(postgres)
    with pytest.raises(SettingError, match="has 8 shards, the settings say 4"):
        await checked(postgres, shards=4)


# ── large rows ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_page_of_large_rows_ends_early_and_goes_on(connection: Connection, source: PostgresSource) -> None:
    connection.execute(
        "INSERT INTO transactions (chain_id, gas_limit, max_fee_per_gas, data)"
        " SELECT 1, 9000000, 5, convert_to(repeat('x', 130000), 'UTF8') FROM generate_series(1, 1600)"
    )
    pages, cursor = [], START
    while (table := await source.rows_after(3, cursor, 1_000)).num_rows:
        pages.append(table.num_rows)
        assert table.nbytes < 40 * 1024 * 1024
        end = table.slice(table.num_rows - 1)
        cursor = Cursor(end["created_xid"][0].as_py(), end["id"][0].as_py())
    assert sum(pages) == 200
    assert len(pages) > 1


async def test_what_is_too_long_is_cut_and_rejected(connection: Connection, source: PostgresSource) -> None:
    data = "convert_to(repeat('x', 5000000), 'UTF8')"
    connection.execute(f"{INSERT.replace('max_fee_per_gas)', 'max_fee_per_gas, data)')[:-1]}, {data})")
    keys = "(SELECT jsonb_agg('0x' || encode(sha256(i::text::bytea), 'hex')) FROM generate_series(1, 40000) i)"
    listed = f"jsonb_build_array(jsonb_build_object('address', '0x{'11' * 20}', 'storageKeys', {keys}))"
    connection.execute(f"{INSERT.replace('max_fee_per_gas)', 'max_fee_per_gas, access_list)')[:-1]}, {listed})")
    table = await source.rows_of([1, 2])
    assert table.nbytes < 1_000_000
    defects = dict(zip(table["id"].to_pylist(), table["defect"].to_pylist(), strict=True))
    assert defects == {1: Reason.DATA_TOO_LARGE, 2: Reason.ACCESS_LIST_MALFORMED}


async def test_another_server_behind_the_same_address_is_not_read(source: PostgresSource) -> None:
    await source.rows_after(0, START, 1)
    source._system_id = "7000000000000000001"
    source._open[0].close()
    with pytest.raises(DatabaseUnavailable):
        await source.rows_after(0, START, 1)  # the connection is broken, and dropped
    with pytest.raises(DatabaseUnavailable, match="another server answers"):
        await source.rows_after(0, START, 1)
