"""How many batches wait in Kafka. Kafka is asked only while some do, or when there are new ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pipeline import telemetry as t
from pipeline.stream import Stream


class Lag:
    """Batches that readers have published and no consumer has committed, by stream."""

    def __init__(self) -> None:
        self._seqs: dict[str, int] = {}
        self._behind: dict[str, int] = {}

    def is_due(self, seqs: Mapping[str, int]) -> bool:
        """Whether it can have changed; `seqs` are the last batches that the readers published."""
        return seqs != self._seqs or any(self._behind.values())

    def take(self, seqs: Mapping[str, int], committed: Mapping[str, int]) -> None:
        """What Kafka says is committed of each stream that has an offset."""
        self._seqs = dict(seqs)
        self._behind = {stream: max(0, seqs.get(stream, 0) - seq) for stream, seq in committed.items()}

    @property
    def total(self) -> int:
        """Of all streams."""
        return sum(self._behind.values())

    def tell(self, telemetry: t.Telemetry, sources: Collection[str], halted: Collection[str]) -> None:
        """Apart for streams that are halted: what they have is nobody's delay."""
        for source in sources:
            mine = {stream: n for stream, n in self._behind.items() if Stream.parse(stream).source == source}
            waits = sum(n for stream, n in mine.items() if stream in halted)
            telemetry.set(t.LAG, waits, source=source, state="halted")
            telemetry.set(t.LAG, sum(mine.values()) - waits, source=source, state="going")
