"""How much a source may spend in a period: decided where a batch gets its key, in the same transaction.

What was spent stands in the stream records of the source, with the start of the period that it counts for. A batch that
would exceed the budget gets no key and waits for the next period, as one waits for a key; nothing is ever given back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pipeline.assignment.records import StreamRecord


@dataclass(frozen=True, slots=True)
class Budget:
    """Wei that the signable rows of a source may cost together in each period: value + gas limit · fee cap."""

    wei: int
    period_ms: int

    def since(self, now_ms: int) -> int:
        """When the period began; periods are counted from the beginning of 1970."""
        return now_ms - now_ms % self.period_ms

    def spent(self, records: Iterable[StreamRecord], now_ms: int) -> int:
        """By all of these in the period of now."""
        return sum(spent_since(record, self.since(now_ms)) for record in records)

    def charged(self, record: StreamRecord, spend: int, now_ms: int) -> StreamRecord:
        """A stream that has spent so much more."""
        since = self.since(now_ms)
        return replace(record, spending_since_ms=since, spent_wei=str(spent_since(record, since) + spend))


def spent_since(record: StreamRecord, since_ms: int) -> int:
    """By a stream in the period that began then."""
    return int(record.spent_wei) if record.spending_since_ms >= since_ms else 0
