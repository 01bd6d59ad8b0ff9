"""One partition of a Kafka topic in memory: records, markers of transactions, and what read_committed shows of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from pipeline.ports import Message, Place

OUTSIDER: Final = -1
"""The producer id of a record that is in no transaction."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What one offset holds: a record, or the marker that ends a transaction (KIP-98)."""

    offset: int
    producer: int
    message: Message | None  #: None = a marker


@dataclass(slots=True)
class PartitionLog:
    """Fulfils what KIP-98 says of a log: offsets for markers too, last stable offset, aborted records unseen."""

    topic: str
    number: int
    entries: list[Entry] = field(default_factory=list)
    start: int = 0
    end: int = 0  #: the high watermark; there is one replica
    open: dict[int, int] = field(default_factory=dict)  #: producer → first offset of its open transaction
    seen: set[int] = field(default_factory=set)  #: offsets whose transaction was committed

    @property
    def last_stable(self) -> int:
        """Where the earliest open transaction begins, else the end."""
        return min(self.open.values(), default=self.end)

    def append(self, key: bytes, value: bytes, producer: int = OUTSIDER, traceparent: str = "") -> Place:
        """One record."""
        place = Place(self.topic, self.number, self.end)
        if producer == OUTSIDER:
            self.seen.add(self.end)
        else:
            self.open.setdefault(producer, self.end)
        self._add(producer, Message(place, key, value, traceparent=traceparent))
        return place

    def mark(self, producer: int, *, commit: bool) -> None:
        """End a producer's transaction on this partition; the marker takes an offset, even if there is no record."""
        first = self.open.pop(producer, self.end)
        if commit:
            self.seen |= {e.offset for e in self.entries if e.producer == producer and e.message and e.offset >= first}
        self._add(producer, None)

    def trim(self, before: int) -> None:
        """As retention or DeleteRecords does: everything below an offset is gone."""
        self.start = min(max(self.start, before), self.end)
        self.entries = [entry for entry in self.entries if entry.offset >= self.start]

    def truncate(self, end: int) -> None:
        """As an unclean leader election does: everything from an offset on is gone, and its offsets are used again."""
        self.end = max(self.start, min(self.end, end))
        self.entries = [entry for entry in self.entries if entry.offset < self.end]
        self.open = {producer: first for producer, first in self.open.items() if first < self.end}
        self.seen = {offset for offset in self.seen if offset < self.end}

    def read(self, position: int, most: int) -> tuple[list[Message], int]:
        """Committed records from a position on, `most` of them at the most, and the position after what was read."""
        messages: list[Message] = []
        stable = self.last_stable
        for entry in self.entries[max(0, position - self.start) : stable - self.start]:  # offsets have no gap
            if len(messages) == most:
                break
            if entry.message is not None and entry.offset in self.seen:
                messages.append(entry.message)
        if len(messages) == most:
            return messages, messages[-1].place.offset + 1
        return messages, max(position, stable)

    def _add(self, producer: int, message: Message | None) -> None:
        self.entries.append(Entry(self.end, producer, message))
        self.end += 1
