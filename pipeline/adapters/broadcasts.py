"""What was broadcast, in Postgres, beside the ledger and the verifier's tables."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import psycopg

from pipeline.adapters.postgres import Database
from pipeline.effects import Effect, effect
from pipeline.errors import DatabaseUnavailable, NotLeader
from pipeline.ports import Place
from pipeline.settings import PostgresSettings
from pipeline.stages.broadcaster import Fate, NextBatch

CLAIM_S: Final = 15.0
CLAIM_EVERY_S: Final = 0.5
"""The claim of one that died ends when Postgres notices: at once, or 11 s after its machine is gone."""

CLAIM: Final = """
SELECT pg_try_advisory_lock(hashtextextended('oncesign-broadcast', %s)), set_config('tcp_keepalives_idle', '5', false),
       set_config('tcp_keepalives_interval', '2', false), set_config('tcp_keepalives_count', '3', false)
"""
NEXT: Final = """
SELECT w.sender, coalesce(b.next_nonce, (
    SELECT min(s.first_nonce) FROM signing_ledger s WHERE (s.chain_id, s.sender) = (w.chain_id, w.sender)
)) AS nonce
FROM key_watermarks w LEFT JOIN broadcast_accounts b USING (chain_id, sender)
WHERE w.chain_id = %s AND (b.next_nonce IS NULL OR b.next_nonce < w.next_nonce)
"""
VERIFIED: Final = """
SELECT l.sender, l.first_nonce, v.topic, v.partition, v.kafka_offset
FROM ({due}) AS due (sender, nonce)
JOIN signing_ledger l ON (l.chain_id, l.sender, l.first_nonce) = (%s, due.sender, due.nonce)
JOIN verified_batches v USING (source, shard, seq)
WHERE NOT EXISTS (SELECT FROM violations f WHERE (f.source, f.shard, f.seq) = (l.source, l.shard, l.seq))
"""
OLDEST: Final = VERIFIED.format(due=NEXT + " AND NOT w.sender = ANY(%s)") + " ORDER BY l.written_at LIMIT %s"
NAMED: Final = VERIFIED.format(due="SELECT * FROM unnest(%s::bytea[], %s::numeric[])")
UNDECIDED: Final = """
SELECT coalesce(sum(w.next_nonce - coalesce(b.next_nonce, (
    SELECT min(s.first_nonce) FROM signing_ledger s WHERE (s.chain_id, s.sender) = (w.chain_id, w.sender)
))), 0)
FROM key_watermarks w LEFT JOIN broadcast_accounts b USING (chain_id, sender)
WHERE w.chain_id = %s
"""
SAVE: Final = """
INSERT INTO broadcasts AS known (
    chain_id, sender, nonce, hash, source, tx_id, status, sends, detail, block_number, succeeded, gas_used
)
SELECT %s, * FROM unnest(
    %s::bytea[], %s::numeric[], %s::bytea[], %s::text[], %s::bigint[], %s::text[], %s::integer[], %s::text[],
    %s::bigint[], %s::boolean[], %s::numeric[]
)
ON CONFLICT (chain_id, sender, nonce) DO UPDATE SET
    status = EXCLUDED.status, sends = known.sends + EXCLUDED.sends, detail = EXCLUDED.detail,
    block_number = EXCLUDED.block_number, succeeded = EXCLUDED.succeeded, gas_used = EXCLUDED.gas_used,
    decided_at = now()
