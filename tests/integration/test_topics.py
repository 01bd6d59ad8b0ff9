"""Topics as they are made."""

from __future__ import annotations

import asyncio

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from pipeline.adapters.kafka import Topics, client_config
from pipeline.adapters.topics import BATCHES_KEPT_BYTES, TopicAdmin
from pipeline.settings import KafkaSettings, ReaderSettings, SourceSettings

pytestmark = pytest.mark.integration

CALL_S = 20


async def config_of(kafka: KafkaSettings, topic: str) -> dict[str, str]:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    admin = AdminClient(client_config(kafka))
    future = admin.describe_configs([resource])[resource]
    entries = await asyncio.to_thread(future.result, CALL_S)
    return {name: str(entry.value) for name, entry in entries.items()}


async def test_batches_are_kept_by_size_and_never_lost_by_age(kafka: KafkaSettings, deployment: str) -> None:
    admin, topics = TopicAdmin(kafka), Topics(kafka.topic_prefix)
    await admin.prepare(deployment, [SourceSettings(shards=2)], frozenset())
    batches = await config_of(kafka, topics.batches("payouts"))
    assert (batches["retention.ms"], batches["retention.bytes"]) == ("-1", str(BATCHES_KEPT_BYTES))
    assert int(batches["max.message.bytes"]) == kafka.message_max_bytes
    assert ReaderSettings().lag_records_max * kafka.message_max_bytes <= BATCHES_KEPT_BYTES
    signed = await config_of(kafka, topics.signed)
    assert signed["retention.ms"] != "-1"
    await admin.close()


async def test_a_topic_that_was_made_can_be_asked_about_at_once(kafka: KafkaSettings, deployment: str) -> None:
    """A broker's own view follows the controller's after some milliseconds."""
    admin = TopicAdmin(kafka)
    await admin.prepare(deployment, [SourceSettings(shards=1)], frozenset())
    for turn in range(8):
        source = SourceSettings(name=f"s{turn}", shards=2)
        await admin.remake(source)
        assert await admin.end(source, 1) == 0
    await admin.close()
