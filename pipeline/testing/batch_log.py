"""Topics as whoever reads them outside any group sees them, over the in-memory broker."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Final

from pipeline.errors import BusUnavailable
from pipeline.ports import Message, Progress
from pipeline.testing import offsets
from pipeline.testing.broker import Broker
from pipeline.testing.network import Request
from pipeline.testing.refusal import Refused

FETCH_MESSAGES_MAX: Final = 64
POLL_S: Final = 0.2
SILENCE_MAX_S: Final = 30.0


class TwinBatchLog:
    """Fulfils ports.BatchLog. `group` is the consumers', whose progress it tells."""

    def __init__(self, broker: Broker, group: str = "local-consumers") -> None:
        self._broker = broker
        self._group = group
        self._name = "log"

    async def ends(self, topic: str, *, committed: bool = True) -> tuple[int, ...]:
        """See ports.BatchLog."""
        return await offsets.ends(self._broker, self._name, topic, stable=committed)

    async def starts(self, topic: str) -> tuple[int, ...]:
        """See ports.BatchLog."""
        return await offsets.starts(self._broker, self._name, topic)

    async def progress(self, topic: str) -> Mapping[int, Progress]:
        """See ports.BatchLog."""
        partitions = [(topic, number) for number in range(len(await self.ends(topic)))]
        found = await offsets.committed(self._broker, self._name, self._group, partitions)
        return {number: Progress(at.offset, int(at.metadata or 0)) for (_, number), at in found.items()}

    async def members(self) -> int:
        """See stages.remains.GroupLog."""
        try:
            return await self._broker.call(
                Request("ConsumerGroupDescribe", self._name), lambda: len(self._broker.group(self._group).members)
            )
        except Refused as refused:
            raise BusUnavailable(str(refused)) from refused

    async def scan(self, topic: str, partition: int, start: int, end: int) -> AsyncGenerator[Message, None]:
        """See ports.BatchLog."""
        position, silent_s = start, 0.0
        while position < end:
            messages, position = await self._fetch(topic, partition, position)
            for message in messages:
                if message.place.offset >= end:
                    return
                yield message
            silent_s = 0.0 if messages else silent_s + POLL_S
            if position < end and not messages:
                if silent_s >= SILENCE_MAX_S:
                    raise BusUnavailable(f"no record and no end of {topic}[{partition}] in {SILENCE_MAX_S:.0f} s")
                await self._broker.clock.sleep(POLL_S)

    async def close(self) -> None:
        """Nothing is held open."""

    async def _fetch(self, topic: str, partition: int, position: int) -> tuple[list[Message], int]:
        try:
            return await self._broker.call(
                Request("Fetch", self._name),
                lambda: self._broker.fetch(topic, partition, position, FETCH_MESSAGES_MAX),
            )
        except Refused as refused:
            raise BusUnavailable(str(refused)) from refused
