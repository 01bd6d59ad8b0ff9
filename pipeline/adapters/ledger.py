"""The signing ledger in Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import psycopg

from pipeline.adapters.postgres import Database
from pipeline.effects import Effect, effect
from pipeline.errors import LedgerRefused
from pipeline.ports import LedgerEntry
from pipeline.settings import PostgresSettings
from pipeline.stream import Stream

RECORD: Final = """
SELECT oncesign_ledger_record_v1(
    %s, %s::smallint, %s::bigint, %s, %s::bigint, %s, %s::numeric, %s::integer, %s::bigint, %s
)
"""
ENTRY: Final = """
SELECT source, shard, seq, digest, chain_id, sender, first_nonce, count, fence, worker FROM signing_ledger
"""


class PostgresLedger:
    """Fulfils ports.Ledger over one connection; calls wait for each other."""

    def __init__(self, settings: PostgresSettings) -> None:
        self._database = Database(settings)
        self._turn = asyncio.Lock()

    async def record(self, entry: LedgerEntry) -> bool:
        """See ports.Ledger. Durable on return: Postgres' synchronous_commit is on by default."""
        try:
            [[answer]] = await self._fetch(effect("postgres", "record"), RECORD, _row(entry))
        except psycopg.Error as error:
            raise LedgerRefused(str(entry.stream), entry.seq, _first_line(error)) from error
        return bool(answer == "written")

    async def entry(self, stream: Stream, seq: int) -> LedgerEntry | None:
        """See ports.Ledger."""
        query = ENTRY + "WHERE source = %s AND shard = %s AND seq = %s"
        rows = await self._fetch(effect("postgres", "entry"), query, (stream.source, stream.shard, seq))
        return _entry(rows[0]) if rows else None

    async def entries(self, stream: Stream, after: int, limit: int) -> list[LedgerEntry]:
        """A page of a stream's rows, seq > `after`, in order."""
        query = ENTRY + "WHERE source = %s AND shard = %s AND seq > %s ORDER BY seq LIMIT %s"
        bounds = stream.source, stream.shard, after, limit
        rows = await self._fetch(effect("postgres", "entries"), query, bounds)
        return [_entry(row) for row in rows]

    async def heads(self) -> Mapping[Stream, int]:
        """See ports.Ledger."""
        query = "SELECT source, shard, max(seq) FROM signing_ledger GROUP BY source, shard"
        rows = await self._fetch(effect("postgres", "heads"), query)
        return {Stream(source, shard): seq for source, shard, seq in rows}

    async def watermarks(self) -> Mapping[tuple[int, str], int]:
        """See ports.Ledger."""
        query = "SELECT chain_id, sender, next_nonce FROM key_watermarks"
        rows = await self._fetch(effect("postgres", "watermarks"), query)
        return {(chain_id, "0x" + sender.hex()): int(nonce) for chain_id, sender, nonce in rows}

    async def signed(self) -> int:
        """How many rows the ledger has sworn to sign."""
        query = "SELECT coalesce(sum(count), 0) FROM signing_ledger"
        [[total]] = await self._fetch(effect("postgres", "signed"), query)
        return int(total)

    async def close(self) -> None:
        """Drop the connection."""
        await self._database.close()

    async def _fetch(self, asked: Effect, query: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
        async with self._turn, self._database.cursor() as cursor:
            with asked:
                await cursor.execute(query, parameters)
                return await cursor.fetchall()


def _row(entry: LedgerEntry) -> tuple[Any, ...]:
    sender = bytes.fromhex(entry.sender.removeprefix("0x")) or None
    stream = entry.stream
    digest = bytes.fromhex(entry.digest)
    return (
        stream.source, stream.shard, entry.seq, digest, entry.chain_id, sender,
        entry.first_nonce, entry.count, entry.fence, entry.worker,
    )  # fmt: skip


def _entry(row: Any) -> LedgerEntry:
    source, shard, seq, digest, chain_id, sender, first_nonce, count, fence, worker = row
    address = "0x" + sender.hex() if sender is not None else ""
    return LedgerEntry(
        Stream(source, shard), seq, digest.hex(), chain_id, address, int(first_nonce), count, fence, worker
    )


def _first_line(error: psycopg.Error) -> str:
    return str(error).strip().splitlines()[0]
