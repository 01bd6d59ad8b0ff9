"""A source table in memory, with transactions that commit in any order, by the rules of adapters.postgres_source."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, TypeVar

import pyarrow as pa

from pipeline.errors import DatabaseUnavailable
from pipeline.ethereum.rows import RAW, batch_columns
from pipeline.stock.row import Row
from pipeline.stream import Cursor
from pipeline.testing.database import Database

T = TypeVar("T")

FIRST_XID: Final = 3  # Postgres keeps 0 to 2 for itself
BINARY: Final = frozenset({"to", "data", "sender"})
AMOUNTS: Final = frozenset({"value", "max_fee_per_gas", "max_priority_fee_per_gas", "max_fee_per_blob_gas"})
TEXT: Final = AMOUNTS | {"access_list", "blob_hashes", "authorization_list"}
TABLES_KEPT: Final = 1024
"""Stored rows never change, so the Arrow table of the same ones is made once."""

SCHEMA: Final = pa.schema(
    [pa.field(name, pa.binary() if name in BINARY else pa.string() if name in TEXT else pa.int64()) for name in RAW]
)


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A committed row."""

    cursor: Cursor
    row: Row


class TwinTransaction:
    """A transaction of a client that inserts. It has a number from its first row on, as in Postgres."""

    def __init__(self, source: TwinSource) -> None:
        self._source = source
        self._server = source.server
        self._xid = 0
        self._rows: list[StoredRow] = []

    def insert(self, row: Row) -> int:
        """The new row's id."""
        if not self._xid:
            self._xid = self._source.begun()
        cursor = Cursor(self._xid, self._source.next_id())
        self._rows.append(StoredRow(cursor, row))
        return cursor.id

    def commit(self) -> bool:
        """All of its rows are there; False, and none of them, when its server is gone."""
        if self._server != self._source.server:
            return False
        self._source.ended(self._xid, self._rows)
        return True

    def rollback(self) -> None:
        """None of its rows ever was; their ids stay used."""
        if self._server == self._source.server:
            self._source.ended(self._xid, [])


@dataclass(slots=True)
class TwinSource:
    """Fulfils ports.Source."""

    shards: int = 8
    system: str = "7000000000000000001"
    database: Database = field(default_factory=Database)
    rows: dict[int, StoredRow] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)
    xid: int = FIRST_XID
    used_ids: int = 0
    server: int = 0  #: which one answers; transactions end with theirs

    # ── as a client that inserts sees it ─────────────────────────────────────────────────────────────────────────────

    def begin(self) -> TwinTransaction:
        """A transaction; several may run at once."""
        return TwinTransaction(self)

    def insert(self, *rows: Row) -> list[int]:
        """Rows in a transaction of their own."""
        transaction = self.begin()
        ids = [transaction.insert(row) for row in rows]
        transaction.commit()
        return ids

    def begun(self) -> int:
        """A transaction's number."""
        self.xid += 1
        self.running.add(self.xid - 1)
        return self.xid - 1

    def next_id(self) -> int:
        """From the table's sequence, which no rollback sets back."""
        self.used_ids += 1
        return self.used_ids

    def fail_over(self) -> None:
        """Another server answers from here on; what was under way on the last one will never be committed."""
        self.server += 1
        self.running.clear()

    def ended(self, xid: int, rows: Sequence[StoredRow]) -> None:
        """A transaction is over; `rows` are what it committed."""
        self.running.discard(xid)
        self.rows.update({stored.cursor.id: stored for stored in rows})

    def client(self) -> SourceClient:
        """A process that reads."""
        return SourceClient(self)

    # ── as a reader sees it ──────────────────────────────────────────────────────────────────────────────────────────

    async def system_id(self) -> str:
        """See ports.Source."""
        return await self.database.ask("system_id", lambda: self.system)

    async def rows_after(self, shard: int, after: Cursor, limit: int) -> pa.Table:
        """See ports.Source."""
        return await self.database.ask("rows_after", lambda: _table(self._visible(shard, after)[:limit]))

    async def rows_between(self, shard: int, prev: Cursor, cursor: Cursor) -> pa.Table:
        """See ports.Source."""
        return await self.database.ask(
            "rows_between", lambda: _table(self._found(lambda at: at.id % self.shards == shard and prev < at <= cursor))
        )

    async def rows_of(self, ids: Sequence[int]) -> pa.Table:
        """See ports.Source."""
        wanted = set(ids)
        return await self.database.ask("rows_of", lambda: _table(self._found(lambda cursor: cursor.id in wanted)))

    async def count(self) -> int:
        """See ports.Source."""
        return await self.database.ask("count", lambda: len(self.rows))

    async def any_after(self, shard: int, after: Cursor) -> bool:
        """See ports.Source."""
        return await self.database.ask(
            "any_after", lambda: bool(self._found(lambda at: at.id % self.shards == shard and at > after))
        )

    async def close(self) -> None:
        """Nothing is held open."""

    def _visible(self, shard: int, after: Cursor) -> tuple[StoredRow, ...]:
        horizon = min(self.running, default=self.xid)
        return self._found(lambda at: at.id % self.shards == shard and at > after and at.xid < horizon)

    def _found(self, wanted: Callable[[Cursor], bool]) -> tuple[StoredRow, ...]:
        found = [stored for stored in self.rows.values() if wanted(stored.cursor)]
        return tuple(sorted(found, key=lambda stored: stored.cursor))


class SourceClient:
    """Fulfils ports.Source for one process. As the adapter, it reads from the server that it came to first, or not."""

    def __init__(self, source: TwinSource) -> None:
        self._source = source
        self._system = ""  #: of the first answer

    async def system_id(self) -> str:
        """See ports.Source."""
        return await self._same(self._source.system_id())

    async def rows_after(self, shard: int, after: Cursor, limit: int) -> pa.Table:
        """See ports.Source."""
        return await self._same(self._source.rows_after(shard, after, limit))

    async def rows_between(self, shard: int, prev: Cursor, cursor: Cursor) -> pa.Table:
        """See ports.Source."""
        return await self._same(self._source.rows_between(shard, prev, cursor))

    async def rows_of(self, ids: Sequence[int]) -> pa.Table:
        """See ports.Source."""
        return await self._same(self._source.rows_of(ids))

    async def count(self) -> int:
        """See ports.Source."""
        return await self._same(self._source.count())

    async def any_after(self, shard: int, after: Cursor) -> bool:
        """See ports.Source."""
        return await self._same(self._source.any_after(shard, after))

    async def close(self) -> None:
        """Nothing is held open."""

    async def _same(self, answer: Awaitable[T]) -> T:
        found = await answer
        self._system = self._system or self._source.system
        if self._source.system != self._system:
            raise DatabaseUnavailable(f"another server answers: {self._source.system}, it was {self._system}")
        return found


@lru_cache(maxsize=TABLES_KEPT)
def _table(found: tuple[StoredRow, ...]) -> pa.Table:
    return batch_columns(pa.Table.from_pylist([_raw(stored) for stored in found], schema=SCHEMA))


def _raw(stored: StoredRow) -> dict[str, Any]:
    fields: dict[str, Any] = stored.row._asdict()
    for name in AMOUNTS:
        fields[name] = None if fields[name] is None else str(fields[name])
    return fields | {"created_xid": stored.cursor.xid, "id": stored.cursor.id}
