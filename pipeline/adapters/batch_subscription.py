"""A member of the consumer group on tx.batches.*, by the KIP-848 protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from confluent_kafka import OFFSET_INVALID, OFFSET_STORED, Consumer, KafkaError, KafkaException, TopicPartition

from pipeline.adapters.batch_log import FETCH, message_of
from pipeline.adapters.kafka import CALL_TIMEOUT_S, ClientThread, client_config, consumer_group, take, unavailable
from pipeline.effects import Moment, effect
from pipeline.errors import BusUnavailable
from pipeline.ports import Message
from pipeline.settings import KafkaSettings

POLL_INTERVAL_MAX_S: Final = 60
"""A member that has not polled for this long is out of the group (max.poll.interval.ms)."""

FIRST_OFFSETS_S: Final = 3.0
"""How long a new partition's offset is waited for in the rebalance itself."""

DELETED_S: Final = 2.0
HEARTBEAT: Final = effect("kafka", "ConsumerGroupHeartbeat")
"""Sent by a thread of librdkafka's own; ours sees it when partitions come or go, which the next one acknowledges."""

GONE: Final = "its topic is gone from Kafka"
FETCH_WAIT_MS: Final = 50
QUEUED_KIB: Final = 32 * 1024


class KafkaBatchSubscription:
    """Fulfils ports.BatchSubscription."""

    def __init__(self, settings: KafkaSettings, deployment: str, topics: Sequence[str]) -> None:
        self._settings = settings
        self._thread = ClientThread("kafka-subscription", settings.bootstrap_servers)
        self._assigned: set[tuple[str, int]] = set()
        self._paused: frozenset[tuple[str, int]] = frozenset()
        self._halted: dict[tuple[str, int], str] = {}
        self._revoked: set[tuple[str, int]] = set()  # and not yet looked into why
        self._closing = False
        self._consumer = Consumer(
            client_config(settings)
            | {
                "group.id": consumer_group(deployment),
                "group.protocol": "consumer",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "max.poll.interval.ms": POLL_INTERVAL_MAX_S * 1000,
                "fetch.wait.max.ms": FETCH_WAIT_MS,
                "queued.max.messages.kbytes": QUEUED_KIB,
            }
        )
        self._consumer.subscribe(
            list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
        )

    async def poll(self, max_messages: int, timeout_s: float) -> Sequence[Message]:
        """See ports.BatchSubscription."""
        return await self._thread.call(self._poll, max_messages, timeout_s)

    def assigned(self) -> frozenset[tuple[str, int]]:
        """Owned since the last poll."""
        return frozenset(self._assigned)

    def halted(self) -> Mapping[tuple[str, int], str]:
        """Partitions without a readable offset, and why."""
        return dict(self._halted)

    async def pause(self, partitions: frozenset[tuple[str, int]]) -> None:
        """Exactly these deliver nothing."""
        if partitions != self._paused:
            await self._thread.call(self._pause, partitions)

    async def rewind(self, partitions: frozenset[tuple[str, int]]) -> Mapping[tuple[str, int], int]:
        """Back to the committed offsets. Raises BusUnavailable."""
        return await self._thread.call(self._rewind, partitions)

    async def close(self) -> None:
        """Leave the group."""
        self._closing = True
        await self._thread.call(self._leave)
        self._thread.end()

    def _leave(self) -> None:
        with effect("kafka", "Leave"):
            self._consumer.close()

    def _poll(self, max_messages: int, timeout_s: float) -> list[Message]:
        # Captured before the poll: what this poll returns was ours under this generation or a later one, so a commit
        # with it can be refused needlessly, but never be accepted for a partition that went to another member.
        generation = self._consumer.consumer_group_metadata()
        messages = []
        FETCH.reached(Moment.BEFORE)
        for raw in take(self._consumer, max_messages, timeout_s):
            error = raw.error()
            if error is None:
                if (raw.topic(), raw.partition()) in self._assigned:
                    messages.append(message_of(raw, generation))
            else:
                self._on_error(raw, error)
        if messages:
            FETCH.reached(Moment.AFTER)
        if self._revoked:
            self._report_deleted()
        return messages

    def _report_deleted(self) -> None:
        """The group takes a deleted topic's partitions away without a word (KIP-848), so the broker is asked."""
        try:
            with effect("kafka", "Metadata"):
                present = self._consumer.list_topics(timeout=DELETED_S).topics
        except KafkaException:
            return  # asked again after the next poll
        self._halted |= {tp: GONE for tp in self._revoked if tp[0] not in present}
        self._revoked.clear()

    def _on_error(self, raw: Any, error: KafkaError) -> None:
        if error.code() == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001 - a public code with an odd name
            self._halted[raw.topic(), raw.partition()] = f"its next offset is gone from Kafka ({error.str()})"
        elif error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):  # noqa: SLF001 - as above
            gone = {tp for tp in self._assigned if tp[0] == raw.topic()} or {(raw.topic(), 0)}
            self._halted |= dict.fromkeys(gone, GONE)
        elif error.fatal():
            raise unavailable(self._settings, error)

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._closing:
            # Given while we leave: asking for offsets now would only wait for an answer that cannot come.
            consumer.incremental_assign(partitions)
            return
        readable = []
        for tp in self._first_offsets(consumer, partitions):
            if tp.offset == OFFSET_INVALID:
                self._halted[tp.topic, tp.partition] = "the consumer group has no offset for it"
            else:
                readable.append(tp)
                self._halted.pop((tp.topic, tp.partition), None)
        with HEARTBEAT:
            consumer.incremental_assign(readable)
        consumer.resume(readable)  # librdkafka keeps the pause of a partition that went away and came back
        self._assigned |= {(tp.topic, tp.partition) for tp in readable}

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        gone = {(tp.topic, tp.partition) for tp in partitions}
        self._assigned -= gone
        self._paused -= gone
        for partition in gone:
            self._halted.pop(partition, None)
        with HEARTBEAT:
            consumer.incremental_unassign(partitions)
        self._revoked |= gone

    def _first_offsets(self, consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
        """Where to begin; OFFSET_INVALID = nowhere."""
        try:
            return self._committed(consumer, partitions, FIRST_OFFSETS_S)
        except (KafkaException, BusUnavailable):
            # An open transaction may still change them. The group waits for this callback, so librdkafka asks on.
            return [TopicPartition(tp.topic, tp.partition, OFFSET_STORED) for tp in partitions]

    def _committed(
        self, consumer: Consumer, partitions: list[TopicPartition], within_s: float = CALL_TIMEOUT_S
    ) -> list[TopicPartition]:
        bare = [TopicPartition(tp.topic, tp.partition) for tp in partitions]
        with effect("kafka", "OffsetFetch"):
            found = consumer.committed(bare, timeout=within_s)
        for tp in found:
            if tp.error is not None:
                raise unavailable(self._settings, tp.error)
        return [TopicPartition(tp.topic, tp.partition, tp.offset) for tp in found]

    def _pause(self, partitions: frozenset[tuple[str, int]]) -> None:
        wanted = partitions & self._assigned
        stop, go = wanted - self._paused, (self._paused - wanted) & self._assigned
        try:
            if stop:
                self._consumer.pause([TopicPartition(*tp) for tp in stop])
            if go:
                self._consumer.resume([TopicPartition(*tp) for tp in go])
        except KafkaException as error:
            raise unavailable(self._settings, error) from error
        self._paused = frozenset(wanted)

    def _rewind(self, partitions: frozenset[tuple[str, int]]) -> Mapping[tuple[str, int], int]:
        wanted = [TopicPartition(*tp) for tp in partitions & self._assigned]
        if not wanted:
            return {}
        try:
            places = self._committed(self._consumer, wanted)
            for tp in places:
                if tp.offset >= 0:
                    self._consumer.seek(tp)
        except KafkaException as error:
            raise unavailable(self._settings, error) from error
        return {(tp.topic, tp.partition): tp.offset for tp in places}
