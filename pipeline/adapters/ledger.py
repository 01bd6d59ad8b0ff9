"""The signing ledger in Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import psycopg

from pipeline.adapters.postgres import Database
from pipeline.assignment.archive import KeptKey
from pipeline.effects import Effect, effect
from pipeline.errors import DatabaseUnavailable, FillRefused, LedgerRefused
from pipeline.fill import Fill
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


LAST_ROWS: Final = """
SELECT l.source, l.shard, l.seq, l.digest, l.chain_id, l.sender, l.first_nonce, l.count, l.fence, l.worker
FROM key_watermarks w CROSS JOIN LATERAL (
    SELECT * FROM signing_ledger s WHERE (s.chain_id, s.sender) = (w.chain_id, w.sender)
    ORDER BY s.first_nonce DESC LIMIT 1
) l
"""
HOLES: Final = """
SELECT source, shard, missing FROM (
    SELECT source, shard, seq, lag(seq, 1, 0::bigint) OVER (PARTITION BY source, shard ORDER BY seq) AS before
    FROM signing_ledger
) rows CROSS JOIN LATERAL generate_series(before + 1, seq - 1) AS missing
WHERE seq > before + 1 ORDER BY source, shard, missing
"""
KEEP: Final = """
INSERT INTO kept_keys (chain_id, address, sealed, start_nonce)
SELECT chain_id, address, sealed, start_nonce
FROM unnest(%s::bigint[], %s::bytea[], %s::bytea[], %s::numeric[]) AS keys (chain_id, address, sealed, start_nonce)
ON CONFLICT DO NOTHING
RETURNING id
"""
FILL: Final = """
SELECT fee_cap, priority_fee FROM oncesign_fill_record_v1(
    %s::bigint, %s, %s::numeric, %s::integer, %s::numeric, %s::numeric, %s::numeric
)
"""
RETIRE: Final = """
INSERT INTO retired_keys (chain_id, address) VALUES (%s, %s) ON CONFLICT DO NOTHING RETURNING address
"""
SET_APART: Final = """
INSERT INTO keys_set_apart (chain_id, address) VALUES (%s, %s) ON CONFLICT DO NOTHING RETURNING address
"""
UNITE: Final = "DELETE FROM keys_set_apart WHERE (chain_id, address) = (%s, %s) RETURNING address"
DESTROY: Final = "DELETE FROM kept_keys WHERE (chain_id, address) = (%s, %s) RETURNING id"
BEGIN: Final = """
INSERT INTO recoveries (generation, node) SELECT coalesce(max(generation), 0) + 1, %s FROM recoveries
RETURNING generation
"""
KEPT: Final = """
SELECT DISTINCT ON (chain_id, address) chain_id, address, sealed, start_nonce FROM kept_keys
ORDER BY chain_id, address, id DESC
"""


class PostgresLedger:
    """Fulfils ports.Ledger and stages.remains.RemainingLedger over one connection; calls wait for each other."""

    def __init__(self, settings: PostgresSettings) -> None:
        self._database = Database(settings)
        self._turn = asyncio.Lock()
        self._alone: object = None  #: the connection that keeps signers away

    async def enlist(self) -> None:
        """Be seen by `bar_signers` of others from now on, until `close`. Raises DatabaseUnavailable."""
        await self._fetch(effect("postgres", "enlist"), "SELECT oncesign_enlist_v1()")

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

    async def keep_keys(self, keys: Sequence[KeptKey]) -> None:
        """See ports.Ledger."""
        if keys:
            rows = [(k.chain_id, _bytes(k.address), k.sealed, k.start_nonce) for k in keys]
            columns = tuple(map(list, zip(*rows, strict=True)))
            await self._fetch(effect("postgres", "keep_keys"), KEEP, columns)

    async def record_fill(self, fill: Fill, next_nonce: int) -> Fill:
        """See stages.gap.FillLedger."""
        nonces = fill.first_nonce, fill.count
        row = fill.chain_id, _bytes(fill.sender), *nonces, fill.fee_cap, fill.priority_fee, next_nonce
        try:
            [[fee_cap, priority_fee]] = await self._fetch(effect("postgres", "record_fill"), FILL, row)
        except psycopg.Error as error:
            raise FillRefused(_first_line(error)) from error
        return replace(fill, fee_cap=int(fee_cap), priority_fee=int(priority_fee))

    async def retire_key(self, chain_id: int, address: str) -> None:
        """See ports.Ledger."""
        await self._fetch(effect("postgres", "retire_key"), RETIRE, (chain_id, _bytes(address)))

    async def retired_keys(self) -> Collection[tuple[int, str]]:
        """See ports.Ledger."""
        rows = await self._fetch(effect("postgres", "retired_keys"), "SELECT chain_id, address FROM retired_keys")
        return {(chain_id, "0x" + address.hex()) for chain_id, address in rows}

    async def set_apart(self, chain_id: int, address: str, *, apart: bool) -> None:
        """See ports.Ledger."""
        query = SET_APART if apart else UNITE
        await self._fetch(effect("postgres", "set_apart"), query, (chain_id, _bytes(address)))

    async def keys_set_apart(self) -> Collection[tuple[int, str]]:
        """See ports.Ledger."""
        rows = await self._fetch(effect("postgres", "keys_set_apart"), "SELECT chain_id, address FROM keys_set_apart")
        return {(chain_id, "0x" + address.hex()) for chain_id, address in rows}

    async def destroy_key(self, chain_id: int, address: str) -> None:
        """See ports.Ledger."""
        await self._fetch(effect("postgres", "destroy_key"), DESTROY, (chain_id, _bytes(address)))

    async def generation(self) -> int:
        """See ports.Ledger."""
        query = "SELECT coalesce(max(generation), 0) FROM recoveries"
        [[generation]] = await self._fetch(effect("postgres", "generation"), query)
        return int(generation)

    async def begin_generation(self, node: str) -> int:
        """See stages.remains.RemainingLedger."""
        [[generation]] = await self._fetch(effect("postgres", "begin_generation"), BEGIN, (node,))
        return int(generation)

    async def kept_keys(self) -> list[KeptKey]:
        """See stages.remains.RemainingLedger."""
        rows = await self._fetch(effect("postgres", "kept_keys"), KEPT)
        return [KeptKey(chain, "0x" + address.hex(), sealed, int(nonce)) for chain, address, sealed, nonce in rows]

    async def last_rows(self) -> list[LedgerEntry]:
        """See stages.remains.RemainingLedger."""
        return [_entry(row) for row in await self._fetch(effect("postgres", "last_rows"), LAST_ROWS)]

    async def holes(self) -> list[tuple[Stream, int]]:
        """See stages.remains.RemainingLedger."""
        rows = await self._fetch(effect("postgres", "holes"), HOLES)
        return [(Stream(source, shard), seq) for source, shard, seq in rows]

    async def bar_signers(self) -> bool:
        """See stages.remains.RemainingLedger."""
        query = "SELECT oncesign_bar_signers_v1()" if self._alone is None else "SELECT true"
        [[alone]] = await self._fetch(effect("postgres", "bar_signers"), query)
        if alone:
            self._alone = self._database.connection
        return bool(alone)

    async def first_nonces(self, chain_id: int) -> Mapping[str, int]:
        """Of each sender the lowest nonce that it has sworn to sign."""
        query = "SELECT sender, min(first_nonce) FROM signing_ledger WHERE chain_id = %s AND count > 0 GROUP BY sender"
        rows = await self._fetch(effect("postgres", "first_nonces"), query, (chain_id,))
        return {"0x" + sender.hex(): int(nonce) for sender, nonce in rows}

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
            self._require_alone()
            with asked:
                await cursor.execute(query, parameters)
                return await cursor.fetchall()

    def _require_alone(self) -> None:
        if self._alone is not None and self._alone is not self._database.connection:
            raise DatabaseUnavailable("the connection that kept signers away was lost", hint="Run the same again.")


def _row(entry: LedgerEntry) -> tuple[Any, ...]:
    sender = _bytes(entry.sender) or None
    stream = entry.stream
    digest = bytes.fromhex(entry.digest)
    return (
        stream.source, stream.shard, entry.seq, digest, entry.chain_id, sender,
        entry.first_nonce, entry.count, entry.fence, entry.worker,
    )  # fmt: skip


def _bytes(address: str) -> bytes:
    return bytes.fromhex(address.removeprefix("0x"))


def _entry(row: Any) -> LedgerEntry:
    source, shard, seq, digest, chain_id, sender, first_nonce, count, fence, worker = row
    address = "0x" + sender.hex() if sender is not None else ""
    return LedgerEntry(
        Stream(source, shard), seq, digest.hex(), chain_id, address, int(first_nonce), count, fence, worker
    )


def _first_line(error: psycopg.Error) -> str:
    return str(error).strip().splitlines()[0]
