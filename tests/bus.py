"""Kafka as its contract tests need it: the ports and a stranger's hand on topics, of the twin and a real one alike."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from pipeline.adapters.batch_log import KafkaBatchLog
from pipeline.adapters.batch_subscription import KafkaBatchSubscription
from pipeline.adapters.kafka import Topics, client_config, consumer_group, reader_group
from pipeline.adapters.offsets import Committed as KafkaCommitted
from pipeline.adapters.offsets import GroupOffsets
from pipeline.adapters.round_writer import KafkaRoundWriter
from pipeline.adapters.stream_writer import KafkaStreamWriter
from pipeline.clock import SystemClock
from pipeline.ports import BatchLog, BatchSubscription, Message, Outgoing, RoundWriter, StreamWriter
from pipeline.settings import KafkaSettings
from pipeline.stream import Stream
from pipeline.testing.batch_log import TwinBatchLog
from pipeline.testing.batch_subscription import TwinBatchSubscription
from pipeline.testing.broker import MESSAGE_MAX_BYTES, Broker
from pipeline.testing.group import Committed, Generation
from pipeline.testing.network import InstantNetwork
from pipeline.testing.round_writer import TwinRoundWriter
from pipeline.testing.stream_writer import TwinStreamWriter

T = TypeVar("T")
C = TypeVar("C", StreamWriter, RoundWriter, BatchSubscription, BatchLog)

SHARDS = 3
CALL_S = 20
PATIENCE_S = 30.0
HURRY = 10
HEARTBEAT_MS = 1000
"""As short as the embedded broker allows: rebalances take a few of them."""

POLL_S = 0.1


class OpenTransaction(Protocol):
    """A transaction that somebody began."""

    async def end(self, *, commit: bool) -> None: ...


class Bus(Protocol):
    """A Kafka, with the topic `batches` of SHARDS partitions without an offset, and `signed` of two."""

    batches: str
    signed: str
    deployment: str

    def stream_writer(self, shard: int = 0) -> StreamWriter: ...
    def round_writer(self, name: str = "consumer-0") -> RoundWriter: ...
    def subscription(self, *topics: str) -> BatchSubscription: ...
    def log(self) -> BatchLog: ...
    async def create(self, topic: str, partitions: int, message_max_bytes: int = ...) -> None: ...
    async def delete(self, topic: str) -> None: ...
    async def trim(self, topic: str, partition: int, before: int) -> None: ...
    async def append(self, topic: str, partition: int, value: bytes) -> None: ...
    async def begin(self, records: Sequence[Outgoing], name: str = "stranger") -> OpenTransaction: ...
    async def set_offsets(self, topic: str, offsets: Mapping[int, int]) -> None: ...
    async def begin_offset(self, topic: str, partition: int, offset: int) -> OpenTransaction: ...
    async def forget_reader(self, shard: int) -> None: ...
    async def close(self) -> None: ...


class HurriedClock(SystemClock):
    """Nobody but the twin waits for these seconds."""

    def monotonic_s(self) -> float:
        return super().monotonic_s() * HURRY

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / HURRY)


class TwinBus:
    """In memory."""

    def __init__(self, deployment: str) -> None:
        self.broker = Broker(HurriedClock(), InstantNetwork())
        self.deployment = deployment
        self.batches, self.signed = "tx.batches.payouts", "tx.signed"

    def stream_writer(self, shard: int = 0) -> StreamWriter:
        return TwinStreamWriter(self.broker, self.deployment, Stream("payouts", shard), self.batches)

    def round_writer(self, name: str = "consumer-0") -> RoundWriter:
        return TwinRoundWriter(self.broker, f"{self.deployment}-{name}")

    def subscription(self, *topics: str) -> BatchSubscription:
        name = f"member-{uuid.uuid4().hex[:8]}"
        return TwinBatchSubscription(self.broker, consumer_group(self.deployment), name, topics or [self.batches])

    def log(self) -> BatchLog:
        return TwinBatchLog(self.broker, consumer_group(self.deployment))

    async def create(self, topic: str, partitions: int, message_max_bytes: int = MESSAGE_MAX_BYTES) -> None:
        self.broker.create_topic(topic, partitions, message_max_bytes)

    async def delete(self, topic: str) -> None:
        self.broker.delete_topic(topic)

    async def trim(self, topic: str, partition: int, before: int) -> None:
        self.broker.partition(topic, partition).trim(before)

    async def append(self, topic: str, partition: int, value: bytes) -> None:
        self.broker.append(topic, partition, b"", value)

    async def begin(self, records: Sequence[Outgoing], name: str = "stranger") -> OpenTransaction:
        made = TwinTransaction(self.broker, f"{self.deployment}-{name}")
        for record in records:
            self.broker.produce(made.name, made.epoch, record.topic, record.partition, [record])
        return made

    async def set_offsets(self, topic: str, offsets: Mapping[int, int]) -> None:
        at = {(topic, partition): Committed(offset, "0") for partition, offset in offsets.items()}
        group = consumer_group(self.deployment)
        self.broker.group(group).commit(Generation(group), at)

    async def begin_offset(self, topic: str, partition: int, offset: int) -> OpenTransaction:
        made, group = TwinTransaction(self.broker, f"{self.deployment}-stranger"), consumer_group(self.deployment)
        at = {(topic, partition): Committed(offset, "1")}
        self.broker.commit_in_transaction(made.name, made.epoch, Generation(group), at)
        return made

    async def forget_reader(self, shard: int) -> None:
        del self.broker.groups[reader_group(self.deployment, Stream("payouts", shard))]

    async def close(self) -> None:
        """Nothing is held open."""


class TwinTransaction:
    """Fulfils OpenTransaction."""

    def __init__(self, broker: Broker, name: str) -> None:
        self.name = name
        self.broker = broker
        self.epoch = broker.init_producer(name, PATIENCE_S * HURRY)

    async def end(self, *, commit: bool) -> None:
        self.broker.end_transaction(self.name, self.epoch, commit=commit)


class KafkaBus:
    """The embedded broker; topics of its own."""

    def __init__(self, settings: KafkaSettings, deployment: str) -> None:
        self.settings = settings
        self.deployment = deployment
        topics = Topics(settings.topic_prefix)
        self.batches, self.signed = topics.batches("payouts"), topics.signed
        self._admin = AdminClient(client_config(settings))
        self._made: list[StreamWriter | RoundWriter | BatchSubscription | BatchLog] = []

    def stream_writer(self, shard: int = 0) -> StreamWriter:
        return self._kept(KafkaStreamWriter(self.settings, self.deployment, Stream("payouts", shard), SHARDS))

    def round_writer(self, name: str = "consumer-0") -> RoundWriter:
        return self._kept(KafkaRoundWriter(self.settings, f"{self.deployment}-{name}"))

    def subscription(self, *topics: str) -> BatchSubscription:
        return self._kept(KafkaBatchSubscription(self.settings, self.deployment, topics or [self.batches]))

    def log(self) -> BatchLog:
        return self._kept(KafkaBatchLog(self.settings, self.deployment))

    async def hasten(self) -> None:
        """Let the group's members hear of changes soon."""
        entry = ConfigEntry(
            "consumer.heartbeat.interval.ms", str(HEARTBEAT_MS), incremental_operation=AlterConfigOpType.SET
        )
        group = ConfigResource(ResourceType.GROUP, consumer_group(self.deployment), incremental_configs=[entry])
        await self._done(self._admin.incremental_alter_configs([group])[group])

    async def create(self, topic: str, partitions: int, message_max_bytes: int = MESSAGE_MAX_BYTES) -> None:
        config = {"max.message.bytes": str(message_max_bytes)}
        await self._done(self._admin.create_topics([NewTopic(topic, partitions, 1, config=config)])[topic])
        await until(partial(self._listed, topic, wanted=True))

    async def delete(self, topic: str) -> None:
        await self._done(self._admin.delete_topics([topic])[topic])
        await until(partial(self._listed, topic, wanted=False))

    async def trim(self, topic: str, partition: int, before: int) -> None:
        [future] = self._admin.delete_records([TopicPartition(topic, partition, before)]).values()
        await self._done(future)

    async def append(self, topic: str, partition: int, value: bytes) -> None:
        transaction = await self.begin([Outgoing(topic, partition, b"", value)])
        await transaction.end(commit=True)

    async def begin(self, records: Sequence[Outgoing], name: str = "stranger") -> OpenTransaction:
        def work() -> Any:
            producer = self._begun(name)
            for record in records:
                producer.produce(record.topic, record.value, record.key, partition=record.partition)
            assert producer.flush(CALL_S) == 0
            return producer

        return KafkaTransaction(await asyncio.to_thread(work))

    async def begin_offset(self, topic: str, partition: int, offset: int) -> OpenTransaction:
        def work() -> Any:
            producer = self._begun("stranger")
            outsider = Consumer(client_config(self.settings) | {"group.id": consumer_group(self.deployment)})
            at = [TopicPartition(topic, partition, offset, "1")]
            producer.send_offsets_to_transaction(at, outsider.consumer_group_metadata(), CALL_S)
            outsider.close()
            return producer

        return KafkaTransaction(await asyncio.to_thread(work))

    async def set_offsets(self, topic: str, offsets: Mapping[int, int]) -> None:
        client = GroupOffsets(self.settings)
        at = {partition: KafkaCommitted(offset, "0") for partition, offset in offsets.items()}
        await client.commit(consumer_group(self.deployment), topic, at)
        await client.close()

    async def forget_reader(self, shard: int) -> None:
        group = reader_group(self.deployment, Stream("payouts", shard))
        await self._done(self._admin.delete_consumer_groups([group])[group])

    async def close(self) -> None:
        for made in self._made:
            await made.close()

    def _begun(self, name: str) -> Any:
        producer = Producer(client_config(self.settings) | {"transactional.id": f"{self.deployment}-{name}"})
        producer.init_transactions(CALL_S)
        producer.begin_transaction()
        return producer

    async def _listed(self, topic: str, *, wanted: bool) -> bool | None:
        """The broker's own view follows the controller's after some milliseconds."""
        return (topic in self._admin.list_topics(timeout=CALL_S).topics) is wanted or None

    def _kept(self, made: C) -> C:
        self._made.append(made)
        return made

    async def _done(self, future: Any) -> None:
        await asyncio.to_thread(future.result, CALL_S)


