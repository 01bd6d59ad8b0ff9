"""The batch reader as a Ray actor: some streams of one source, a task each."""

from __future__ import annotations

import asyncio
from typing import Any

import ray

from actors import composition
from actors.clients import RemoteKeyManager
from actors.composition import reading, tables
from actors.host import StageHost, StageStatus
from actors.metrics import TELEMETRY, publishing
from pipeline.errors import StreamHalted
from pipeline.settings import Settings, SourceSettings
from pipeline.stages import figures
from pipeline.stages.reader import BatchReader
from pipeline.stream import Stream
from pipeline.telemetry import Growth


@ray.remote
class BatchReaderActor:
    """Rows of Postgres become batches in Kafka."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._host: StageHost | None = None
        self._readers: list[BatchReader] = []
        self._halted: dict[str, str] = {}
        tables.warm_source()

    def __repr__(self) -> str:
        return self._name

    async def start(self, settings: Settings, source: SourceSettings, shards: list[int], key_manager: Any) -> None:
        """Read these shards. Does nothing while it runs."""
        if self._host is None:
            composition.start_logging()
            self._host = StageHost(self._name)

        async def run(stop: asyncio.Event) -> None:
            self._halted.clear()
            growth, manager = Growth(TELEMETRY), RemoteKeyManager(key_manager)
            async with reading.readers(settings, source, shards, manager, TELEMETRY) as readers:
                self._readers = readers
                async with publishing(lambda: figures.of_readers(growth, source.name, [r.count for r in readers])):
                    await asyncio.gather(*(self._read(reader, stop) for reader in readers))

        self._host.start(run)

    async def _read(self, reader: BatchReader, stop: asyncio.Event) -> None:
        try:
            await reader.run(stop)
        except StreamHalted as error:
            self._halted[str(reader.stream)] = error.reason  # the other streams go on

    async def status(self) -> StageStatus:
        """Counts: rows, batches, per stream the last seq, halts."""
        host = self._host or StageHost(self._name)
        return host.status(
            {
                "rows": sum(reader.count.rows for reader in self._readers),
                "batches": sum(reader.count.batches for reader in self._readers),
                "seq": {str(reader.stream): reader.count.seq for reader in self._readers},
                "held_back": sum(reader.count.held_back for reader in self._readers),
                "halted": dict(self._halted),
            }
        )

    async def rows_wait(self) -> bool:
        """Whether there is a committed row that no batch holds yet, even one that must wait for older transactions."""
        halted = {Stream.parse(text) for text in self._halted}
        return any([await reader.rows_wait() for reader in self._readers if reader.stream not in halted])

    async def drain(self) -> None:
        """Finish the batch at hand."""
        if self._host is not None:
            await self._host.drain()
