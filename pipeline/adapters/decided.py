"""Outcomes streamed out of Postgres as Arrow, in the order of the Kafka records that they were read from."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, LiteralString, TypeVar

import adbc_driver_manager
import pyarrow as pa
from psycopg import sql

from pipeline.adapters.postgres import Database, unavailable, uri
from pipeline.adapters.postgres_source import driver
from pipeline.effects import effect
from pipeline.settings import PostgresSettings

T = TypeVar("T")

PIECE_BYTES: Final = 1024 * 1024
"""Of rows that are held at once."""

PIECE_OPTION: Final = "adbc.postgresql.batch_size_hint_bytes"
CANCEL_EVERY_S: Final = 0.2

ROWS: Final = sql.SQL("""
SELECT o.source, o.tx_id, o.status, o.chain_id, o.sender, o.nonce::text AS nonce, o.hash,
       nullif(o.reason, '') AS reason, nullif(o.detail, '') AS detail, o.decided_at,
       o.topic, o.partition, o.kafka_offset, o.shard, o.seq
FROM outcomes o WHERE {chosen}
ORDER BY o.topic COLLATE "C", o.partition, o.kafka_offset, o.source, o.shard, o.seq, o.nonce, o.tx_id
""")
"""One statement, one snapshot. It writes nothing, so no reader has to wait for its transaction; Postgres sorts in
temporary files of its own."""

TYPES: Final = {"nonce": pa.uint64(), "sender": pa.binary(20), "hash": pa.binary(32)}
"""Of the columns that Postgres has under another type."""


class PostgresDecided:
    """Fulfils export.rows.Decided. Not for two tasks at once."""

    def __init__(self, settings: PostgresSettings, source: str = "", status: str = "") -> None:
        """Of one source and of one status, when these are named."""
        self._settings = settings
        self._source, self._status = source, status
        self._database = Database(settings)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="postgres-decided")
        self._connection: Any = None
        self._cursor: Any = None
        self._reader: Any = None

    async def batches(self) -> AsyncGenerator[pa.RecordBatch, None]:
        """See export.rows.Decided."""
        await self._call(self._begin)
        while (batch := await self._call(self._next)) is not None:
            yield typed(batch)

    async def count(self, sources: Sequence[str]) -> int:
        """How many rows of these have an outcome, of any status. Raises DatabaseUnavailable."""
        return await self._value("SELECT count(*) FROM outcomes WHERE source = ANY(%s)", sources)

    async def fillers(self, sources: Sequence[str]) -> int:
        """How many of their nonces are filled by a transfer that is no row. Raises DatabaseUnavailable."""
        return await self._value(
            "SELECT coalesce(sum(fillers), 0) FROM verified_batches WHERE source = ANY(%s)", sources
        )

    async def close(self) -> None:
        """Drop the connections, and with them a query that still runs."""
        await self._database.close()
        ended = asyncio.ensure_future(asyncio.to_thread(self._thread.shutdown))
        while not ended.done():
            if self._connection is not None:
                with contextlib.suppress(adbc_driver_manager.Error):
                    self._connection.adbc_cancel()
            await asyncio.wait({ended}, timeout=CANCEL_EVERY_S)
        for opened in (self._cursor, self._connection):
            if opened is not None:
                opened.close()

    async def _call(self, function: Callable[[], T]) -> T:
        try:
            with effect("postgres", "decided"):
                return await asyncio.get_running_loop().run_in_executor(self._thread, function)
        except (adbc_driver_manager.Error, pa.ArrowException, OSError) as error:
            raise unavailable(self._settings, error) from error

    def _begin(self) -> None:
        self._connection = driver().connect(uri(self._settings), autocommit=True)
        self._cursor = self._connection.cursor()
        self._cursor.adbc_statement.set_options(**{PIECE_OPTION: str(PIECE_BYTES)})
        chosen: list[sql.Composable] = [sql.SQL("true")]
        for column, wanted in (("source", self._source), ("status", self._status)):
            if wanted:
                chosen.append(sql.SQL("o.{} = {}").format(sql.Identifier(column), sql.Literal(wanted)))
        self._cursor.execute(ROWS.format(chosen=sql.SQL(" AND ").join(chosen)).as_string(None))
        self._reader = self._cursor.fetch_record_batch()

    def _next(self) -> pa.RecordBatch | None:
        try:
            return self._reader.read_next_batch()  # type: ignore[no-any-return]
        except StopIteration:
            return None

    async def _value(self, query: LiteralString, sources: Sequence[str]) -> int:
        async with self._database.cursor() as cursor:
            with effect("postgres", "decided"):
                await cursor.execute(query, [list(sources)])
                row = await cursor.fetchone()
        return int(str(row[0])) if row else 0


def typed(batch: pa.RecordBatch) -> pa.RecordBatch:
    """With the types of the exported columns."""
    columns: dict[str, Any] = {name: batch.column(name) for name in batch.schema.names}
    return pa.RecordBatch.from_pydict(columns | {name: columns[name].cast(kind) for name, kind in TYPES.items()})
