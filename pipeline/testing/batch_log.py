"""Topics in memory, for whoever reads them outside any group."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field

from pipeline.errors import BusUnavailable
from pipeline.ports import Message, Place, Progress


@dataclass(slots=True)
class TwinPartition:
    """Committed records by offset; offsets between them are markers of transactions, or were deleted."""

    records: dict[int, Message] = field(default_factory=dict)
    start: int = 0
    end: int = 0


@dataclass(slots=True)
class TwinBatchLog:
    """Fulfils ports.BatchLog."""

    partitions: int = 2
    down: bool = False
    topics: dict[str, list[TwinPartition]] = field(default_factory=dict)
    committed: dict[str, dict[int, Progress]] = field(default_factory=dict)

    def topic(self, name: str) -> list[TwinPartition]:
        """The topic's partitions, made when first named."""
        return self.topics.setdefault(name, [TwinPartition() for _ in range(self.partitions)])

    def append(self, name: str, partition: int, key: bytes, value: bytes) -> Place:
        """One committed record, followed by the marker of its transaction."""
        log = self.topic(name)[partition]
        place = Place(name, partition, log.end)
        log.records[log.end] = Message(place, key, value)
        log.end += 2
        return place

    def forget(self, name: str, partition: int, before: int) -> None:
        """As `retention` does: records below an offset are gone."""
        log = self.topic(name)[partition]
        log.start = before
        log.records = {offset: message for offset, message in log.records.items() if offset >= before}

    async def ends(self, topic: str, *, committed: bool = True) -> tuple[int, ...]:  # noqa: ARG002 - the port's
        """See ports.BatchLog; no transaction is ever open here."""
        await self._connect()
        return tuple(log.end for log in self.topic(topic))

    async def starts(self, topic: str) -> tuple[int, ...]:
        """See ports.BatchLog."""
        await self._connect()
        return tuple(log.start for log in self.topic(topic))

    async def progress(self, topic: str) -> Mapping[int, Progress]:
        """See ports.BatchLog."""
        await self._connect()
        return dict(self.committed.get(topic, {}))

    async def scan(self, topic: str, partition: int, start: int, end: int) -> AsyncGenerator[Message, None]:
        """See ports.BatchLog."""
        await self._connect()
        log = self.topic(topic)[partition]
        if start < log.start:
            raise BusUnavailable(f"offset {start} of {topic}[{partition}] is out of range")
        for offset in sorted(log.records):
            if start <= offset < end:
                yield log.records[offset]

    async def close(self) -> None:
        """Nothing is held open."""

    async def _connect(self) -> None:
        await asyncio.sleep(0)
        if self.down:
            raise BusUnavailable("connection refused")
