"""Committed offsets as an outsider of the group reads them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from pipeline.adapters.kafka import client_config
from pipeline.adapters.offsets import Committed, GroupOffsets
from pipeline.settings import KafkaSettings

pytestmark = pytest.mark.integration

PARTITIONS = 3


@pytest.fixture
async def offsets(kafka: KafkaSettings) -> AsyncIterator[GroupOffsets]:
    made = GroupOffsets(kafka)
    yield made
    await made.close()


@pytest.fixture
def topic(kafka: KafkaSettings) -> str:
    name = f"{kafka.topic_prefix}.offsets"
    admin = AdminClient(client_config(kafka))
    admin.create_topics([NewTopic(name, PARTITIONS)])[name].result(20)
    return name


async def test_a_group_that_never_was_has_none(offsets: GroupOffsets, topic: str, deployment: str) -> None:
    """The admin client's way to ask can end the process here: the coordinator is only being made."""
    for turn in range(5):
        assert await offsets.committed(f"{deployment}-{turn}", topic, PARTITIONS) == {}


async def test_offsets_come_with_their_metadata(offsets: GroupOffsets, topic: str, deployment: str) -> None:
    await offsets.commit(deployment, topic, {0: Committed(5, "seq 4"), 2: Committed(7, "")})
    assert await offsets.committed(deployment, topic, PARTITIONS) == {0: Committed(5, "seq 4"), 2: Committed(7, "")}


async def test_members_of_the_group_are_not_disturbed(
    offsets: GroupOffsets, topic: str, deployment: str, kafka: KafkaSettings
) -> None:
    member = Consumer(
        client_config(kafka) | {"group.id": deployment, "group.protocol": "consumer", "enable.auto.commit": False}
    )
    member.subscribe([topic])
    deadline = time.monotonic() + 20
    while len(member.assignment()) < PARTITIONS and time.monotonic() < deadline:
        await asyncio.to_thread(member.poll, 0.1)
    member.commit(offsets=[TopicPartition(topic, 1, 3, "mine")], asynchronous=False)
    assert await offsets.committed(deployment, topic, PARTITIONS) == {1: Committed(3, "mine")}
    await asyncio.to_thread(member.poll, 0.5)
    assert len(member.assignment()) == PARTITIONS
    member.close()


async def test_an_offset_in_an_open_transaction_is_waited_for(
    offsets: GroupOffsets, topic: str, deployment: str, kafka: KafkaSettings
) -> None:
    await offsets.commit(deployment, topic, {0: Committed(1, "before")})
    producer = Producer(client_config(kafka) | {"transactional.id": deployment})
    producer.init_transactions(20)
    producer.begin_transaction()
    outsider = Consumer(client_config(kafka) | {"group.id": deployment})
    metadata = outsider.consumer_group_metadata()
    producer.send_offsets_to_transaction([TopicPartition(topic, 0, 9, "after")], metadata, 20)
    asked = asyncio.create_task(offsets.committed(deployment, topic, PARTITIONS))
    await asyncio.sleep(1)
    assert not asked.done()
    await asyncio.to_thread(producer.commit_transaction, 20)
    assert (await asked)[0] == Committed(9, "after")
    outsider.close()
