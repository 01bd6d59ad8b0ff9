"""What must be there before the first batch: topics, stream records, and the explicit first offset of each stream.

Consumers run with auto.offset.reset=error, so that a lost offset halts a stream instead of skipping or repeating it.
The first offset is therefore set here, once, while nothing of the stream has been assigned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from pipeline.assignment.records import StreamRecord
from pipeline.ports import Progress, Source
from pipeline.settings import SourceSettings
from pipeline.stages.reader import Streams
from pipeline.stream import Stream


class StreamList(Streams, Protocol):
    """The key manager, as the preparation sees it."""

    async def streams(self) -> Sequence[StreamRecord]:
        """All streams of the deployment."""
        ...


class Topics(Protocol):
    """Kafka's topics and the consumers' offsets."""

    async def prepare(self, deployment: str, sources: Sequence[SourceSettings], used: frozenset[str]) -> None:
        """Make or check the topics. Raises DeploymentHalted, SettingError, BusUnavailable."""
        ...

    async def progress(self, deployment: str, source: SourceSettings) -> Mapping[int, Progress]:
        """Per shard how far the consumers have come. Raises BusUnavailable."""
        ...

    async def begin(self, deployment: str, source: SourceSettings, shards: Sequence[int]) -> None:
        """Set the first offset of these shards. Raises BusUnavailable."""
        ...


async def prepare(
    deployment: str,
    sources: Sequence[SourceSettings],
    tables: Mapping[str, Source],
    streams: StreamList,
    topics: Topics,
) -> None:
    """Idempotent. Raises DeploymentHalted, StreamHalted, SettingError, DependencyDown."""
    known = await streams.streams()
    await topics.prepare(deployment, sources, frozenset(record.stream.source for record in known if record.seq > 0))
    for source in sources:
        system_id = await tables[source.name].system_id()
        fresh = []
        for shard in range(source.shards):
            record = StreamRecord(Stream(source.name, shard), source.chain_id, system_id)
            if (await streams.open_stream(record)).seq == 0:
                fresh.append(shard)
        begun = await topics.progress(deployment, source) if fresh else {}
        missing = [shard for shard in fresh if shard not in begun]
        if missing:
            await topics.begin(deployment, source, missing)
