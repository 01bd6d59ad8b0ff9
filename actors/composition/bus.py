"""The topics of a deployment: who administers them, what is in them, and where records go."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from pipeline.adapters.batch_log import KafkaBatchLog
from pipeline.adapters.kafka import Topics
from pipeline.adapters.topics import TopicAdmin
from pipeline.ports import Message
from pipeline.settings import Settings
from pipeline.stages.publication import Outlets


@asynccontextmanager
async def topics(settings: Settings) -> AsyncIterator[TopicAdmin]:
    """The admin client of the deployment's topics."""
    admin = TopicAdmin(settings.kafka)
    try:
        yield admin
    finally:
        await admin.close()


def outlets(settings: Settings) -> Outlets:
    """Where signed and rejected go."""
    names = Topics(settings.kafka.topic_prefix)
    return Outlets(names.signed, names.rejected, settings.kafka.signed_partitions)


@asynccontextmanager
async def batch_log(settings: Settings) -> AsyncIterator[KafkaBatchLog]:
    """The records of the deployment's topics."""
    log = KafkaBatchLog(settings.kafka, settings.deployment)
    try:
        yield log
    finally:
        await log.close()


async def records(settings: Settings, topic: str, begins: Sequence[int] | None = None) -> list[Message]:
    """All that is committed in a topic, partition by partition; from these offsets on. Raises BusUnavailable."""
    async with batch_log(settings) as log:
        starts, ends = await log.starts(topic), await log.ends(topic)
        bounds = zip(map(max, starts, starts if begins is None else begins), ends, strict=True)
        scans = [log.scan(topic, partition, start, end) for partition, (start, end) in enumerate(bounds)]
        return [message for scan in scans async for message in scan]
