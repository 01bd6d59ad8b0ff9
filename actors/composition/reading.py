"""What a batch reader works with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from actors.composition import CLOCK
from actors.composition.tables import table_of
from pipeline.adapters.policies import PostgresPolicies, policy_text
from pipeline.adapters.stream_writer import KafkaStreamWriter
from pipeline.ethereum.policy import Policy
from pipeline.settings import Settings, SourceSettings
from pipeline.stages.reader import BatchReader, Streams
from pipeline.stream import Stream
from pipeline.telemetry import SILENT, Telemetry


@asynccontextmanager
async def readers(
    settings: Settings, source: SourceSettings, shards: list[int], streams: Streams, telemetry: Telemetry = SILENT
) -> AsyncIterator[list[BatchReader]]:
    """A reader per shard."""
    # A part-full batch costs as much as a full one: the streams of a process share its pace.
    paced = settings.reader.model_copy(update={"linger_s": settings.reader.linger_s * len(shards)})
    async with AsyncExitStack() as stack:
        table = await table_of(stack, settings, source)
        policy = await current_policy(settings, source)
        made = []
        for shard in shards:
            stream = Stream(source.name, shard)
            writer = KafkaStreamWriter(settings.kafka, settings.deployment, stream, source.shards)
            stack.push_async_callback(writer.close)
            reader = partial(BatchReader, stream, source.chain_id, table, writer, streams, CLOCK, paced)
            made.append(reader(policy=policy, telemetry=telemetry))
        yield made


async def current_policy(settings: Settings, source: SourceSettings) -> Policy | None:
    """The version that this source's batches are judged by from here on. Raises InputFileError, DatabaseUnavailable."""
    if source.policy_file is None:
        return None
    text = policy_text(source.policy_file)
    policies = PostgresPolicies(settings.postgres)
    try:
        return await policies.version(source.name, text)
    finally:
        await policies.close()
