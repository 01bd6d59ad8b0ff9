"""The signing ledger in memory, by the rules of sql/migrations/0007_kept_keys.sql and 0009."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline.assignment.archive import KeptKey
from pipeline.assignment.view import GENERATION_SHIFT
from pipeline.errors import DatabaseUnavailable, FillRefused, LedgerRefused
from pipeline.fill import Fill
from pipeline.ports import LedgerEntry
from pipeline.stream import Stream
from pipeline.testing.database import Database


@dataclass(slots=True)
class Tables:
    """What the database holds, whoever is connected to it."""

    rows: dict[tuple[Stream, int], LedgerEntry] = field(default_factory=dict)
    next_nonces: dict[tuple[int, str], int] = field(default_factory=dict)
    kept: list[KeptKey] = field(default_factory=list)
    retired: set[tuple[int, str]] = field(default_factory=set)
    apart: set[tuple[int, str]] = field(default_factory=set)
    fills: list[Fill] = field(default_factory=list)
    open: set[int] = field(default_factory=set)  #: connections
    enlisted: set[int] = field(default_factory=set)  #: connections that may sign
    alone: int = 0  #: the connection that keeps all others from it; 0 = none
    connections: int = 0
    generation: int = 0


class TwinLedger:
    """Fulfils ports.Ledger and stages.remains.RemainingLedger over a connection of its own."""

    def __init__(self, database: Database | None = None, tables: Tables | None = None) -> None:
        self.database = database or Database()
        self.tables = tables or Tables()
        self._connect()

    def client(self) -> TwinLedger:
        """Another connection to the same tables."""
        return TwinLedger(self.database, self.tables)

    def drop(self) -> None:
        """The connection breaks, or its process dies; the next statement makes another.

        A statement of it that is still under way never arrives: while it could, Postgres holds the connection open.
        """
        self.tables.open.discard(self._connection)
        self.tables.enlisted.discard(self._connection)
        if self.tables.alone == self._connection:
            self.tables.alone = 0
        self._connect()

    def _connect(self) -> None:
        self.tables.connections += 1
        self._connection = self.tables.connections
        self.tables.open.add(self._connection)

    @property
    def rows(self) -> dict[tuple[Stream, int], LedgerEntry]:
        """By batch."""
        return self.tables.rows

    @property
    def next_nonces(self) -> dict[tuple[int, str], int]:
        """The watermarks."""
        return self.tables.next_nonces

    async def enlist(self) -> None:
        """See adapters.ledger.PostgresLedger."""
        me = self._connection
        await self.database.ask("enlist", lambda: self._enlist(me))

    def _enlist(self, me: int) -> None:
        self._require_open(me)
        if self.tables.alone not in (0, me):
            raise DatabaseUnavailable("a recovery is under way: nothing may be signed")
        self.tables.enlisted.add(me)

    def _require_open(self, me: int) -> None:
        if me not in self.tables.open:
            raise DatabaseUnavailable("the connection is gone")

    async def bar_signers(self) -> bool:
        """See stages.remains.RemainingLedger."""
        me = self._connection
        return await self.database.ask("bar_signers", lambda: self._bar(me))

    def _bar(self, me: int) -> bool:
        self._require_open(me)
        tables = self.tables
        if tables.alone not in (0, me) or tables.enlisted - {me}:
            return False
        tables.alone = me
        return True

    async def record(self, entry: LedgerEntry) -> bool:
        """See ports.Ledger."""
        me = self._connection
        return await self.database.ask("record", lambda: self._record(me, entry))

    def _record(self, me: int, entry: LedgerEntry) -> bool:
        self._enlist(me)
        known = self.rows.get((entry.stream, entry.seq))
        if known is not None and replace(known, worker=entry.worker) == entry:
            return False
        if entry.fence >> GENERATION_SHIFT < self.tables.generation:
            raise DatabaseUnavailable("the assignment is older than the last recovery")
        if known is not None:
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

    async def entries(self, stream: Stream, after: int, limit: int) -> list[LedgerEntry]:
        """See stages.remains.RemainingLedger."""
        return await self.database.ask("entries", lambda: self._entries(stream, after)[:limit])

    def _entries(self, stream: Stream, after: int) -> list[LedgerEntry]:
        found = [entry for (s, seq), entry in self.rows.items() if s == stream and seq > after]
        return sorted(found, key=lambda entry: entry.seq)

    async def heads(self) -> Mapping[Stream, int]:
        """See ports.Ledger."""
        return await self.database.ask("heads", self._heads)

    async def holes(self) -> list[tuple[Stream, int]]:
        """See stages.remains.RemainingLedger."""
        return await self.database.ask("holes", self._holes)

    def _holes(self) -> list[tuple[Stream, int]]:
        heads = sorted(self._heads().items())
        return [(stream, seq) for stream, head in heads for seq in range(1, head) if (stream, seq) not in self.rows]

    async def last_rows(self) -> list[LedgerEntry]:
        """See stages.remains.RemainingLedger."""
        return await self.database.ask("last_rows", self._last_rows)

    def _last_rows(self) -> list[LedgerEntry]:
        last: dict[tuple[int, str], LedgerEntry] = {}
        for entry in self.rows.values():
            sender = entry.chain_id, entry.sender
            if entry.sender and (sender not in last or last[sender].first_nonce < entry.first_nonce):
                last[sender] = entry
        return list(last.values())

    async def watermarks(self) -> Mapping[tuple[int, str], int]:
        """See ports.Ledger."""
        return await self.database.ask("watermarks", lambda: dict(self.next_nonces))

    async def keep_keys(self, keys: Sequence[KeptKey]) -> None:
        """See ports.Ledger."""
        await self.database.ask("keep_keys", lambda: self._keep(keys))

    def _keep(self, keys: Sequence[KeptKey]) -> None:
        known = {(key.chain_id, key.address, key.sealed) for key in self.tables.kept}
        self.tables.kept += [key for key in keys if (key.chain_id, key.address, key.sealed) not in known]

    async def record_fill(self, fill: Fill, next_nonce: int) -> Fill:
        """See stages.gap.FillLedger."""
        me = self._connection
        return await self.database.ask("record_fill", lambda: self._record_fill(me, fill, next_nonce))

    def _record_fill(self, me: int, fill: Fill, next_nonce: int) -> Fill:
        self._enlist(me)
        key = fill.chain_id, fill.sender
        given = [row.first_nonce for row in self.rows.values() if (row.chain_id, row.sender) == key and row.count]
        fills = [kept for kept in self.tables.fills if (kept.chain_id, kept.sender) == key]
        for kept in fills:
            if (kept.first_nonce, kept.count) == (fill.first_nonce, fill.count):
                return kept
        if fill.end > (lowest := min(given, default=next_nonce)):
            raise FillRefused(f"the pool gives out nonces of the sender from {lowest} on")
        if any(kept.first_nonce < fill.end and fill.first_nonce < kept.end for kept in fills):
            raise FillRefused("some of the nonces are filled already")
        self.next_nonces.setdefault(key, next_nonce)
        self.tables.fills.append(fill)
        return fill

    async def retire_key(self, chain_id: int, address: str) -> None:
        """See ports.Ledger."""
        await self.database.ask("retire_key", lambda: self.tables.retired.add((chain_id, address)))

    async def retired_keys(self) -> Collection[tuple[int, str]]:
        """See ports.Ledger."""
        return await self.database.ask("retired_keys", lambda: frozenset(self.tables.retired))

    async def set_apart(self, chain_id: int, address: str, *, apart: bool) -> None:
        """See ports.Ledger."""
        change = self.tables.apart.add if apart else self.tables.apart.discard
        await self.database.ask("set_apart", lambda: change((chain_id, address)))

    async def keys_set_apart(self) -> Collection[tuple[int, str]]:
        """See ports.Ledger."""
        return await self.database.ask("keys_set_apart", lambda: frozenset(self.tables.apart))

    async def destroy_key(self, chain_id: int, address: str) -> None:
        """See ports.Ledger."""
        await self.database.ask("destroy_key", lambda: self._destroy(chain_id, address))

    def _destroy(self, chain_id: int, address: str) -> None:
        gone = {(chain_id, address)} & self.tables.retired
        self.tables.kept = [key for key in self.tables.kept if (key.chain_id, key.address) not in gone]

    async def generation(self) -> int:
        """See ports.Ledger."""
        return await self.database.ask("generation", lambda: self.tables.generation)

    async def begin_generation(self, node: str) -> int:  # noqa: ARG002 - nobody reads it here
        """See stages.remains.RemainingLedger."""
        me = self._connection
        return await self.database.ask("begin_generation", lambda: self._begin(me))

    def _begin(self, me: int) -> int:
        self._require_open(me)
        self.tables.generation += 1
        return self.tables.generation

    async def kept_keys(self) -> list[KeptKey]:
        """See stages.remains.RemainingLedger."""
        return await self.database.ask("kept_keys", self._kept)

    def _kept(self) -> list[KeptKey]:
        return list({(key.chain_id, key.address): key for key in self.tables.kept}.values())

    async def signed(self) -> int:
        """See adapters.ledger.PostgresLedger."""
        return await self.database.ask("signed", lambda: sum(entry.count for entry in self.rows.values()))

    async def close(self) -> None:
        """The connection ends."""
        self.drop()

    def _heads(self) -> dict[Stream, int]:
        heads: dict[Stream, int] = {}
        for stream, seq in self.rows:
            heads[stream] = max(seq, heads.get(stream, 0))
        return heads
