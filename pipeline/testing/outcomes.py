"""The verifier's tables in memory, by the rules of adapters.outcomes and sql/reconcile.sql."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.ethereum.reasons import Reason
from pipeline.ports import LedgerEntry, Outcome
from pipeline.settings import SourceSettings
from pipeline.stages.inspection import Finding, Sighting
from pipeline.stages.violation import Violation, ViolationKind
from pipeline.stream import START, Cursor, Stream
from pipeline.testing.database import Database
from pipeline.testing.ledger import TwinLedger
from pipeline.testing.source import TwinSource


@dataclass(slots=True)
class TwinOutcomes:
    """Fulfils stages.verifier.Outcomes. `sources` and `ledger` are what the same database would hold beside it."""

    sources: Mapping[str, TwinSource]
    ledger: TwinLedger
    database: Database = field(default_factory=Database)
    outcomes: dict[tuple[str, int], Outcome] = field(default_factory=dict)
    nonces: dict[tuple[int, str, int], Outcome] = field(default_factory=dict)
    sightings: dict[tuple[Stream, int], Sighting] = field(default_factory=dict)
    next_offsets: dict[tuple[str, int], int] = field(default_factory=dict)
    violations: dict[Violation, None] = field(default_factory=dict)

    async def positions(self) -> Mapping[tuple[str, int], int]:
        """See stages.verifier.Outcomes."""
        return await self.database.ask("positions", lambda: dict(self.next_offsets))

    async def sighted(self, batches: Sequence[tuple[Stream, int]]) -> frozenset[tuple[Stream, int]]:
        """See stages.remains.Sightings."""
        return await self.database.ask("sighted", lambda: frozenset(batches) & self.sightings.keys())

    async def save(self, finding: Finding, topic: str, partition: int, next_offset: int) -> Sequence[Violation]:
        """See stages.verifier.Outcomes."""
        return await self.database.ask("save", lambda: self._save(finding, topic, partition, next_offset))

    def _save(self, finding: Finding, topic: str, partition: int, next_offset: int) -> Sequence[Violation]:
        found = [twice for outcome in finding.outcomes if (twice := self._settle(outcome))]
        found += [twice for seen in finding.sightings if (twice := self._sight(seen))]
        self.violations |= dict.fromkeys([*finding.violations, *found])
        self.next_offsets[topic, partition] = next_offset
        return found

    async def reconcile(
        self, source: SourceSettings, limit: int, heads: Mapping[Stream, int] | None = None
    ) -> Sequence[Violation]:
        """See stages.verifier.Outcomes."""
        return await self.database.ask("reconcile", lambda: self._reconcile(source, limit, heads))

    def _reconcile(self, source: SourceSettings, limit: int, heads: Mapping[Stream, int] | None) -> Sequence[Violation]:
        due = {at: entry for at, entry in self.ledger.rows.items() if heads is None or entry.seq <= heads.get(at[0], 0)}
        kinds: tuple[Iterator[Violation], ...] = (
            self._rows_without_outcome(source.name, running=heads is not None),
            self._gaps(source.name, due),
            self._unpublished(source.name, due),
            self._unfilled(source.name),
            (v for v in self.violations if v.stream is None or v.stream.source == source.name),
        )
        return [violation for kind in kinds for violation in list(kind)[:limit]]

    async def counts(self) -> Mapping[str, int]:
        """See stages.verifier.Outcomes."""
        return await self.database.ask("counts", self._counts)

    def _counts(self) -> Mapping[str, int]:
        by_status = Counter(outcome.status for outcome in self.outcomes.values())
        return {"signed": 0, "rejected": 0} | by_status | {"violations": len(self.violations)}

    async def close(self) -> None:
        """Nothing is held open."""

    def _settle(self, outcome: Outcome) -> Violation | None:
        known = self.outcomes.get((outcome.source, outcome.tx_id))
        if known is not None:
            if (known.place, known.nonce) == (outcome.place, outcome.nonce):
                return None
            detail = "the row has an outcome already"
            return Violation(ViolationKind.TRANSACTION_TWICE, detail, outcome.stream, outcome.seq, outcome.tx_id)
        if outcome.nonce is not None:
            if (outcome.chain_id, outcome.sender, outcome.nonce) in self.nonces:
                detail = f"nonce {outcome.nonce} of {outcome.sender} was given to another row"
                return Violation(ViolationKind.NONCE_TWICE, detail, outcome.stream, outcome.seq, outcome.tx_id)
            self.nonces[outcome.chain_id, outcome.sender, outcome.nonce] = outcome
        self.outcomes[outcome.source, outcome.tx_id] = outcome
        return None

    def _sight(self, seen: Sighting) -> Violation | None:
        header = seen.header
        first = self.sightings.setdefault((header.stream, header.seq), seen)
        if first.place == seen.place:
            return None
        detail = f"published at {first.place} and again at {seen.place}"
        return Violation(ViolationKind.BATCH_TWICE, detail, header.stream, header.seq)

    def _rows_without_outcome(self, source: str, *, running: bool) -> Iterator[Violation]:
        table = self.sources[source]
        latest: dict[int, Cursor] = {}
        for tx_id, row in table.rows.items():
            if (source, tx_id) in self.outcomes:
                shard = tx_id % table.shards
                latest[shard] = max(latest.get(shard, START), row.cursor)
        for tx_id, row in sorted(table.rows.items()):
            overtaken = row.cursor < latest.get(tx_id % table.shards, START)
            if (source, tx_id) not in self.outcomes and (overtaken or not running):
                detail = "committed, but neither signed nor rejected"
                stream = Stream(source, tx_id % table.shards)
                yield Violation(ViolationKind.ROW_WITHOUT_OUTCOME, detail, stream, None, tx_id)

    def _gaps(self, source: str, due: Mapping[tuple[Stream, int], LedgerEntry]) -> Iterator[Violation]:
        held: dict[tuple[int, str], list[tuple[int, int, int]]] = {}
        ours: set[tuple[int, str]] = set()
        for outcome in self.nonces.values():
            nonce = outcome.nonce or 0
            held.setdefault((outcome.chain_id, outcome.sender), []).append((nonce, nonce, 1))
        for entry in due.values():
            if entry.count:
                bounds = entry.first_nonce, entry.first_nonce + entry.count - 1, 0
                held.setdefault((entry.chain_id, entry.sender), []).append(bounds)
                ours |= {(entry.chain_id, entry.sender)} if entry.stream.source == source else set()
        fillers: Counter[tuple[int, str]] = Counter()
        for seen in self.sightings.values():
            fillers[seen.header.chain_id, seen.header.sender] += seen.fillers
        ours |= {(outcome.chain_id, outcome.sender) for outcome in self.nonces.values() if outcome.source == source}
        for chain_id, sender in sorted(ours):
            lows, highs, rows = zip(*held[chain_id, sender], strict=True)
            low, high, count = min(lows), max(highs), sum(rows) + fillers[chain_id, sender]
            if high - low + 1 != count:
                detail = f"{sender} on chain {chain_id}: nonces {low} to {high} hold {count} transactions"
                yield Violation(ViolationKind.NONCE_GAP, detail)

    def _unpublished(self, source: str, due: Mapping[tuple[Stream, int], LedgerEntry]) -> Iterator[Violation]:
        for (stream, seq), entry in sorted(due.items()):
            if stream.source == source and (stream, seq) not in self.sightings:
                detail = f"worker {entry.worker} recorded it"
                yield Violation(ViolationKind.BATCH_NOT_PUBLISHED, detail, stream, seq)

    def _unfilled(self, source: str) -> Iterator[Violation]:
        failed = Counter(
            (outcome.stream, outcome.seq)
            for outcome in self.outcomes.values()
            if outcome.source == source and outcome.reason == Reason.SIGNING_FAILED.code
        )
        fillers = {at: seen.fillers for at, seen in self.sightings.items() if at[0].source == source and seen.fillers}
        for stream, seq in {*failed, *fillers}:
            rows, nonces = failed[stream, seq], fillers.get((stream, seq), 0) if stream and seq else 0
            if rows != nonces:
                detail = f"{rows} rows failed to sign, {nonces} nonces were filled"
                yield Violation(ViolationKind.FILLER_MISMATCH, detail, stream, seq)
