"""What a batch consumer works with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from actors.composition import CLOCK
from actors.composition.bus import batch_log, outlets
from pipeline.adapters.batch_subscription import KafkaBatchSubscription
from pipeline.adapters.kafka import Topics
from pipeline.adapters.round_writer import KafkaRoundWriter
from pipeline.ports import Assigner, Signers
from pipeline.settings import Settings
from pipeline.stages.admission import Admission
from pipeline.stages.consumer import BatchConsumer, ConsumerPorts, Worker
from pipeline.telemetry import SILENT, Telemetry


@asynccontextmanager
async def consumer(
    settings: Settings,
    slot: int,
    worker: Worker,
    assigner: Assigner,
    signers: Signers,
    telemetry: Telemetry = SILENT,
) -> AsyncIterator[BatchConsumer]:
    """The consumer of a slot."""
    names = Topics(settings.kafka.topic_prefix)
    source_of_topic = {names.batches(source.name): source.name for source in settings.sources}
    chain_ids = {source.name: source.chain_id for source in settings.sources}
    async with AsyncExitStack() as stack:
        subscription = KafkaBatchSubscription(settings.kafka, settings.deployment, list(source_of_topic))
        stack.push_async_callback(subscription.close)
        writer = KafkaRoundWriter(settings.kafka, f"{settings.deployment}-consumer-{slot}")
        stack.push_async_callback(writer.close)
        log = await stack.enter_async_context(batch_log(settings))
        ports = ConsumerPorts(subscription, writer, assigner, signers, log, CLOCK, telemetry)
        yield BatchConsumer(worker, ports, Admission(chain_ids, source_of_topic), outlets(settings), settings.pool)
