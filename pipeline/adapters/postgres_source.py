"""A source in Postgres, read as Arrow through ADBC.

`xid8` compares like a number, but only with xid8: the bounds are cast so that the index (shard, created_xid, id) serves
the whole condition.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import adbc_driver_manager
import pyarrow as pa
from psycopg import sql

from pipeline.adapters.postgres import Database, unavailable, uri
from pipeline.adapters.source_shape import check_shape
from pipeline.effects import Effect, effect
from pipeline.errors import DatabaseUnavailable, OncesignError
from pipeline.ethereum.rows import batch_columns
from pipeline.ethereum.rules import DATA_MAX_BYTES
from pipeline.settings import PostgresSettings, SourceSettings
from pipeline.stream import Cursor

READERS_MAX: Final = 4
"""Connections that one reader actor opens; more streams than that take turns."""

PAGE_BYTES_MAX: Final = 8 * 1024 * 1024
"""A page of rows ends with the piece that reaches this; ADBC hands rows over in pieces of about 16 MB."""

LIST_MAX_BYTES: Final = 1_000_000
"""Stored size from which an access list has certainly more than ACCESS_LIST_KEYS_MAX entries."""

COLUMNS_OF: Final = """
SELECT row.created_xid::text::bigint AS created_xid, row.id, row.type::bigint AS type, row.chain_id, row."to",
       row.value::text AS value, row.gas_limit::bigint AS gas_limit, row.max_fee_per_gas::text AS max_fee_per_gas,
       row.max_priority_fee_per_gas::text AS max_priority_fee_per_gas, substring(row.data FOR {data_max}) AS data,
       CASE WHEN pg_column_size(row.access_list) > {list_max} THEN '0' ELSE row.access_list::text END AS access_list,
       {optional}
FROM {table} AS row
"""
"""Columns are qualified: a bare `ORDER BY created_xid` would mean the bigint above, which no index has. What is too
long to be signed is cut such that it is rejected all the same."""

OPTIONAL_OF: Final = {
    "sender": "row.sender",
    "max_fee_per_blob_gas": "row.max_fee_per_blob_gas::text",
    "blob_hashes": "CASE WHEN pg_column_size(row.blob_hashes) > {list_max} THEN '0' ELSE row.blob_hashes::text END",
    "authorization_list": "CASE WHEN pg_column_size(row.authorization_list) > {list_max} THEN '0' "
    "ELSE row.authorization_list::text END",
}
"""What a source may lack."""

ABSENT: Final = {"sender": "NULL::bytea"}
PRESENT: Final = "SELECT attname::text FROM pg_attribute WHERE attrelid = '{table}'::regclass AND NOT attisdropped"

FROM: Final = "WHERE row.shard = {shard} AND (row.created_xid, row.id) > ('{xid}'::xid8, '{id}'::bigint) "

ORDER: Final = "ORDER BY row.created_xid, row.id"

AFTER: Final = "AND row.created_xid < pg_snapshot_xmin(pg_current_snapshot()) " + ORDER + " LIMIT {limit}"
"""Only rows of transactions older than every running one: nothing can still commit behind them."""

SYSTEM_ID: Final = "SELECT system_identifier FROM pg_control_system()"

IN_INDEX_ORDER: Final = "SELECT set_config('enable_sort', 'off', false), set_config('enable_bitmapscan', 'off', false)"
"""Without statistics Postgres takes a shard for few rows, and would fetch and sort all that is left of it each time."""

BETWEEN: Final = "AND (row.created_xid, row.id) <= ('{to_xid}'::xid8, '{to_id}'::bigint) " + ORDER


def driver() -> Any:
    """ADBC's module. It loads pandas, a third of a second that processes without a source should not spend."""
    from adbc_driver_postgresql import dbapi  # noqa: PLC0415

    return dbapi


def select(table: str, where: str, present: Collection[str]) -> str:
    """The query for rows of a quoted table that has these of the optional columns."""
    optional = ", ".join(
        f"{read if name in present else ABSENT.get(name, 'NULL::text')} AS {name}" for name, read in OPTIONAL_OF.items()
    ).format(list_max=LIST_MAX_BYTES)
    return (
        COLUMNS_OF.format(table=table, data_max=DATA_MAX_BYTES + 1, list_max=LIST_MAX_BYTES, optional=optional) + where
    )


OLDEST_WRITER: Final = """
SELECT format('%s, open since %s', who, to_char(since AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')) FROM (
    SELECT format('process %s (%s, user %s, database %s)', pid, coalesce(nullif(application_name, ''), 'unnamed'),
                  usename, datname) AS who, xact_start AS since, age(backend_xid) AS age
    FROM pg_stat_activity WHERE backend_xid IS NOT NULL
    UNION ALL
    SELECT format('prepared transaction %s (user %s, database %s)', gid, owner, database), prepared, age(transaction)
    FROM pg_prepared_xacts
) writers WHERE since < now() - interval '5 s' ORDER BY age DESC LIMIT 1
"""
"""A transaction that has written anything, in whatever database of the server, might still insert before later ones."""


