"""The signing ledger in memory, by the rules of sql/migrations/0002_ledger_record.sql."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pipeline.errors import LedgerRefused
from pipeline.ports import LedgerEntry
from pipeline.stream import Stream
from pipeline.testing.database import Database


class TwinLedger:
    """Fulfils ports.Ledger."""

    def __init__(self, database: Database | None = None) -> None:
        self.database = database or Database()
        self.rows: dict[tuple[Stream, int], LedgerEntry] = {}
        self.next_nonces: dict[tuple[int, str], int] = {}

    async def record(self, entry: LedgerEntry) -> bool:
        """See ports.Ledger."""
        return await self.database.ask("record", lambda: self._record(entry))

    def _record(self, entry: LedgerEntry) -> bool:
        known = self.rows.get((entry.stream, entry.seq))
        if known is not None:
            if replace(known, worker=entry.worker) == entry:
                return False
            raise LedgerRefused(
                str(entry.stream), entry.seq, "the batch was recorded with another digest, sender, nonce or fence"
            )
        if entry.sender:
            self._advance(entry)
        self.rows[entry.stream, entry.seq] = entry
        return True

    def _advance(self, entry: LedgerEntry) -> None:
        sender = entry.chain_id, entry.sender
        watermark = self.next_nonces.get(sender, entry.first_nonce)
        if watermark != entry.first_nonce:
            reason = f"the sender has signed up to nonce {watermark - 1}, the batch would start at {entry.first_nonce}"
            raise LedgerRefused(str(entry.stream), entry.seq, reason)
        self.next_nonces[sender] = entry.first_nonce + entry.count

    async def entry(self, stream: Stream, seq: int) -> LedgerEntry | None:
        """See ports.Ledger."""
        return await self.database.ask("entry", lambda: self.rows.get((stream, seq)))

    async def heads(self) -> Mapping[Stream, int]:
        """See ports.Ledger."""
        return await self.database.ask("heads", self._heads)

    async def watermarks(self) -> Mapping[tuple[int, str], int]:
        """See ports.Ledger."""
        return await self.database.ask("watermarks", lambda: dict(self.next_nonces))

    async def signed(self) -> int:
        """See adapters.ledger.PostgresLedger."""
        return await self.database.ask("signed", lambda: sum(entry.count for entry in self.rows.values()))

    async def close(self) -> None:
        """Nothing is held open."""

    def _heads(self) -> dict[Stream, int]:
        heads: dict[Stream, int] = {}
        for stream, seq in self.rows:
            heads[stream] = max(seq, heads.get(stream, 0))
        return heads
