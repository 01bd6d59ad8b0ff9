"""Signed records asked for by their places, in the order of these: each partition is read once, from one end on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Protocol

from pipeline.errors import BusUnavailable
from pipeline.ethereum.signed import SignedRecord
from pipeline.ports import Message, Place


class Log(Protocol):
    """What this needs of ports.BatchLog."""

    async def starts(self, topic: str) -> tuple[int, ...]:
        """See ports.BatchLog."""
        ...

    async def ends(self, topic: str) -> tuple[int, ...]:
        """See ports.BatchLog."""
        ...

    def scan(self, topic: str, partition: int, start: int, end: int) -> AsyncGenerator[Message, None]:
        """See ports.BatchLog."""
        ...


class SignedRecords:
    """A seek costs a tenth of a second, so a partition is not left before its last place was asked for."""

    def __init__(self, log: Log, names: Callable[[], Awaitable[Sequence[str]]]) -> None:
        """`names` gives the topics that there are."""
        self._log = log
        self._names = names
        self._topics: frozenset[str] | None = None
        self._bounds: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self._reading: tuple[str, int] | None = None
        self._scan: AsyncGenerator[Message, None] | None = None
        self._ahead: Message | None = None  #: the last one read
        self._found: tuple[Place, SignedRecord] | None = None

    async def at(self, place: Place) -> SignedRecord | None:
        """The record, None when Kafka has it no more. Raises BusUnavailable, MalformedBatch.

        A place comes after those that were asked for before it, or is the last one again.
        """
        if self._found is None or self._found[0] != place:
            message = await self._message(place)
            if message is None:
                return None
            self._found = place, SignedRecord.decode(message.value)
        return self._found[1]

    async def close(self) -> None:
        """Leave the partition."""
        scan, self._scan = self._scan, None
        if scan is not None:
            await scan.aclose()

    async def _message(self, place: Place) -> Message | None:
        start, end = await self._kept(place)
        if not start <= place.offset < end:
            return None
        try:
            await self._forward(place, end)
        except BusUnavailable:
            # What is read first is the oldest, and Kafka may delete it at any moment.
            self._bounds.pop(place.topic)
            self._reading = None
            if place.offset < (await self._kept(place))[0]:
                return None
            raise
        return self._ahead if self._ahead is not None and self._ahead.place == place else None

    async def _forward(self, place: Place, end: int) -> None:
        """Read on up to the place, or past it where there is no record."""
        if self._scan is None or self._reading != (place.topic, place.partition):
            await self.close()
            self._scan = self._log.scan(place.topic, place.partition, place.offset, end)
            self._reading, self._ahead = (place.topic, place.partition), None
        while self._ahead is None or self._ahead.place.offset < place.offset:
            self._ahead = await anext(self._scan, None)
            if self._ahead is None:
                return

    async def _kept(self, place: Place) -> tuple[int, int]:
        """The bounds of what a partition holds; (0, 0) for one that is not there."""
        if self._topics is None:
            self._topics = frozenset(await self._names())
        if place.topic not in self._topics:
            return 0, 0
        if place.topic not in self._bounds:
            self._bounds[place.topic] = await self._log.starts(place.topic), await self._log.ends(place.topic)
        starts, ends = self._bounds[place.topic]
        return (starts[place.partition], ends[place.partition]) if place.partition < len(ends) else (0, 0)
