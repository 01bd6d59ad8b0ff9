"""What was broadcast, in memory, by the rules of adapters.broadcasts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline.ports import LedgerEntry
from pipeline.stages.broadcaster import Fate, NextBatch
from pipeline.testing.database import Database
from pipeline.testing.ledger import TwinLedger
from pipeline.testing.outcomes import TwinOutcomes


@dataclass(slots=True)
class TwinBroadcasts:
    """Fulfils stages.broadcaster.Broadcasts beside a ledger and the verifier's tables."""

    ledger: TwinLedger
    outcomes: TwinOutcomes
    fates: dict[tuple[int, str, int], Fate] = field(default_factory=dict)
    next_nonces: dict[tuple[int, str], int] = field(default_factory=dict)

    @property
    def database(self) -> Database:
        """The one that holds the verifier's tables, too."""
        return self.outcomes.database

    async def claim(self, chain_id: int) -> None:
        """There is one broadcaster in a test."""

    async def next_batches(self, chain_id: int, besides: Sequence[str], limit: int) -> Sequence[NextBatch]:
        """See stages.broadcaster.Broadcasts."""
        return await self.database.ask("next_batches", lambda: self._next(chain_id, besides)[:limit])

    async def batches_at(self, chain_id: int, nonces: Mapping[str, int]) -> Sequence[NextBatch]:
        """See stages.broadcaster.Broadcasts."""
        return await self.database.ask("batches_at", lambda: list(self._verified(chain_id, nonces)))

    async def undecided(self, chain_id: int) -> int:
        """See stages.broadcaster.Broadcasts."""
        return await self.database.ask("undecided", lambda: self._undecided(chain_id))

    async def save(self, chain_id: int, fates: Sequence[Fate], decided: Mapping[str, int]) -> None:
        """See stages.broadcaster.Broadcasts."""
        if fates or decided:
            await self.database.ask("save_broadcasts", lambda: self._save(chain_id, fates, decided))

    async def close(self) -> None:
        """Nothing is held open."""

    def _next(self, chain_id: int, besides: Sequence[str]) -> list[NextBatch]:
        due = {sender: nonce for sender, nonce in self._due(chain_id).items() if sender not in besides}
        return list(self._verified(chain_id, due))

    def _due(self, chain_id: int) -> dict[str, int]:
        """Senders with undecided nonces, and the first of them."""
        first: dict[str, int] = {}
        for entry in self.ledger.rows.values():
            if entry.chain_id == chain_id and entry.count:
                first[entry.sender] = min(first.get(entry.sender, entry.first_nonce), entry.first_nonce)
        due = {sender: self.next_nonces.get((chain_id, sender), nonce) for sender, nonce in first.items()}
        return {s: nonce for s, nonce in due.items() if nonce < self.ledger.next_nonces[chain_id, s]}

    def _verified(self, chain_id: int, nonces: Mapping[str, int]) -> Iterator[NextBatch]:
        broken = {(violation.stream, violation.seq) for violation in self.outcomes.violations}
        for (stream, seq), entry in self.ledger.rows.items():
            seen = self.outcomes.sightings.get((stream, seq))
            if seen and self._begins(entry, chain_id, nonces) and (stream, seq) not in broken:
                yield NextBatch(entry.sender, entry.first_nonce, seen.place)

    @staticmethod
    def _begins(entry: LedgerEntry, chain_id: int, nonces: Mapping[str, int]) -> bool:
        return entry.count > 0 and entry.chain_id == chain_id and nonces.get(entry.sender) == entry.first_nonce

    def _undecided(self, chain_id: int) -> int:
        return sum(self.ledger.next_nonces[chain_id, s] - nonce for s, nonce in self._due(chain_id).items())

    def _save(self, chain_id: int, fates: Sequence[Fate], decided: Mapping[str, int]) -> None:
        for fate in fates:
            at = chain_id, fate.sender, fate.transaction.nonce
            known = self.fates.get(at)
            if known is not None and known.receipt is not None and fate.receipt is None:
                continue
            self.fates[at] = replace(fate, takes=fate.takes + (known.takes if known else 0))
        self.next_nonces |= {(chain_id, sender): nonce for sender, nonce in decided.items()}
