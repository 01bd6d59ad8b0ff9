"""What a recovery works with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from actors.composition import CLOCK
from actors.composition.bus import batch_log, outlets
from actors.composition.tables import tables_of
from pipeline.adapters.etcd import EtcdStore
from pipeline.adapters.kafka import Topics
from pipeline.adapters.ledger import PostgresLedger
from pipeline.adapters.outcomes import PostgresOutcomes
from pipeline.adapters.round_writer import KafkaRoundWriter
from pipeline.adapters.stream_writer import KafkaStreamWriter
from pipeline.settings import Settings
from pipeline.stages.admission import Admission
from pipeline.stages.recovery import Recovery, RecoveryPorts
from pipeline.stages.remains import Remains, RemainsPorts
from pipeline.stream import Stream


@asynccontextmanager
async def recovery(settings: Settings) -> AsyncIterator[Recovery]:
    """A recovery with a connection of its own to everything."""
    names, kafka = Topics(settings.kafka.topic_prefix), settings.kafka
    async with AsyncExitStack() as stack:
        store, ledger = EtcdStore(settings.etcd), PostgresLedger(settings.postgres)
        outcomes = PostgresOutcomes(settings.postgres)
        for client in (store, ledger, outcomes):
            stack.push_async_callback(client.close)
        ids = [*(f"consumer-{slot}" for slot in range(settings.pool.consumers)), "sweeper"]
        rounds = [KafkaRoundWriter(kafka, f"{settings.deployment}-{name}") for name in ids]
        streams = {
            Stream(source.name, shard): KafkaStreamWriter(
                kafka, settings.deployment, Stream(source.name, shard), source.shards
            )
            for source in settings.sources
            for shard in range(source.shards)
        }
        for closes in [*(writer.close for writer in rounds), *(writer.close for writer in streams.values())]:
            stack.push_async_callback(closes)
        tables = await tables_of(stack, settings)
        chain_ids = {source.name: source.chain_id for source in settings.sources}
        admission = Admission(chain_ids, {names.batches(source.name): source.name for source in settings.sources})
        log = await stack.enter_async_context(batch_log(settings))
        found = RemainsPorts(ledger, log, outcomes, tables, streams)
        remains = Remains(found, settings.sources, admission, outlets(settings), settings.node)
        ports = RecoveryPorts(store, found, rounds, CLOCK)
        yield Recovery(settings.deployment, settings.node, ports, remains, settings.etcd, names.signed)
