"""What the sweeper works with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from actors.composition import CLOCK
from actors.composition.bus import batch_log, outlets
from actors.composition.tables import tables_of
from pipeline.adapters.kafka import Topics
from pipeline.adapters.policies import PostgresPolicies
from pipeline.adapters.round_writer import KafkaRoundWriter
from pipeline.ports import Signers
from pipeline.settings import Settings
from pipeline.stages.consumer import Worker
from pipeline.stages.sweeper import Desk, Sweeper, SweeperPorts


@asynccontextmanager
async def sweeper(settings: Settings, worker: Worker, desk: Desk, signers: Signers) -> AsyncIterator[Sweeper]:
    """The deployment's sweeper."""
    names = Topics(settings.kafka.topic_prefix)
    async with AsyncExitStack() as stack:
        writer = KafkaRoundWriter(settings.kafka, f"{settings.deployment}-sweeper")
        stack.push_async_callback(writer.close)
        tables = await tables_of(stack, settings)
        batch_topics = {source.name: names.batches(source.name) for source in settings.sources}
        policies = PostgresPolicies(settings.postgres)
        stack.push_async_callback(policies.close)
        log = await stack.enter_async_context(batch_log(settings))
        ports = SweeperPorts(desk, signers, log, writer, tables, policies, batch_topics, CLOCK)
        yield Sweeper(worker, ports, outlets(settings))