WHERE known.hash = EXCLUDED.hash AND (known.status <> 'mined' OR EXCLUDED.status = 'mined')
"""
MOVE: Final = """
INSERT INTO broadcast_accounts (chain_id, sender, next_nonce)
SELECT %s, * FROM unnest(%s::bytea[], %s::numeric[])
ON CONFLICT (chain_id, sender) DO UPDATE SET next_nonce = EXCLUDED.next_nonce
"""


FOUND: Final = ("status", "sends", "detail", "block_number", "succeeded", "gas_used", "first_at", "decided_at")
FIND: Final = f"SELECT {', '.join(FOUND)} FROM broadcasts WHERE (source, tx_id) = (%s, %s)"  # noqa: S608 - our own names


class PostgresBroadcasts:
    """Fulfils stages.broadcaster.Broadcasts over one connection. Not for two tasks at once."""

    def __init__(self, settings: PostgresSettings) -> None:
        self._database = Database(settings)
        self._turn = asyncio.Lock()

    async def claim(self, chain_id: int) -> None:
        """See stages.broadcaster.Broadcasts. As long as the connection lasts: two would only send the same twice."""
        deadline_s = time.monotonic() + CLAIM_S
        while True:
            [[mine, *_]] = await self._fetch(effect("postgres", "claim"), CLAIM, (chain_id,))
            if mine:
                return
            if time.monotonic() > deadline_s:
                raise NotLeader(f"chain {chain_id} has a broadcaster already.", hint="End that one first.")
            await asyncio.sleep(CLAIM_EVERY_S)

    async def next_batches(self, chain_id: int, besides: Sequence[str], limit: int) -> Sequence[NextBatch]:
        """See stages.broadcaster.Broadcasts."""
        parameters = chain_id, [_bytes(sender) for sender in besides], chain_id, limit
        return _batches(await self._fetch(effect("postgres", "next_batches"), OLDEST, parameters))

    async def batches_at(self, chain_id: int, nonces: Mapping[str, int]) -> Sequence[NextBatch]:
        """See stages.broadcaster.Broadcasts."""
        parameters = [_bytes(sender) for sender in nonces], list(nonces.values()), chain_id
        return _batches(await self._fetch(effect("postgres", "batches_at"), NAMED, parameters))

    async def undecided(self, chain_id: int) -> int:
        """See stages.broadcaster.Broadcasts."""
        [[count]] = await self._fetch(effect("postgres", "undecided"), UNDECIDED, (chain_id,))
        return int(count)

    async def save(self, chain_id: int, fates: Sequence[Fate], decided: Mapping[str, int]) -> None:
        """See stages.broadcaster.Broadcasts."""
        if not fates and not decided:
            return
        async with self._turn, self._database.cursor() as cursor, cursor.connection.transaction():
            with effect("postgres", "save_broadcasts"):
                if fates:
                    await cursor.execute(SAVE, (chain_id, *map(list, zip(*map(_row, fates), strict=True))))
                if decided:
                    senders = [_bytes(sender) for sender in decided]
                    await cursor.execute(MOVE, (chain_id, senders, list(decided.values())))

    async def find(self, source: str, tx_id: int) -> Mapping[str, Any] | None:
        """What became of a source row, with its column names; None before it was sent."""
        rows = await self._fetch(effect("postgres", "find_broadcast"), FIND, (source, tx_id))
        return dict(zip(FOUND, rows[0], strict=True)) if rows else None

    async def close(self) -> None:
        """See stages.broadcaster.Broadcasts."""
        await self._database.close()

    async def _fetch(self, at: Effect, query: str, parameters: Any) -> list[Any]:
        try:
            async with self._turn, self._database.cursor() as cursor:
                with at:
                    await cursor.execute(query, parameters)
                    return await cursor.fetchall()
        except psycopg.Error as error:  # what Postgres refuses for its content: none of these has any
            raise DatabaseUnavailable(str(error).splitlines()[0]) from error


def _batches(rows: Sequence[Any]) -> list[NextBatch]:
    return [
        NextBatch("0x" + sender.hex(), int(nonce), Place(topic, partition, offset))
        for sender, nonce, topic, partition, offset in rows
    ]


def _row(fate: Fate) -> tuple[Any, ...]:
    transaction, receipt = fate.transaction, fate.receipt
    status = "mined" if receipt else "failed" if fate.reason else "sent"
    mined = (receipt.block, receipt.succeeded, receipt.gas_used) if receipt else (None, None, None)
    return (
        _bytes(fate.sender), transaction.nonce, transaction.hash, transaction.source, transaction.tx_id,
        status, fate.takes, fate.reason, *mined,
    )  # fmt: skip


def _bytes(sender: str) -> bytes:
    return bytes.fromhex(sender.removeprefix("0x"))
