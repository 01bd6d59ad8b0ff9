"""Where stages meet adapters: the only place that turns settings into clients.

Each function opens what a stage needs and closes it again, so that an actor is a name, a status and one of these. There
is a module per stage, so that a process loads what its own stage needs; here is what several of them share.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from pipeline import journal, tracing
from pipeline.adapters.batch_log import KafkaBatchLog
from pipeline.adapters.kafka import Topics
from pipeline.adapters.postgres_source import PostgresSource, driver
from pipeline.adapters.topics import TopicAdmin
from pipeline.clock import SystemClock
from pipeline.ethereum.rows import parser
from pipeline.settings import ENV_PREFIX, Settings, SourceSettings
from pipeline.stages import preparation
from pipeline.stages.publication import Outlets

CLOCK: Final = SystemClock()


def start_logging() -> None:
    """Logs of an actor go to its stderr, which Ray keeps per process and shows in the dashboard; spans if configured.

    Raises UsageError.
    """
    journal.start()
    tracing.start()


def here(settings: Settings) -> Settings:
    """Settings that a job made elsewhere, with the name of this node."""
    node = os.environ.get(ENV_PREFIX + "NODE") or socket.gethostname()
    return settings.model_copy(update={"node": node})


def warm_source() -> None:
    """Load what the first rows would wait for."""
    driver()
    parser()


def signer_count(settings: Settings) -> int:
    """How many signers the settings ask for."""
    return settings.pool.signers or len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class ReaderPlace:
    """Which streams one reader actor reads."""

    name: str
    source: SourceSettings
    shards: list[int]


def reader_places(settings: Settings) -> list[ReaderPlace]:
    """The shards of every source, dealt out over `pool.readers` actors for each."""
    places = []
    for source in settings.sources:
        actors = min(settings.pool.readers, source.shards)
        for index in range(actors):
            name = f"reader-{source.name}-{index}"
            places.append(ReaderPlace(name, source, list(range(index, source.shards, actors))))
    return places


@asynccontextmanager
async def topics(settings: Settings) -> AsyncIterator[TopicAdmin]:
    """The admin client of the deployment's topics."""
    admin = TopicAdmin(settings.kafka)
    try:
        yield admin
    finally:
        await admin.close()


async def prepare(settings: Settings, streams: preparation.StreamList, admin: TopicAdmin) -> None:
    """Topics, stream records and first offsets. Raises what stages.preparation.prepare raises."""
    async with AsyncExitStack() as stack:
        tables = await tables_of(stack, settings)
        await preparation.prepare(settings.deployment, settings.sources, tables, streams, admin)


async def total(settings: Settings) -> int:
    """Committed rows of all sources. Raises DatabaseUnavailable."""
    async with AsyncExitStack() as stack:
        tables = await tables_of(stack, settings)
        return sum([await table.count() for table in tables.values()])


def outlets(settings: Settings) -> Outlets:
    """Where signed and rejected go."""
    names = Topics(settings.kafka.topic_prefix)
    return Outlets(names.signed, names.rejected, settings.kafka.signed_partitions)


async def tables_of(stack: AsyncExitStack, settings: Settings) -> dict[str, PostgresSource]:
    """The table of every source by its name, as `table_of` opens it."""
    return {source.name: await table_of(stack, settings, source) for source in settings.sources}


async def table_of(stack: AsyncExitStack, settings: Settings, source: SourceSettings) -> PostgresSource:
    """The table of a source, closed with the stack. Raises DatabaseUnavailable, SettingError."""
    opened = PostgresSource(settings.postgres, source)
    stack.push_async_callback(opened.close)
    await opened.check()
    return opened


def batch_log(stack: AsyncExitStack, settings: Settings) -> KafkaBatchLog:
    """The records of the deployment's topics, closed with the stack."""
    log = KafkaBatchLog(settings.kafka, settings.deployment)
    stack.push_async_callback(log.close)
    return log