class PostgresSource:
    """Fulfils ports.Source."""

    def __init__(self, settings: PostgresSettings, source: SourceSettings) -> None:
        self._settings = settings
        self._source = source
        self._table = sql.SQL(".").join(map(sql.Identifier, source.table.split("."))).as_string(None)
        self._database = Database(settings)
        self._turn = asyncio.Lock()
        self._threads = ThreadPoolExecutor(READERS_MAX, thread_name_prefix="postgres-source")
        self._local = threading.local()
        self._open: list[Any] = []
        self._system_id = ""  #: of the first connection
        self._present: frozenset[str] = frozenset()  #: columns of the table

    async def system_id(self) -> str:
        """See ports.Source."""
        return str(await self._value(effect("postgres", "system_id"), SYSTEM_ID))

    async def check(self) -> None:
        """Raises SettingError when the table cannot be a source (see source_shape), DatabaseUnavailable."""
        async with self._turn, self._database.cursor() as cursor:
            with effect("postgres", "check"):
                await check_shape(cursor, self._table, self._source)

    async def rows_after(self, shard: int, after: Cursor, limit: int) -> pa.Table:
        """See ports.Source."""
        where = (FROM + AFTER).format(shard=shard, xid=after.xid, id=after.id, limit=limit)
        with effect("postgres", "rows_after"):
            return await self._arrow(where, PAGE_BYTES_MAX)

    async def rows_between(self, shard: int, prev: Cursor, cursor: Cursor) -> pa.Table:
        """See ports.Source."""
        bounds = {"xid": prev.xid, "id": prev.id, "to_xid": cursor.xid, "to_id": cursor.id}
        with effect("postgres", "rows_between"):
            return await self._arrow((FROM + BETWEEN).format(shard=shard, **bounds))

    async def rows_of(self, ids: Sequence[int]) -> pa.Table:
        """See ports.Source."""
        listed = ",".join(str(int(tx_id)) for tx_id in ids)
        with effect("postgres", "rows_of"):
            return await self._arrow(f"WHERE row.id = ANY('{{{listed}}}'::bigint[])")

    async def count(self) -> int:
        """See ports.Source."""
        query = f"SELECT count(*) FROM {self._table}"  # noqa: S608 - a quoted identifier
        return int(await self._value(effect("postgres", "count"), query))

    async def any_after(self, shard: int, after: Cursor) -> bool:
        """See ports.Source."""
        where = FROM.format(shard=shard, xid=after.xid, id=after.id) + ORDER  # the order makes it use the index
        query = f"SELECT true FROM {self._table} AS row {where} LIMIT 1"  # noqa: S608 - as above
        return bool(await self._value(effect("postgres", "any_after"), query))

    async def held_back_by(self) -> str:
        """The oldest transaction that readers must wait for, when it has run for long; else empty."""
        return str(await self._value(effect("postgres", "held_back_by"), OLDEST_WRITER) or "")

    async def close(self) -> None:
        """Drop the connections."""
        await self._database.close()
        # A query whose task was cancelled still runs in its thread; its connection must outlive it.
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(self._close_all)

    async def _value(self, asked: Effect, query: str) -> Any:
        async with self._turn, self._database.cursor() as cursor:
            with asked:
                await cursor.execute(query)
                row = await cursor.fetchone()
            return row[0] if row else None

    async def _arrow(self, where: str, bytes_max: int = sys.maxsize) -> pa.Table:
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: batch_columns(self._fetch(where, bytes_max))
        )

    def _fetch(self, where: str, bytes_max: int) -> pa.Table:
        """The rows of COLUMNS_OF, the first of them when they are more than `bytes_max`."""
        try:
            connection = self._connection()
            with connection.cursor() as cursor:
                cursor.execute(select(self._table, where, self._present))
                reader = cursor.fetch_record_batch()
                batches: list[pa.RecordBatch] = []
                for batch in reader:
                    batches.append(batch)
                    bytes_max -= batch.nbytes
                    if bytes_max <= 0:
                        self._drop()  # cheaper than to wait for what nobody will read
                        break
                return pa.Table.from_batches(batches, reader.schema)
        except (adbc_driver_manager.Error, pa.ArrowException, OSError) as error:
            self._drop()
            raise self._error(error) from error

    def _connection(self) -> Any:
        """One connection per thread, made again after an error. Raises DatabaseUnavailable when another server answers.

        Whoever asks again then compares the system identifier with that of the cursor, and halts.
        """
        if getattr(self._local, "connection", None) is None:
            connection = driver().connect(uri(self._settings), autocommit=True)
            self._open.append(connection)
            self._local.connection = connection
            with connection.cursor() as cursor:
                cursor.execute(IN_INDEX_ORDER)
                cursor.execute(SYSTEM_ID)
                [system_id] = cursor.fetchone()
                cursor.execute(PRESENT.format(table=self._table.replace("'", "''")))
                self._present = frozenset(name for [name] in cursor.fetchall())
            self._require_same(str(system_id))
        return self._local.connection

    def _require_same(self, system_id: str) -> None:
        self._system_id = self._system_id or system_id
        if system_id != self._system_id:
            self._drop()
            raise DatabaseUnavailable(
                f"another server answers: its system identifier is {system_id}, it was {self._system_id}",
                hint="Point ONCESIGN_POSTGRES__DSN at the database that the streams are read from.",
            )

    def _drop(self) -> None:
        connection = getattr(self._local, "connection", None)
        self._local.connection = None
        if connection is not None:
            self._open.remove(connection)
            connection.close()

    def _close_all(self) -> None:
        for connection in self._open:
            connection.close()
        self._open.clear()

    def _error(self, error: Exception) -> OncesignError:
        return unavailable(self._settings, error)