class KafkaTransaction:
    """Fulfils OpenTransaction."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer

    async def end(self, *, commit: bool) -> None:
        end = self._producer.commit_transaction if commit else self._producer.abort_transaction
        await asyncio.to_thread(end, CALL_S)


async def until(look: Callable[[], Awaitable[T | None]]) -> T:
    """What `look` gives once it gives something."""
    deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
    while True:
        found = await look()
        if found is not None:
            return found
        assert asyncio.get_running_loop().time() < deadline_s, f"not in {PATIENCE_S:g} s"


async def polled(
    subscription: BatchSubscription, holds: Callable[[], bool], *others: BatchSubscription
) -> list[Message]:
    """Poll, all members in turn, until it holds; what the first one got."""
    got: list[Message] = []

    async def look() -> list[Message] | None:
        got.extend(await subscription.poll(16, POLL_S))
        for other in others:
            await other.poll(16, POLL_S)
        return got if holds() else None

    return await until(look)


async def received(subscription: BatchSubscription, count: int) -> list[Message]:
    """The next messages."""
    got: list[Message] = []

    async def look() -> list[Message] | None:
        got.extend(await subscription.poll(count - len(got), POLL_S))
        return got if len(got) >= count else None

    return await until(look)


async def settled(member: BatchSubscription, partitions: int, *others: BatchSubscription) -> None:
    """Let a member have so many partitions, and read them from their offsets.

    What comes with the very poll that joins may carry the generation of before: needlessly stale, by design.
    """
    await polled(member, lambda: len(member.assigned()) == partitions, *others)
    await member.rewind(member.assigned())


async def stable(log: BatchLog, topic: str) -> tuple[int, ...]:
    """Where a topic ends once no transaction is open: a commit is answered before its markers are written."""

    async def look() -> tuple[int, ...] | None:
        marks = await log.ends(topic, committed=False)
        return marks if await log.ends(topic) == marks else None

    return await until(look)


async def scanned(log: BatchLog, topic: str, partition: int, start: int = 0, end: int | None = None) -> list[bytes]:
    """The committed values of a stretch; up to the stable end unless told."""
    stop = (await stable(log, topic))[partition] if end is None else end
    return [message.value async for message in log.scan(topic, partition, start, stop)]
