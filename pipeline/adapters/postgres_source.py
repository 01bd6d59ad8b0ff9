"""A source in Postgres, read as Arrow through ADBC.

`xid8` compares like a number, but only with xid8: the bounds are cast so that the index (shard, created_xid, id) serves
the whole condition.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import adbc_driver_manager
import pyarrow as pa
from adbc_driver_postgresql import dbapi
from psycopg import sql

from pipeline.adapters.postgres import Database, unavailable, uri
from pipeline.errors import OncesignError, SettingError
from pipeline.ethereum.rows import RAW, batch_columns
from pipeline.settings import PostgresSettings, SourceSettings
from pipeline.stream import Cursor

READERS_MAX: Final = 4
"""Connections that one reader actor opens; more streams than that take turns."""

COLUMNS_OF: Final = """
SELECT created_xid::text::bigint AS created_xid, id, type::bigint AS type, chain_id, "to", value::text AS value,
       gas_limit::bigint AS gas_limit, max_fee_per_gas::text AS max_fee_per_gas,
       max_priority_fee_per_gas::text AS max_priority_fee_per_gas, data, access_list::text AS access_list
FROM {table}
"""

SELECT: Final = COLUMNS_OF + "WHERE shard = {shard} AND (created_xid, id) > ('{xid}'::xid8, {id}) "

AFTER: Final = "AND created_xid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY created_xid, id LIMIT {limit}"
"""Only rows of transactions older than every running one: nothing can still commit behind them."""

BETWEEN: Final = "AND (created_xid, id) <= ('{to_xid}'::xid8, {to_id}) ORDER BY created_xid, id"


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

    async def system_id(self) -> str:
        """See ports.Source."""
        return str(await self._value("SELECT system_identifier FROM pg_control_system()"))

    async def check(self) -> None:
        """Raises SettingError when the table lacks a column, DatabaseUnavailable."""
        present = await self._value(
            "SELECT coalesce(array_agg(attname::text), '{}') FROM pg_attribute"
            " WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped",
            self._table,
        )
        missing = sorted({*RAW, "shard"} - set(present))
        if missing:
            raise SettingError(
                "ONCESIGN_SOURCES",
                f"table {self._source.table} of source {self._source.name} lacks {', '.join(missing)}",
                hint="Run `oncesign migrate`, or give the view these columns (docs/formats.md).",
            )

    async def rows_after(self, shard: int, after: Cursor, limit: int) -> pa.Table:
        """See ports.Source."""
        where = SELECT.format(table=self._table, shard=shard, xid=after.xid, id=after.id)
        return await self._arrow(where + AFTER.format(limit=limit))

    async def rows_between(self, shard: int, prev: Cursor, cursor: Cursor) -> pa.Table:
        """See ports.Source."""
        where = SELECT.format(table=self._table, shard=shard, xid=prev.xid, id=prev.id)
        return await self._arrow(where + BETWEEN.format(to_xid=cursor.xid, to_id=cursor.id))

    async def rows_of(self, ids: Sequence[int]) -> pa.Table:
        """See ports.Source."""
        listed = ",".join(str(int(tx_id)) for tx_id in ids)
        return await self._arrow(COLUMNS_OF.format(table=self._table) + f"WHERE id = ANY('{{{listed}}}'::bigint[])")

    async def count(self) -> int:
        """See ports.Source."""
        return int(await self._value(f"SELECT count(*) FROM {self._table}"))  # noqa: S608 - a quoted identifier

    async def remaining(self, shard: int, after: Cursor) -> int:
        """See ports.Source."""
        query = f"SELECT count(*) FROM {self._table} WHERE shard = %s AND (created_xid, id) > (%s::text::xid8, %s)"  # noqa: S608 - as above
        return int(await self._value(query, shard, str(after.xid), after.id))

    async def close(self) -> None:
        """Drop the connections."""
        await self._database.close()
        await asyncio.get_running_loop().run_in_executor(self._threads, self._close_all)
        self._threads.shutdown(wait=False)

    async def _value(self, query: str, *parameters: Any) -> Any:
        async with self._turn, self._database.cursor() as cursor:
            await cursor.execute(query, parameters)  # type: ignore[arg-type] # built from constants and a quoted name
            row = await cursor.fetchone()
            return row[0] if row else None

    async def _arrow(self, query: str) -> pa.Table:
        raw = await self._in_thread(lambda: self._fetch(query))
        return batch_columns(raw)

    async def _in_thread(self, function: Callable[[], pa.Table]) -> pa.Table:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    def _fetch(self, query: str) -> pa.Table:
        try:
            connection = self._connection()
            with connection.cursor() as cursor:
                cursor.execute(query)
                return cursor.fetch_arrow_table()
        except adbc_driver_manager.Error as error:
            self._drop()
            raise self._error(error) from error

    def _connection(self) -> Any:
        """One connection per thread, made again after an error."""
        if getattr(self._local, "connection", None) is None:
            self._local.connection = dbapi.connect(uri(self._settings), autocommit=True)
            self._open.append(self._local.connection)
        return self._local.connection

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
