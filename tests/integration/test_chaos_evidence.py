"""What chaos concludes from real parts: an honest run has no breach, and every planted one is found."""

from __future__ import annotations

import psycopg
import pytest
from confluent_kafka import Producer

from actors.composition import verifying
from jobs.chaos.evidence import breaches
from pipeline.adapters.batch_log import KafkaBatchLog
from pipeline.adapters.etcd import EtcdStore
from pipeline.adapters.kafka import Topics
from pipeline.adapters.postgres import connection_string
from pipeline.assignment.paths import Paths
from pipeline.custody.sealing import Kek
from pipeline.ports import Message, Txn
from pipeline.settings import ReaderSettings, Settings
from tests.pipeline_run import running, stock

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

ROWS = 600
KEK = Kek(bytes(range(32)))


@pytest.fixture
async def settings(deployed: Settings) -> Settings:
    """Of a deployment that has signed all its rows and is at rest."""
    made = deployed.model_copy(update={"reader": ReaderSettings(batch_rows_max=50)})
    stock(made, ROWS, invalid=0.05)
    async with running(made, KEK) as run:
        await run.until(ROWS)
    async with verifying.verifier(made) as verifier:
        await verifier.catch_up()
        assert await verifier.reconcile() == []
    return made


def execute(settings: Settings, statement: str) -> None:
    with psycopg.connect(connection_string(settings.postgres)) as connection:
        connection.execute(statement)


async def first_of(settings: Settings, topic: str) -> Message:
    log = KafkaBatchLog(settings.kafka, settings.deployment)
    try:
        for partition, end in enumerate(await log.ends(topic)):
            async for message in log.scan(topic, partition, 0, end):
                return message
    finally:
        await log.close()
    raise AssertionError(f"{topic} is empty")


def publish(settings: Settings, topic: str, value: bytes, partition: int = 0) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers, "log_level": 0})
    producer.produce(topic, value, partition=partition)
    assert producer.flush(20) == 0


async def test_every_planted_breach_is_found_and_an_honest_run_has_none(settings: Settings) -> None:
    topics = Topics(settings.kafka.topic_prefix)
    assert await breaches(settings, []) == []

    assert await breaches(settings, ["the verifier said so"]) == ["I6: the verifier said so"]

    execute(settings, "DELETE FROM outcomes WHERE tx_id = 7")
    [found] = await breaches(settings, [])
    assert found.startswith("I7: ('payouts', 7) has the outcome None")

    stock(settings, 1, seed=9)
    assert any(line.startswith("I3: ") and "0 outcomes" in line for line in await breaches(settings, []))

    store = EtcdStore(settings.etcd)
    key = (await store.list(Paths(settings.deployment).keys))[0]
    await store.commit(Txn(compares=(), puts=((key.key, key.value.replace(b'"free"', b'"locked"')),), gets=()))
    await store.close()
    assert any("is still locked" in line for line in await breaches(settings, []))

    batch = await first_of(settings, topics.batches("payouts"))
    publish(settings, topics.batches("payouts"), batch.value, batch.place.partition)
    assert any(line.startswith("I8: batch 1 of") for line in await breaches(settings, []))

    record = await first_of(settings, topics.signed)
    publish(settings, topics.signed, record.value)
    assert any(line.startswith("I5: batch") and "published 2 times" in line for line in await breaches(settings, []))
